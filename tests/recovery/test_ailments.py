"""What the journal tells of earlier remedies: budgets are never given back, and rollbacks are done again."""

from __future__ import annotations

from holdfast.records import Event
from holdfast.recovery.caring.ailments import Ailments, Gone, history_of


def event(kind, **data):
    return Event(time="2026-01-01T00:00:00Z", kind=kind, message="", data=data)


def gone(target, **data):
    return event("rollback", target=target, **data)


def test_of_several_accounts_of_a_budget_the_highest_counts():
    history = history_of(
        [
            event("remedy", spent={"actions": {"a": 2}}),
            event("rollback", spent={"actions": {"a": 1, "b": 1}, "targets": {"r": 1}}),
            event("notify", spent={"actions": {"c": 4}}),
            event("saved", spent={"actions": {"a": 9}}),
        ]
    )
    assert history.spent == {"actions": {"a": 2, "b": 1, "c": 4}, "targets": {"r": 1}}


def test_factors_of_rollbacks_to_one_record_multiply_and_what_they_left_out_adds_up():
    history = history_of(
        [gone("r", scale_lr=0.5, left_out=[[0, 1, 0, 2]]), gone("r", left_out=[[0, 0, 0, 4]]), gone("s", scale_lr=0.1)]
    )
    ailments = Ailments(history)
    ailments.add(Gone(target="r", scale_lr=0.5))
    assert ailments.scale_to("r") == 0.25
    assert [one.left_out for one in ailments.to("r")] == [[[0, 1, 0, 2]], [[0, 0, 0, 4]], []]
    assert ailments.scale_to("t") == 1.0
    assert ailments.to("t") == []


def test_what_cannot_be_understood_counts_as_not_done():
    history = history_of([event("rollback", left_out="x"), event("remedy", spent=3), event("rollback", target=1)])
    assert (history.spent, history.rollbacks) == ({}, [])


def test_a_rollback_that_does_not_say_in_which_batches_it_counts_is_understood():
    history = history_of([gone("r", left_out=[[0, 1, 0, 2]]), gone("s", left_out=[[0, 1, 0, 2]], unit=32)])
    assert [one.unit for one in history.rollbacks] == [0, 32]
