"""Suspects are shown with their pictures, if and only if these are the pictures trained on."""

import re

import numpy as np
import pytest
from recorded import N, info, labels, roster, sample_batches, write_run

from dynamics.datasets import open_dataset
from reports import write_report
from reports.sample_tables import N_SUSPECTS


@pytest.fixture
def with_data(tmp_path):
    """A run, and the file with its data set."""
    rng = np.random.default_rng(0)
    given, true = labels()
    arrays = {"x_train": rng.integers(0, 256, (N, 6, 6), dtype=np.uint8), "y_train": true}
    arrays |= {"x_test": arrays["x_train"][:3], "y_test": true[:3]}
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    about = info(data={"source": str(path), "sha256": open_dataset(path).fingerprint()})
    tables = {"samples": sample_batches(given, true), "roster": roster(given, true)}
    return write_run(tmp_path / "run", tables, about=about), path, arrays


def pictures(run, tmp_path, **kwargs):
    html = write_report(run, tmp_path / "report.html", **kwargs).read_text(encoding="utf-8")
    table = html[html.index("<table") : html.index("</table>")]
    return len(re.findall(r'<img src="data:image/png;base64,[^"]+" alt="sample \d+">', table)), html


def test_suspects_have_pictures_when_the_data_set_is_there_unchanged(with_data, tmp_path):
    run, path, _ = with_data
    count, html = pictures(run, tmp_path)
    assert count == N_SUSPECTS
    assert "--data" not in html
    path.rename(tmp_path / "moved.npz")
    count, html = pictures(run, tmp_path)
    assert count == 0
    assert "dynamics report RUN --data PATH" in html
    assert pictures(run, tmp_path, data=tmp_path / "moved.npz")[0] == N_SUSPECTS


@pytest.mark.parametrize("change", ["pixel", "label", "damaged", "npy"])
def test_suspects_are_ids_when_the_data_set_has_changed(with_data, tmp_path, change):
    run, path, arrays = with_data
    if change in {"pixel", "label"}:
        arrays["x_train" if change == "pixel" else "y_train"][5] += 1
        np.savez(path, **arrays)
    elif change == "damaged":
        path.write_bytes(path.read_bytes()[:200])
    else:
        np.save(path.with_suffix(".npy"), arrays["y_train"])
        path.with_suffix(".npy").rename(path)
    count, html = pictures(run, tmp_path)
    assert count == 0
    assert "--data" in html


def test_another_data_set_is_refused(with_data, tmp_path):
    run, _, _ = with_data
    with pytest.raises(ValueError, match="not the data set"):
        write_report(run, tmp_path / "report.html", data="digits")
    assert not (tmp_path / "report.html").exists()


def test_a_data_set_with_too_few_images_is_refused_also_without_fingerprint(with_data, tmp_path):
    run, path, arrays = with_data
    run.info["data"] = {}
    small = {k: v[:20] for k, v in arrays.items()}
    np.savez(path, **small)
    with pytest.raises(ValueError, match=f"20 training images, but the run has sample {N - 1}"):
        write_report(run, tmp_path / "report.html", data=path)
