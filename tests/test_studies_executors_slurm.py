"""Slurm's executor on submitit's local one: the same runs, the requeue signal, jobs that die."""

import os
import signal
import time
from pathlib import Path

import pytest
from sweep_runs import assert_same, noted, plan, run_and_fail, run_slowly, sweep

from dynamics import open_run
from studies.lab.executors import open_executor
from studies.lab.executors.slurm import RequeuedRun
from studies.lab.task import Task

submitit = pytest.importorskip("submitit")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Jobs import these tests."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here.parent}{os.pathsep}{here}")


def test_jobs_make_the_same_runs_and_a_failure_is_told(tmp_path):
    sweep(tmp_path / "serial", plan())
    out = tmp_path / "study"
    with open_executor("slurm", workers=2) as executor:
        (first, second) = sweep(out, plan(), run_and_fail, executor).failures
        assert {first.run, second.run} == {
            "symmetric-0.2-width8-seed1",
            "symmetric-0.4-width8-seed1",
        }
        assert "ZeroDivisionError" in first.why
        assert sweep(out, plan(), executor=executor).failures == []
    assert_same(tmp_path / "serial", out)


def test_a_job_that_is_preempted_goes_on_from_its_checkpoint_when_it_is_run_again(tmp_path):
    """The signal comes in the middle of a run; submitit runs the job again."""
    out = tmp_path / "study"
    (config,) = plan(ratios=[0.4], seeds=1)
    os.mkfifo(tmp_path / "go")
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=60)
    job = executor.submit(RequeuedRun(), Task(out / config.run_name, config, run_slowly))
    (pid,) = _wait_for_pids(out, 1, job)
    os.kill(pid, signal.SIGUSR2)
    while noted(out, "going")[config.run_name] < 2:
        assert job.state == "RUNNING"
        time.sleep(0.05)
    (tmp_path / "go").write_text("")
    assert job.result().state == "finished"
    first, second = _wait_for_pids(out, 2, job)
    assert first != second
    assert "Caught signal SIGUSR2" in job.stderr()
    sweep(tmp_path / "serial", [config])
    assert_same(tmp_path / "serial", _as_study(out, tmp_path))
    assert open_run(out / config.run_name).ended_cleanly


def _wait_for_pids(out, n, job):
    while noted(out, "going").total() < n:
        assert job.state == "RUNNING"
        time.sleep(0.05)
    (path,) = (out.parent / "notes").glob("going-*")
    return [int(pid) for pid in path.read_text().split()]


def _as_study(out, tmp_path):
    (out / "study.json").write_bytes((tmp_path / "serial/study.json").read_bytes())
    return out


def test_a_requeued_job_does_the_same_again(tmp_path):
    (config,) = plan(ratios=[0.4], seeds=1)
    task = Task(tmp_path / "study" / config.run_name, config, run_fail := run_and_fail)
    again = RequeuedRun().checkpoint(task)
    assert isinstance(again.function, RequeuedRun)
    assert again.args == (task,)
    assert run_fail is task.run_one
