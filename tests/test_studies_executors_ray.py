"""Ray's executor: the same runs, dead workers and nodes made up for, and its manners."""

import os
from pathlib import Path

import pytest
from sweep_runs import assert_same, noted, plan, plan_24, run_and_die_twice, run_and_fail, sweep

from studies.lab.executors import open_executor
from studies.lab.executors.process import ProcessExecutor

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def manners(tmp_path_factory):
    """Workers import these tests; the token lies in no one's home."""
    here = Path(__file__).parent
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{here.parent}{os.pathsep}{here}")
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
        patch.setenv("RAY_AUTH_MODE", "token")
        (home / "token").write_text("0123456789abcdef" * 2)
        yield home


@pytest.fixture(scope="module")
def executor(manners):
    with open_executor("ray", workers=2) as opened:
        yield opened


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_24_runs_are_the_same_from_serial_process_and_ray(tmp_path, executor):
    assert sweep(tmp_path / "serial", plan_24()).failures == []
    for name, made_by in (("process", ProcessExecutor(2)), ("ray", executor)):
        assert sweep(tmp_path / name, plan_24(), executor=made_by).failures == []
        assert_same(tmp_path / "serial", tmp_path / name)


def test_a_dead_worker_is_made_up_for_and_an_error_is_told(tmp_path, executor):
    sweep(tmp_path / "serial", plan())
    out = tmp_path / "study"
    assert sweep(out, plan(), run_and_die_twice, executor).failures == []
    assert noted(out, "died")["symmetric-0.4-width8-seed1"] >= 3
    assert_same(tmp_path / "serial", out)
    other = tmp_path / "other"
    failures = sweep(other, plan(), run_and_fail, executor).failures
    assert {f.run for f in failures} == {"symmetric-0.2-width8-seed1", "symmetric-0.4-width8-seed1"}
    assert "unlucky" in (other / "sweep/symmetric-0.2-width8-seed1.log").read_text()


def test_manners(executor, manners):
    """A token is asked for, no usage is reported, no dashboard, a bounded store, a clean home."""
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not (manners / ".ray").exists()
    context = ray.get_runtime_context()
    assert ray.cluster_resources()["object_store_memory"] <= 256 * 2**20
    assert ray.cluster_resources()["CPU"] == 2
    assert context.gcs_address.startswith(("127.", ray.util.get_node_ip_address()))
    assert not ray._private.worker.global_worker.node.webui_url


def test_an_address_without_a_cluster_is_explained():
    if ray.is_initialized():
        ray.shutdown()
    with (
        pytest.raises(ValueError, match="There is no Ray cluster at"),
        open_executor("ray", address="auto"),
    ):
        pass


def test_a_node_that_dies_in_the_middle_of_a_sweep_costs_no_run(tmp_path):
    """Two raylets on this machine; one is killed when three runs have ended."""
    from ray.cluster_utils import Cluster

    sweep(tmp_path / "serial", plan(seeds=5))
    if ray.is_initialized():
        ray.shutdown()
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        other = cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        out = tmp_path / "study"
        with open_executor("ray") as executor:
            assert executor.workers == 2
            result = sweep(out, plan(seeds=5), executor=_Killing(executor, cluster, other))
        assert result.failures == []
        assert sum(node["Alive"] for node in ray.nodes()) == 1
        assert_same(tmp_path / "serial", out)
    finally:
        ray.shutdown()
        cluster.shutdown()


class _Killing:
    """Kills a node when three runs have ended."""

    workers = 2

    def __init__(self, executor, cluster, node):
        self.executor, self.cluster, self.node = executor, cluster, node

    def run(self, tasks):
        for n, outcome in enumerate(self.executor.run(tasks)):
            if n == 3:
                self.cluster.remove_node(self.node, allow_graceful=False)
            yield outcome
