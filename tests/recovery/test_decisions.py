"""What ranks have said at a boundary, and what has become of it when they hear it at the next one."""

from __future__ import annotations

import pytest

from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.ranks.group import Alone
from holdfast.recovery.saving.triggers import Moment
from holdfast.recovery.stopping.decisions import Decisions


class OfTwo(Alone):
    """Rank 0 of two, whose other one has nothing to say."""

    size = 2


class Clock:
    """A policy of time, which only rank 0 asks; due at step 3."""

    def due(self, moment, metrics, *, by_step=None):
        return "the clock" if by_step is False and moment.step == 3 else None


@pytest.fixture
def decisions() -> Decisions:
    return Decisions(OfTwo(), StopRequests(), Clock())


@pytest.fixture
def at(decisions: Decisions):
    def at(step: int, *, forget: bool = False) -> str | None:
        if forget:
            decisions.forget()
        return decisions.due(Moment(step, 0, False), {}, 0)

    return at


def test_what_rank_0_wants_is_done_when_all_have_heard_of_it(at) -> None:
    assert [at(step) for step in (1, 2, 3, 4, 5)] == [None, None, None, "the clock", None]


def test_what_was_wished_for_before_a_rollback_is_not_done_after_it(at) -> None:
    """The word was on its way: a checkpoint that nobody had asked for was made right after the restore."""
    assert [at(step) for step in (1, 2, 3)] == [None] * 3
    assert [at(2, forget=True), at(3), at(4), at(5)] == [None, None, "the clock", None]


def test_what_is_wished_for_at_the_last_boundary_of_a_loop_is_said_again_in_the_next_one(at, decisions) -> None:
    """Never said again, it would have kept all that is wished for later from being said, too."""
    assert [at(step) for step in (1, 2, 3)] == [None] * 3
    decisions.end()
    assert [at(4), at(5), at(6)] == [None, "the clock", None]
    assert [at(3), at(4)] == [None, "the clock"]


def test_a_rank_that_can_train_no_more_still_makes_the_calls_that_all_make(decisions, monkeypatch) -> None:
    asked = []

    def gathered(group: Alone, mine: bytes, what: str) -> list[bytes]:
        asked.append(what)
        return [mine, mine]

    monkeypatch.setattr(OfTwo, "gathered", gathered)
    decisions.stop_here("a dead loader")
    assert decisions.stop_anywhere(lambda: float("-inf"))
    assert asked
    assert decisions.stop == "a dead loader"
