"""A sweep: each run once, failures told and logged, dead workers and drivers made up for."""

import json
import os
import subprocess
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
from processes import CONTEXT
from sweep_runs import (
    assert_same,
    die_driving,
    noted,
    plan,
    run_and_always_die,
    run_and_die_twice,
    run_and_fail,
    run_one,
    run_slowly,
    run_with_threads,
    sweep,
)

from dynamics import open_run, open_study
from dynamics.traces import TraceError
from studies.lab.claim import claimed
from studies.lab.executors import open_executor
from studies.lab.executors.memory import available_bytes, has_room, resident_bytes
from studies.lab.executors.process import ProcessExecutor
from studies.lab.executors.serial import SerialExecutor
from studies.lab.sweep import content_of, run_id
from studies.lab.task import RETRIES, Task, run_task

TESTS = Path(__file__).parent


def files(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in paths]


@pytest.fixture(scope="module")
def serial(tmp_path_factory, deterministic_torch):
    """Eight runs, made one after the other."""
    out = tmp_path_factory.mktemp("serial") / "study"
    assert sweep(out, plan(seeds=4)).failures == []
    return out


def test_a_run_id_is_the_hash_of_the_configuration_and_of_nothing_else():
    (config,) = plan(ratios=[0.2], seeds=1)
    content = content_of("noise-ratio", config)
    assert run_id(content) == run_id(dict(reversed(content.items())))
    assert run_id({"b": [1], "a": "é"}) == "080db8b6e140"  # of {"a":"\u00e9","b":[1]}
    changed = {run_id(content | {"lr": 0.06}), run_id(content | {"study": "other"})}
    assert len({run_id(content), *changed}) == 3


def test_the_study_lists_its_runs_with_their_ids(serial):
    configs = plan(seeds=4)
    runs = open_study(serial).info["runs"]
    assert runs == {c.run_name: run_id(content_of("noise-ratio", c)) for c in configs}


def test_processes_make_the_same_runs_as_one_after_the_other(serial, tmp_path):
    assert sweep(tmp_path / "study", plan(seeds=4), executor=ProcessExecutor(2)).failures == []
    assert_same(serial, tmp_path / "study")


@pytest.mark.parametrize("executor", [SerialExecutor(), ProcessExecutor(2)])
def test_every_run_has_one_thread_and_the_caller_keeps_theirs(tmp_path, executor):
    torch.set_num_threads(2)
    try:
        sweep(tmp_path / "study", plan(seeds=1), run_with_threads, executor)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert noted(tmp_path / "study", "threads-1").total() == 2


def test_a_finished_run_is_not_sent_anywhere_again(serial):
    class NoExecutor:
        workers = 1

        def run(self, tasks):
            raise AssertionError(tasks)

    before = [files(path) for path in open_study(serial).folders()]
    assert sweep(serial, plan(seeds=4), executor=NoExecutor()).failures == []
    assert [files(path) for path in open_study(serial).folders()] == before


def test_a_changed_configuration_is_refused_before_anything_runs(tmp_path):
    out = tmp_path / "study"
    sweep(out, plan(ratios=[0.4], seeds=1))
    before = files(out)
    with pytest.raises(TraceError, match="another configuration"):
        sweep(out, plan(ratios=[0.2, 0.4], seeds=1, lr=0.3))
    assert files(out) == before


def test_two_runs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Two runs are called symmetric-0\.2-width8-seed0"):
        sweep(tmp_path / "study", [*plan(seeds=1), *plan(seeds=1, lr=0.3)])
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("executor", [SerialExecutor(), ProcessExecutor(2)])
def test_a_run_that_fails_is_listed_with_its_log_and_the_others_are_made(
    tmp_path, executor, capsys
):
    out = tmp_path / "study"
    result = sweep(out, plan(), run_and_fail, executor)
    assert {f.run for f in result.failures} == {
        "symmetric-0.2-width8-seed1",
        "symmetric-0.4-width8-seed1",
    }
    log = out / "sweep/symmetric-0.2-width8-seed1.log"
    assert str(log) in result.describe()
    assert result.describe().startswith("2 of 4 runs did not end:")
    assert "ZeroDivisionError: seed 1 is unlucky" in result.describe()
    assert "run_and_fail" in log.read_text()  # the traceback
    assert capsys.readouterr().err.count("seed 1 is unlucky") == 2
    assert [run.name for run in open_study(out).runs if run.ended_cleanly] == [
        "symmetric-0.2-width8-seed0",
        "symmetric-0.4-width8-seed0",
    ]
    assert (
        sweep(out, plan(), executor=executor).failures == []
    )  # mended, and the sweep called again


def test_a_run_that_returns_without_an_end_has_failed(tmp_path):
    (config,) = plan(ratios=[0.2], seeds=1)
    task = Task(tmp_path / "study" / config.run_name, config, lambda out, config: None)
    assert run_task(task).state == "failed"


def test_a_worker_that_always_dies_is_given_up_and_said_why(tmp_path):
    out = tmp_path / "study"
    result = sweep(out, plan(ratios=[0.4]), run_and_always_die, ProcessExecutor(2))
    (failure,) = result.failures
    assert failure.run == "symmetric-0.4-width8-seed1"
    assert failure.why == f"its process was killed by signal 9, {RETRIES + 1} times"
    log = (out / "sweep/symmetric-0.4-width8-seed1.log").read_text()
    assert log.count("killed by signal 9") == log.count("about to die") == RETRIES + 1
    assert open_run(out / "symmetric-0.4-width8-seed0").ended_cleanly


@pytest.mark.crash
@pytest.mark.slow
def test_a_worker_killed_twice_and_the_driver_once_cost_no_run_and_no_row(serial, tmp_path):
    """Eight runs. The driver dies after three, with two at work; a worker has died or dies too."""
    out = tmp_path / "study"
    driver = CONTEXT.Process(target=die_driving, args=[str(out)])
    driver.start()
    driver.join()
    assert driver.exitcode == -9
    ended = {run.name for run in open_study(out).runs if run.ended_cleanly}
    assert 3 <= len(ended) < 8
    before = {name: files(out / name) for name in ended}
    result = sweep(out, plan(seeds=4), run_and_die_twice, ProcessExecutor(2))
    assert result.failures == []
    assert noted(out, "died")["symmetric-0.4-width8-seed1"] >= 3  # two deaths, and what lived on
    assert {name: files(out / name) for name in ended} == before
    ends = {run.name: len([*(run.path / "end").iterdir()]) for run in open_study(out).runs}
    assert ends == dict.fromkeys(ends, 1)
    assert len(ends) == 8
    assert_same(serial, out)


@pytest.mark.crash
@pytest.mark.slow
def test_workers_die_with_their_driver(tmp_path):
    """Or an orphan would go on beside the next driver's workers, and nobody could stop it."""
    out = tmp_path / "study"
    os.mkfifo(tmp_path / "go")
    driver = CONTEXT.Process(
        target=sweep, args=(out, plan(seeds=1), run_slowly, ProcessExecutor(2))
    )
    driver.start()
    pids = _wait_for_pids(tmp_path / "notes", 2, driver)
    driver.kill()
    driver.join()
    for task_lock in sorted((out / "sweep").glob("symmetric*.lock")):
        with claimed(task_lock, wait=True):  # returns when the orphan is gone
            pass
    assert not [pid for pid in pids if resident_bytes(pid)]


def _wait_for_pids(notes, n, driver):
    while not (found := [*notes.glob("going-*")]) or len(found) < n:
        assert not wait([driver.sentinel], timeout=0.05), "the driver has ended"
    return [int(pid) for path in found for pid in path.read_text().split()]


@pytest.mark.crash
def test_two_drivers_at_once_make_each_run_once(serial, tmp_path):
    out = tmp_path / "study"
    drivers = [
        CONTEXT.Process(target=sweep, args=(out, configs, run_one))
        for configs in (plan(seeds=4), plan(seeds=4)[::-1])
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert [driver.exitcode for driver in drivers] == [0, 0]
    made = noted(out, "made")
    assert made == dict.fromkeys(made, 1)
    assert len(made) == 8
    assert_same(serial, out)


def test_a_claim_is_held_by_one_and_waited_for(tmp_path):
    path = tmp_path / "lock"
    with claimed(path) as first:
        assert first
        with claimed(path) as second:
            assert not second
        got = []

        def take():
            with claimed(path, wait=True) as third:
                got.append(third)

        waiter = threading.Thread(target=take)
        waiter.start()
        assert got == []
    waiter.join()
    assert got == [True]


def test_a_run_that_another_process_makes_is_waited_for(tmp_path):
    """Claimed elsewhere at first; then free and not made, so this sweep makes it."""
    out = tmp_path / "study"
    configs = plan(seeds=1)
    (out / "sweep").mkdir(parents=True)
    held = claimed(out / "sweep" / f"{configs[0].run_name}.lock")
    held.__enter__()
    rounds = []

    class Recording(SerialExecutor):
        def run(self, tasks):
            rounds.append([task.run for task in tasks])
            yield from super().run(tasks)
            if len(rounds) == 1:
                held.__exit__(None, None, None)

    assert sweep(out, configs, executor=Recording()).failures == []
    assert rounds == [[c.run_name for c in configs], [configs[0].run_name]]
    assert all(open_study(out).table()["ended_cleanly"])


def test_a_process_starts_only_where_there_is_memory_for_all_to_grow(monkeypatch, tmp_path):
    assert has_room(100, 50, [])
    assert has_room(100, 50, [0])
    assert not has_room(99, 50, [0])
    assert has_room(75, 50, [25])
    assert has_room(50, 50, [70])  # one that is past its peak needs no more
    assert not has_room(100, 50, [0, 0])
    assert available_bytes() > 0
    assert resident_bytes(os.getpid()) > 10_000_000
    assert resident_bytes(2**22 + 1) == 0
    monkeypatch.setattr("studies.lab.executors.process.available_bytes", lambda: 1000)
    at_once = []
    running = ProcessExecutor(4)
    for _ in running.run([Task(tmp_path / c.run_name, c, run_one) for c in plan(seeds=1)]):
        at_once.append(len(CONTEXT.active_children()))
    assert at_once == [0, 0]  # one at a time, for there is room for none more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "serial", "workers": 2}, "one run at a time"),
        ({"name": "process", "address": "auto"}, "that of a Ray cluster"),
    ],
)
def test_options_that_do_not_fit_are_explained(options, message):
    with pytest.raises(ValueError, match=message), open_executor(**options):
        pass


ALONE = """
import sys
from pathlib import Path
import studies.cli, studies.noise_ratio, studies.lab.executors.process
import studies.lab.executors.ray, studies.lab.executors.slurm
from sweep_runs import plan, sweep
from studies.lab.executors import open_executor
with open_executor("serial") as executor:
    assert sweep(Path(sys.argv[1]) / "study", plan(seeds=1), executor=executor).failures == []
assert not {"ray", "submitit"} & {*sys.modules}
for name in ("ray", "submitit"):
    sys.modules[name] = None  # as if it were not installed
for name in ("ray", "slurm"):
    try:
        with open_executor(name) as executor:
            sweep(Path(sys.argv[1]) / name, plan(seeds=1), executor=executor)
    except ValueError as error:
        print(error)
"""


def test_ray_and_submitit_are_imported_only_if_asked_for_and_the_error_names_the_extra(tmp_path):
    env = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    ray, slurm = done.stdout.splitlines()
    assert "pip install 'training-dynamics[ray]'" in ray
    assert "pip install 'training-dynamics[slurm]'" in slurm


def test_a_study_file_that_two_drivers_write_keeps_the_runs_of_both(tmp_path):
    out = tmp_path / "study"
    sweep(out, plan(ratios=[0.2], seeds=1))
    sweep(out, plan(ratios=[0.4], seeds=1))
    content = json.loads((out / "study.json").read_text())
    assert [*content["runs"]] == ["symmetric-0.2-width8-seed0", "symmetric-0.4-width8-seed0"]
    assert content["factors"]["ratio"] == [0.2, 0.4]
