"""The golden runs of schema version 1.0 load for ever, with these values; never make them anew."""

from pathlib import Path

import numpy as np
import pytest

from dynamics import open_run
from dynamics.traces.verification.verify import verify

GOLDEN = Path(__file__).parent / "data" / "golden-1.0"
PADDED = [(0, 0), (1, 0)]  # (epoch, sample) that the second rank saw as well


@pytest.fixture(params=["recorded", "compacted"])
def run(request):
    return open_run(GOLDEN / request.param)


def test_every_sample_of_every_epoch_has_the_loss_it_was_given(run):
    rows = run.samples()
    expected = [10.0 * e + i + (0.25 if e > 1 else 0) for e in range(4) for i in range(5)]
    expected[8] = np.nan  # epoch 1, sample 3
    assert rows["sample_id"].tolist() == 4 * [0, 1, 2, 3, 4]
    assert rows["epoch"].tolist() == np.repeat([0, 1, 2, 3], 5).tolist()
    np.testing.assert_array_equal(rows["loss"], expected)
    assert rows["status"].tolist() == [0] * 8 + [1] + [0] * 11


def test_the_other_columns(run):
    rows = run.samples()
    ids = rows["sample_id"]
    assert rows["step"].tolist() == [2 * e + (i > 2) for e in range(4) for i in range(5)]
    assert (rows["weight"] == 1).all()
    assert (rows["margin"] == ids - 2).all()
    assert (rows["p_true"] == ids / 8).all()
    assert (rows["el2n"] == 1 - ids / 8).all()
    assert (rows["predicted"] == ids % 3).all()
    assert (rows["correct"] == (ids != 4)).all()
    assert (rows["grad_norm"] == ids / 2).all()
    assert (rows["output_grad_norm"] == 1 - ids / 8).all()
    assert rows["grad_norm_stderr"].isna().all()
    block = rows["grad_norm/0"]
    assert block[:10].isna().all()
    assert (block[10:] == ids[10:] / 4).all()


def test_padding_is_a_repeat(run):
    rows = run.samples(repeats=True)
    again = rows[rows["occurrence"] == 1]
    assert list(zip(again["epoch"], again["sample_id"], strict=True)) == PADDED
    assert again["status"].tolist() == [32, 32]
    assert again["step"].tolist() == [1, 3]
    assert len(rows) == 22


def test_the_small_tables(run):
    scalars = run.scalars("fisher_trace")
    assert scalars["step"].tolist() == [2, 4, 6, 8]
    assert scalars["value"].tolist() == [1.5, 2.5, 3.5, 4.5]
    assert scalars.drop(columns=["step", "epoch", "value"]).drop_duplicates().to_dict("list") == {
        "name": ["fisher_trace"],
        "block": ["total"],
        "stderr": [0.25],
        "n": [100],
        "estimator": ["mc"],
        "label_source": ["model"],
        "mode": ["eval"],
    }
    events = run.events()
    assert events["name"].tolist() == ["epoch_end", "non_finite"] + 3 * ["epoch_end"]
    assert events["detail"].tolist()[3:] == ["attempt 1", "attempt 1"]
    assert run.roster().to_dict("list") == {
        "label": [0, 1, 2, 0, 1],
        "true_label": [0, 1, 2, 0, 2],
        "group": [0, 0, 0, 1, 1],
    }


def test_the_vector(run):
    assert run.vectors().to_dict("list") == {"name": ["fisher_diagonal"], "step": [6], "epoch": [2]}
    diagonal = run.vector("fisher_diagonal")
    np.testing.assert_array_equal(diagonal["0.weight"], np.full((2, 2), 3.0))
    np.testing.assert_array_equal(diagonal["0.bias"], [0.5, np.nan])


def test_the_run_itself(run):
    assert run.info["schema_version"] == "1.0"
    assert run.config == {"lr": 0.5}
    assert run.ended_cleanly
    assert [(a.from_step, a.from_epoch, a.world_size) for a in run.attempts] == [
        (0, 0, 2),
        (4, 2, 1),
    ]
    assert verify(run.path).empty


def test_the_golden_runs_are_small():
    assert sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file()) < 100_000
