"""`every(steps=k)` and `every(epochs=k)`."""

import pytest

from probes import Schedule, every


def test_steps():
    schedule = every(steps=3)
    assert [step for step in range(10) if schedule.due_at_step(step)] == [0, 3, 6, 9]
    assert not any(schedule.due_after_epoch(epoch) for epoch in range(-1, 10))
    assert str(schedule) == "every(steps=3)"


def test_epochs_begin_before_the_first():
    schedule = every(epochs=2)
    assert [epoch for epoch in range(-1, 8) if schedule.due_after_epoch(epoch)] == [-1, 1, 3, 5, 7]
    assert not any(schedule.due_at_step(step) for step in range(10))
    assert str(schedule) == "every(epochs=2)"
    assert [e for e in range(-1, 3) if every(epochs=1).due_after_epoch(e)] == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    "wrong",
    [{}, {"steps": 0}, {"epochs": -1}, {"steps": 2, "epochs": 2}, {"steps": 0, "epochs": 1}],
)
def test_exactly_one_of_the_two_is_given(wrong):
    with pytest.raises(ValueError, match=r"one of steps and epochs.*For example every\(steps=16\)"):
        every(**wrong)


def test_a_schedule_is_a_value():
    assert every(steps=2) == every(steps=2) == Schedule(steps=2)
    assert every(steps=2) != every(epochs=2)
    assert len({every(steps=2), every(steps=2)}) == 1
