"""MLflow: metrics and figures of a run of its own, in a local store or on a server."""

import re
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.utils.time import get_current_time_millis


class MLflow:
    """Logs to MLflow through its client, so no run has to be active; needs the extra `mlflow`.

    A store in a folder (`file:...`) needs `MLFLOW_ALLOW_FILE_STORE=true` since MLflow 3.17, and one
    in SQLite needs sqlalchemy, which `mlflow-skinny` does not bring.

    Args:
        experiment: Name of the experiment; made if there is none.
        uri: Where the store is, such as `sqlite:///mlflow.db` or a server; MLflow's own default
            otherwise.
        run_id: A run to log to, which stays open; None begins one and ends it.
        run_name: Name of the run that is begun.
    """

    def __init__(
        self,
        experiment: str = "training-dynamics",
        *,
        uri: str | None = None,
        run_id: str | None = None,
        run_name: str | None = None,
    ) -> None:
        self._client = MlflowClient(uri)
        self._is_own = run_id is None
        if run_id is None:
            known = self._client.get_experiment_by_name(experiment)
            place = known.experiment_id if known else self._client.create_experiment(experiment)
            run_id = self._client.create_run(place, run_name=run_name).info.run_id
        self.run_id: str = run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars."""
        now = get_current_time_millis()
        metrics = [Metric(_allowed(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Store a figure among the artifacts, as `<name>-<step>.png`."""
        self._client.log_figure(self.run_id, figure, f"{name}-{step}.png")

    def close(self) -> None:
        """End the run, if it is our own."""
        if self._is_own:
            self._client.set_terminated(self.run_id)


def _allowed(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
