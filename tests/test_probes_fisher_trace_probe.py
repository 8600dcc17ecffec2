"""The probe in a run: what stands in the trace, when, and the diagonals beside it."""

import numpy as np
import pytest
import torch
from cases import N, build
from reference import score_squares
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from dynamics import open_run
from dynamics.traces import CorruptTraceError, TraceError
from dynamics.traces.vectors import list_vectors
from probes import FisherTrace, Recorder, UnsupportedModelError, every, fisher_trace
from probes.probe import Scalar, Vector

BLOCKS = ["0", "1", "3"]
KINDS = ("exact", "mc", "batch", "empirical")


def train(out, probes, n_epochs=None, n_steps=4, case=None, **kwargs):
    """Train for some epochs, or for some steps without epochs."""
    case = case or build("layer_norm")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    with Recorder(out, case.model, probes, **kwargs) as recorder:
        for _ in [None] if n_epochs is None else recorder.epochs(n_epochs):
            for _ in range(n_steps):
                losses = case.losses()
                recorder.observe(losses, torch.arange(N), labels=case.y)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    return case


def probe(kind="mc", when=None, **kwargs):
    case = build("layer_norm")
    return FisherTrace(when, data=TensorDataset(case.x, case.y), kind=kind, **kwargs)


def names(kind):
    """Scalars of a kind, and whether each stands for the blocks, the total or both."""
    if kind == "empirical":
        several = ("empirical_fisher_trace", "gradient_noise_scale", "gradient_snr")
        return {name: ["total", *BLOCKS] for name in several}
    found = {"fisher_trace": ["total", *BLOCKS], "fisher_share": BLOCKS}
    found["weight_norm_sq"] = ["total", *BLOCKS]
    if kind != "batch":
        found["scale_free_fisher_trace"] = ["total", *BLOCKS]
    if kind != "exact":
        found["fisher_draw_stderr"] = ["total"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_say_what_they_are(kind, tmp_path):
    train(tmp_path / "run", [probe(kind, target_stderr=None)], n_epochs=3)
    rows = open_run(tmp_path / "run").scalars()
    for epoch, step in ((-1, 0), (0, 4), (1, 8), (2, 12)):
        found = rows[(rows["epoch"] == epoch) & (rows["step"] == step)]
        assert found.groupby("name")["block"].apply(sorted).to_dict() == {
            name: sorted(blocks) for name, blocks in names(kind).items()
        }
    assert len(rows) == 4 * sum(map(len, names(kind).values()))
    measured = rows[rows["name"] != "weight_norm_sq"]
    assert set(measured["estimator"]) == {kind}
    assert set(measured["label_source"]) == {"data" if kind == "empirical" else "model"}
    assert set(measured["mode"]) == {"eval"}
    drawn = measured["name"] == "fisher_draw_stderr"
    assert set(measured[~drawn]["n"]) == {N}
    assert set(measured[drawn]["n"]) == {"mc": {1024}, "batch": {2 * N}}.get(kind, set())
    assert (
        rows[rows["name"] == "weight_norm_sq"][["stderr", "n", "estimator"]].isna().to_numpy().all()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_add_up_to_the_total_and_shares_to_one(kind, tmp_path):
    train(tmp_path / "run", [probe(kind)], n_epochs=2)
    rows = open_run(tmp_path / "run").scalars()
    for name in set(rows["name"]) & {
        "fisher_trace",
        "empirical_fisher_trace",
        "scale_free_fisher_trace",
        "weight_norm_sq",
    }:
        one = rows[rows["name"] == name].pivot(index="epoch", columns="block", values="value")
        np.testing.assert_allclose(one[BLOCKS].sum(axis=1), one["total"], rtol=1e-12)
        assert (one > 0).to_numpy().all()
    shares = rows[rows["name"] == "fisher_share"].groupby("epoch")["value"].sum()
    np.testing.assert_allclose(shares, 1.0, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_holds_what_the_function_returns(kind, tmp_path):
    case = train(tmp_path / "run", [probe(kind, seed=3, draws=8)], n_epochs=1)
    expected = fisher_trace(case.model, (case.x, case.y), kind=kind, seed=3_000_009 + 4, draws=8)
    rows = open_run(tmp_path / "run").scalars()
    rows = rows[rows["epoch"] == 0].set_index(["name", "block"])
    prefix = "empirical_" if kind == "empirical" else ""
    for block, part in {"total": expected, **expected.blocks}.items():
        found = rows.loc[(f"{prefix}fisher_trace", block)]
        assert (found["value"], found["stderr"]) == (part.value, part.stderr)
        if kind == "empirical":
            continue
        assert rows.loc[("weight_norm_sq", block), "value"] == part.weight_norm_sq
        if kind != "batch":
            found = rows.loc[("scale_free_fisher_trace", block)]
            assert (found["value"], found["stderr"]) == (part.scale_free, part.scale_free_stderr)
        if block != "total":
            found = rows.loc[("fisher_share", block)]
            assert (found["value"], found["stderr"]) == (part.share, part.share_stderr)
    if kind in ("mc", "batch"):
        found = rows.loc[("fisher_draw_stderr", "total")]
        assert (found["value"], found["n"]) == (expected.draw_stderr, 8)


def test_every_k_epochs_and_every_k_steps(tmp_path):
    train(tmp_path / "epochs", [probe(when=every(epochs=2))], n_epochs=4)
    assert sorted(open_run(tmp_path / "epochs").scalars()["epoch"].unique()) == [-1, 1, 3]
    train(tmp_path / "steps", [probe(when=every(steps=3))], n_steps=8)
    rows = open_run(tmp_path / "steps").scalars()
    assert sorted(rows["step"].unique()) == [0, 3, 6]
    assert (rows["epoch"] == 0).all()
    assert not rows.duplicated(["step", "name", "block"]).any()


def test_measurements_draw_anew():
    case = build("mlp")
    watcher = FisherTrace(every(steps=1), data=case.x, draws=8)
    values = [next(iter(watcher.measure(case.model, step=s, epoch=0))).value for s in (0, 1, 1)]
    assert values[0] != values[1] == values[2]


@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
def test_later_measurements_are_those_of_a_new_probe(kind):
    """The engine is kept, also over freezing and unfreezing; nothing of it shows in the values."""
    case = build("layer_norm")
    kept = probe(kind, target_stderr=None, diagonal=every(epochs=2))
    kept.attach(case.model)
    first = kept._engine
    for epoch, frozen in enumerate((None, None, "0.weight", "0.weight", None)):
        for name, parameter in case.model.named_parameters():
            parameter.requires_grad_(name != frozen)
        ours = kept.measure(case.model, step=epoch, epoch=epoch)
        new = probe(kind, target_stderr=None, diagonal=every(epochs=2))
        theirs = new.measure(case.model, step=epoch, epoch=epoch)
        assert [f for f in ours if isinstance(f, Scalar)] == [
            f for f in theirs if isinstance(f, Scalar)
        ]
        diagonals = [[f.values for f in found if isinstance(f, Vector)] for found in (ours, theirs)]
        assert len(diagonals[0]) == len(diagonals[1]) == (epoch % 2)
        for mine, other in zip(*diagonals, strict=True):
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert kept._engine is first
    kept.detach()
    assert kept._engine is None


def test_a_model_without_rules_is_refused_before_training(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4, track_running_stats=False)
    )
    data = torch.randn(8, 5)
    with (
        pytest.raises(UnsupportedModelError, match=r"`1` \(BatchNorm1d\).*mixes the samples"),
        Recorder(tmp_path / "run", model, [FisherTrace(every(epochs=5), data=data)]),
    ):
        pass


def test_a_target_that_was_missed_is_an_event(tmp_path):
    train(tmp_path / "run", [probe(draws=8, target_stderr=1e-6)], n_epochs=1)
    events = open_run(tmp_path / "run").events()
    missed = events[events["name"] == "target_stderr_missed"]
    assert missed["epoch"].tolist() == [-1, 0]
    assert set(missed["subject"]) == {"fisher_trace"}
    assert (
        missed["detail"]
        .str.fullmatch(r"relative standard error [\d.e-]+ after 8 draws, where 1e-06 was asked for")
        .all()
    )
    train(tmp_path / "met", [probe(target_stderr=0.5)], n_epochs=1)
    assert "target_stderr_missed" not in set(open_run(tmp_path / "met").events()["name"])


def test_the_run_says_how_it_was_measured(tmp_path):
    watcher = probe(likelihood="softmax", seed=7, diagonal=every(epochs=2), target_stderr=0.1)
    train(tmp_path / "run", [watcher], n_epochs=1)
    (described,) = open_run(tmp_path / "run").info["probes"]
    assert described == {
        "probe": "FisherTrace",
        "when": "every(epochs=1)",
        "kind": "mc",
        "likelihood": "softmax",
        "target_stderr": 0.1,
        "draws": None,
        "n": N,
        "seed": 7,
        "diagonal": "every(epochs=2)",
    }


# Diagonals


def test_diagonals_sum_to_the_trace(tmp_path):
    case = train(tmp_path / "run", [probe(diagonal=every(epochs=2))], n_epochs=4)
    run = open_run(tmp_path / "run")
    assert run.vectors().to_numpy().tolist() == [
        ["fisher_diagonal", 0, -1],
        ["fisher_diagonal", 8, 1],
        ["fisher_diagonal", 16, 3],
    ]
    totals = run.scalars("fisher_trace").query("block == 'total'").set_index("epoch")["value"]
    shapes = {name: tuple(p.shape) for name, p in case.model.named_parameters()}
    for epoch in (-1, 1, 3):
        diagonal = run.vector("fisher_diagonal", epoch=epoch)
        assert {name: values.shape for name, values in diagonal.items()} == shapes
        assert list(diagonal) == list(shapes)
        assert sum(v.sum() for v in diagonal.values()) == pytest.approx(totals[epoch], rel=1e-5)
    last = run.vector("fisher_diagonal")
    np.testing.assert_array_equal(last["0.weight"], diagonal["0.weight"])


def test_the_empirical_diagonal_has_a_name_of_its_own(tmp_path):
    case = train(tmp_path / "run", [probe("empirical", diagonal=every(epochs=1))], n_epochs=1)
    run = open_run(tmp_path / "run")
    assert set(run.vectors()["name"]) == {"empirical_fisher_diagonal"}
    expected = score_squares(
        case.model, case.x, case.y, lambda z, y: -F.cross_entropy(z, y, reduction="none")
    )
    for name, values in run.vector("empirical_fisher_diagonal", epoch=0).items():
        np.testing.assert_allclose(values, expected[name].mean(0), rtol=1e-4, atol=1e-9)
    snr = run.scalars("parameter_snr")
    assert snr["epoch"].tolist() == [-1, 0]
    assert (snr["value"] > 0).all()


def test_a_vector_that_is_not_there(tmp_path):
    train(tmp_path / "run", [probe(diagonal=every(epochs=2))], n_epochs=2)
    run = open_run(tmp_path / "run")
    with pytest.raises(
        TraceError, match=r"'diagonal'; it has fisher_diagonal of epoch -1, fisher_diagonal of ep"
    ):
        run.vector("diagonal")
    with pytest.raises(TraceError, match=r"'fisher_diagonal' of epoch 0; it has .*of epoch 1\."):
        run.vector("fisher_diagonal", epoch=0)
    train(tmp_path / "none", [probe()], n_epochs=1)
    with pytest.raises(TraceError, match=r"it has none at all\. Record it with FisherTrace"):
        open_run(tmp_path / "none").vector("fisher_diagonal")
    assert open_run(tmp_path / "none").vectors().empty


def test_a_resumed_run_hides_the_vectors_that_it_repeats(tmp_path):
    out, case = tmp_path / "run", build("layer_norm")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)

    def go_on(recorder, epochs):
        for epoch in epochs:
            losses = case.losses()
            recorder.observe(losses, torch.arange(N), labels=case.y)
            losses.mean().backward()
            optimizer.step()
            if epoch == 0:
                yield recorder.state_dict()

    watcher = probe(diagonal=every(epochs=1))
    with Recorder(out, case.model, [watcher]) as recorder:
        (state,) = go_on(recorder, recorder.epochs(3))
    before = open_run(out).vector("fisher_diagonal", epoch=1)
    assert open_run(out).vectors()["epoch"].tolist() == [-1, 0, 1, 2]
    with Recorder(out, case.model, [watcher], resume=True) as recorder:
        recorder.load_state_dict(state)
        list(go_on(recorder, recorder.epochs(2, start=1)))
    run = open_run(out)
    epochs = run.vectors()["epoch"].tolist()
    assert epochs == [-1, 0, 1]  # the last of the second attempt, which ended after it
    assert len(list_vectors(out)) == 5  # nothing is deleted
    with pytest.raises(TraceError, match="epoch 2; it has"):
        run.vector("fisher_diagonal", epoch=2)
    totals = run.scalars("fisher_trace").query("block == 'total'").set_index("epoch")["value"]
    assert totals.index.tolist() == epochs
    last = run.vector("fisher_diagonal", epoch=1)
    assert sum(v.sum() for v in last.values()) == pytest.approx(totals[1], rel=1e-5)
    assert not np.array_equal(last["0.weight"], before["0.weight"])


def test_a_damaged_vector_is_named_and_the_rest_is_read(tmp_path):
    train(tmp_path / "run", [probe(diagonal=every(epochs=1))], n_epochs=1)
    damaged = next((tmp_path / "run" / "vectors").glob("rank-*/*-epoch0-*.parquet"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    run = open_run(tmp_path / "run")
    with pytest.raises(CorruptTraceError, match=damaged.name):
        run.vector("fisher_diagonal", epoch=0)
    assert len(run.vector("fisher_diagonal", epoch=-1)) == 6
    assert len(run.scalars()) > 0
