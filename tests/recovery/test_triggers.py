"""What policies are told at a boundary: steps, clocks, and what the run has learned about its saves and failures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from policies_kit import Listening

from holdfast.catalog.journal.events import exit_event
from holdfast.catalog.journal.journal import JournalWriter
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.objects import create_once
from holdfast.catalog.store import open_store
from holdfast.errors import StorageUnavailable
from holdfast.ids import Order, RecordId
from holdfast.policy import SaveFacts, auto, every
from holdfast.policy.base import Policy
from holdfast.records import Kind, Owner, Record, Sizes, Timing
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.saving.triggers import Moment, Trigger

OWNER = Owner(host="h", boot="b", pid=1, started="1")


@pytest.fixture
def place(tmp_path):
    """A session on a run whose first launch was killed after two saves."""
    store = open_store(tmp_path, create=True)
    run = store.create_run("r")
    first = begin_launch(run, deadline=0)
    first.record_start(0, None, "test")
    for step in (5, 9):
        put(store, run, first.number, step, stall=float(step))
    return SimpleNamespace(store=store, run=run, launch=begin_launch(run, deadline=0), timeline=0)


def put(store, run, launch: int, step: int, *, stall: float, kind=Kind.REGULAR) -> Record:
    order = Order(launch, 0, step)
    record = Record(
        id=str(RecordId.derive(store.info.id, run.number, order)),
        run=int(run.number),
        **order._asdict(),
        parent=None,
        created="2026-01-01T00:00:00Z",
        kind=kind,
        reason="test",
        manifest="00" * 32,
        tensors=0,
        bytes=Sizes(logical=0, new=0, stored=0),
        timing=Timing(stall=stall, staging=0, hashing=0, writing=0, durable=2 * stall),
        codec="raw",
        owner=OWNER,
        attempt="00",
    )
    create_once(store.storage, record.name, record)
    return record


def heard(after: Afterwards, policy: Policy) -> SaveFacts:
    listening = Listening()
    trigger = Trigger(listening | policy, after)
    trigger.satisfied(10, 0)
    trigger.due(Moment(12, 0, False), {})
    return listening.heard[-1]


def test_auto_is_told_what_earlier_launches_have_learned(place):
    facts = heard(Afterwards(place), auto())
    assert (facts.steps_since_save, facts.failures) == (2, 1)
    assert (facts.save_seconds, facts.durable_seconds) == (7.0, 14.0)


def test_auto_is_told_what_the_saves_of_this_launch_cost(place):
    after = Afterwards(place)
    heard(after, auto())
    after.committed(put(place.store, place.run, 2, 20, stall=100.0))
    assert heard(after, auto()).save_seconds == 9.0
    assert after.saved_metrics(every(steps=1)) == {}


def test_a_save_of_this_launch_is_not_counted_twice_when_the_past_is_read_late(place):
    after = Afterwards(place)
    after.committed(put(place.store, place.run, 2, 20, stall=100.0))
    assert heard(after, auto()).save_seconds == 9.0


@pytest.mark.parametrize(("how", "failures"), [("left", 0), ("preempted", 0), ("completed", 0), ("failed", 1)])
def test_a_launch_that_ended_on_purpose_is_no_failure_to_auto(place, how, failures):
    """Its own last words tell, where its last checkpoint does not."""
    with JournalWriter(place.store, place.run.number, "host-7-1") as journal:
        line = exit_event(launch=1, timeline=0, step=9, step_seconds=1.0, how=how, wall_seconds=2.0)
        journal.add(line.kind, line.message, **line.data)
    assert heard(Afterwards(place), auto()).failures == failures


def test_a_restore_within_the_launch_is_one_more_failure(place):
    after = Afterwards(place)
    assert heard(after, auto()).failures == 1
    place.launch.record_start(0, None, "test")
    record = put(place.store, place.run, 2, 20, stall=1.0)
    place.timeline = 1
    after.resumed(record)
    assert heard(after, auto()).failures == 2


def test_the_time_of_this_launch_counts_as_it_passes(place):
    after = Afterwards(place)
    before = heard(after, auto()).observed_seconds
    after._began -= 3600.0
    assert heard(after, auto()).observed_seconds - before == pytest.approx(3600.0, abs=60.0)


def test_other_policies_cost_no_look_into_the_store(place, monkeypatch):
    monkeypatch.setattr(Afterwards, "_read_experience", lambda self: pytest.fail("the store was read"))
    assert heard(Afterwards(place), every(steps=5)).save_seconds is None


def test_a_store_that_cannot_be_read_right_now_does_not_end_the_training(place, monkeypatch, caplog):
    def fail(self):
        raise StorageUnavailable("the mount is away")

    monkeypatch.setattr(type(place.run), "starts", fail)
    assert heard(Afterwards(place), auto()).failures == 0
    assert "the mount is away" in caplog.text
