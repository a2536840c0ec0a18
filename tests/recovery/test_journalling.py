from __future__ import annotations

import pytest

from holdfast.catalog.journal.events import Ending, Exit, Progress, read_event
from holdfast.recovery.steps.journalling import PROGRESS_SECONDS, StepNotes

PLACE = {"timeline": 1, "step": 40, "step_seconds": 8.0}


class Taken:
    """A journal in memory, and a clock that is set by hand."""

    def __init__(self, rank: int = 0, began: float = 100.0) -> None:
        self.now, self.events = 100.0, []
        self.notes = StepNotes(self.take, launch=3, rank=rank, began=began, clock=lambda: self.now)

    def take(self, kind, message, /, **data) -> None:
        self.events.append(read_event(kind, data))


def test_progress_is_noted_no_more_often_than_the_journal_is_written():
    taken = Taken()
    for _ in range(1000):
        taken.now += PROGRESS_SECONDS / 100
        taken.notes.reached(**PLACE)
    assert 9 <= len(taken.events) <= 10
    assert taken.events[0] == Progress(launch=3, **PLACE)


def test_a_timeline_that_is_left_is_noted_at_once():
    taken = Taken()
    taken.notes.left(**PLACE)
    assert taken.events == [Progress(launch=3, left=True, **PLACE)]


@pytest.mark.parametrize("how", ["completed", "preempted", "failed", "left"])
def test_the_end_says_how_and_after_which_time(how):
    taken = Taken()
    taken.now += 12.0
    taken.notes.ended(how, **PLACE)
    assert taken.events == [Exit(launch=3, how=Ending(how), wall_seconds=12.0, **PLACE)]


def test_a_launch_lasts_from_the_time_at_which_it_was_claimed():
    """It may have waited for the saver of the one before it since then, for a minute."""
    taken = Taken(began=40.0)
    taken.now += 12.0
    taken.notes.ended("left", **PLACE)
    assert taken.events[0].wall_seconds == 72.0


def test_of_several_ranks_one_notes_the_steps_and_each_its_own_error():
    taken = Taken(rank=1)
    taken.now += 10 * PROGRESS_SECONDS
    taken.notes.reached(**PLACE)
    taken.notes.left(**PLACE)
    taken.notes.ended("failed", **PLACE)
    assert taken.events == []
    taken.notes.ended("failed", **PLACE, error=ValueError("nan"))
    assert (taken.events[0].rank, taken.events[0].error) == (1, "ValueError: nan")


def test_an_end_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="exploded"):
        Taken().notes.ended("exploded", **PLACE)
