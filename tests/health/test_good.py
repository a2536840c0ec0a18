"""The mark good is earned by steps in which nothing was in doubt, and cannot be had otherwise."""

from __future__ import annotations

import random

import pytest

from holdfast.errors import InvalidPolicy
from holdfast.health import Disk, GoodMarks, Judgement, Machine, Severity, Verdict, Watch, disk_low, nonfinite, when
from holdfast.policy import every

from .health_support import NAN, losses, seen


def judgement(step, severity=None, *, tested=True):
    verdicts = ()
    if severity is not None:
        verdicts = (Verdict(check="c", message="m", severity=severity, step=step, first=step, last=step),)
    return Judgement(step=step, verdicts=verdicts, tested=tested)


def earned(marks, judgements):
    return [step for one in judgements for step in marks.observed(one)]


def test_a_checkpoint_is_good_after_so_many_steps_and_only_once():
    marks = GoodMarks(good_after=5)
    marks.saved(10)
    assert [marks.observed(judgement(step)) for step in range(11, 18)] == [(), (), (), (), (10,), (), ()]


@pytest.mark.parametrize("severity", [Severity.DOUBT, Severity.BROKEN])
@pytest.mark.parametrize("at", [10, 11, 14])
def test_a_doubt_in_between_is_final(severity, at):
    marks = GoodMarks(good_after=5)
    marks.saved(10)
    assert earned(marks, [judgement(step, severity if step == at else None) for step in range(10, 100)]) == []


def test_a_warning_about_the_machine_withholds_nothing():
    marks = GoodMarks(good_after=5)
    marks.saved(10)
    assert earned(marks, [judgement(step, Severity.WARNING) for step in range(11, 20)]) == [10]


def test_a_checkpoint_with_a_nan_inside_is_never_good():
    marks = GoodMarks(good_after=5)
    marks.saved(10, finite=False)
    assert earned(marks, [judgement(step) for step in range(11, 200)]) == []


def test_steps_in_which_nobody_could_see_anything_prove_nothing():
    marks = GoodMarks(good_after=5)
    marks.saved(10)
    assert earned(marks, [judgement(step, tested=False) for step in range(11, 200)]) == []
    assert earned(marks, [judgement(200)]) == [10]


def test_a_commit_that_comes_late_does_not_hide_a_doubt():
    """Saved at 10, doubted at 12, committed when the training was at 15."""
    marks = GoodMarks(good_after=5)
    assert earned(marks, [judgement(step, Severity.DOUBT if step == 12 else None) for step in range(8, 16)]) == []
    marks.saved(10)
    marks.saved(13)
    assert earned(marks, [judgement(step) for step in range(16, 40)]) == [13]


def test_the_abandoned_timeline_gives_no_marks():
    marks = GoodMarks(good_after=5)
    marks.saved(10)
    earned(marks, [judgement(11), judgement(12, Severity.DOUBT)])
    marks.saved(12)
    marks.forget()
    marks.saved(11)
    assert earned(marks, [judgement(step) for step in range(6, 30)]) == [11]


def test_a_checkpoint_that_is_gone_is_not_marked():
    marks = GoodMarks(good_after=5)
    marks.saved(10)
    marks.dropped(10)
    marks.dropped(99)
    assert earned(marks, [judgement(step) for step in range(11, 30)]) == []


def test_no_history_marks_what_was_doubted():
    """Against a model: good exactly if nothing was in doubt from the save to the first test past the distance."""
    for seed in range(300):
        chance = random.Random(seed)
        after, length = chance.randint(1, 20), chance.randint(1, 120)
        saves = {step for step in range(1, length) if chance.random() < 0.2}
        doubts = {step for step in range(1, length) if chance.random() < 0.05}
        tests = {step for step in range(1, length) if chance.random() < 0.7} - doubts
        marks, found = GoodMarks(after), set()
        for step in range(1, length):
            if step in saves:
                marks.saved(step)
            severity = Severity.DOUBT if step in doubts else None
            found.update(marks.observed(judgement(step, severity, tested=step in tests)))
        expected = {save for save in saves if _is_good(save, after, length, doubts, tests)}
        assert found == expected, f"seed {seed}"


def _is_good(save, after, length, doubts, tests):
    for now in range(save + 1, length):
        if now in doubts:
            return False
        if now >= save + after and any(save < one <= now for one in tests):
            return save not in doubts
    return False


def test_with_the_real_watch_a_nan_withholds_the_mark():
    watch, marks = Watch([when(nonfinite("loss"))]), GoodMarks(good_after=3)
    marks.saved(2)
    values = [1.0, 1.0, 1.0, NAN, 1.0, 1.0, 1.0, 1.0, 1.0]
    found = []
    for observation in losses(values):
        if observation.step == 6:
            marks.saved(6)
        found += marks.observed(watch.judge(observation))
    assert found == [6]
    assert marks.observed(watch.judge(seen(10))) == ()


def test_a_disk_with_room_says_nothing_about_the_training():
    watch, marks = Watch([disk_low(every=every(steps=1))]), GoodMarks(good_after=3)
    marks.saved(2)
    room = Machine(disk=Disk(free_bytes=1 << 40))
    assert [marks.observed(watch.judge(seen(step, machine=room))) for step in range(3, 9)] == [()] * 6
    assert marks.observed(watch.judge(seen(9, machine=room, loss=1.0))) == (2,)


@pytest.mark.parametrize("after", [0, -1, 1.5, True, None])
def test_nonsense_is_refused(after):
    with pytest.raises(InvalidPolicy, match="good_after"):
        GoodMarks(after)
