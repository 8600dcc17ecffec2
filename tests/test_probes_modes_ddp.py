"""DDP and FSDP with two processes: each sample once an epoch, values as in one, in float64."""

import pytest
from ddp_modes import WRAPPERS, judge_one
from modes import PROBES
from test_probes_modes import COMMITTED

QUICK = {(WRAPPERS[0], "GradNorm"), (WRAPPERS[1], "SampleLoss"), (WRAPPERS[1], "FisherTrace")}
ALL = [
    pytest.param(kind, probe, marks=[] if (kind, probe) in QUICK else [pytest.mark.slow])
    for kind in WRAPPERS
    for probe in PROBES
]


@pytest.mark.ddp
@pytest.mark.parametrize(("kind", "probe"), ALL)
def test_padded_and_accumulated_it_is_what_one_process_finds(kind, probe, fast_path):
    """Rows are compared key by key, so that a sample missing or twice fails too."""
    codes, row = judge_one(kind, probe, fast_path / "two")
    committed = COMMITTED[kind, probe]
    assert codes == [0, 0]
    assert (row["kind"], row["reason"]) == (committed["kind"], committed["reason"])
    assert row["error"] is None or row["error"] < 1e-5
