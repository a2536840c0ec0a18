from __future__ import annotations

import math

import pytest

from holdfast.catalog import layout
from holdfast.catalog.marks import NO_MARKS, add_mark, add_metrics, pin, read_marks, read_record_marks, unpin
from holdfast.catalog.objects import create_once
from holdfast.clock import utc_now
from holdfast.errors import BeingDeleted, Missing
from holdfast.ids import RecordId
from holdfast.records import MarkKind, Sweep


@pytest.fixture
def record(train):
    return train().save(100, metrics={"loss": 3.0})


def test_facts_that_come_later_have_a_home(store, record):
    """Hazards 36: good, verified, quarantined, notes and metrics come after the immutable record."""
    for kind in (MarkKind.GOOD, MarkKind.VERIFIED, MarkKind.QUARANTINED, MarkKind.FINAL):
        assert not getattr(read_record_marks(store, record.address), kind.value)
        add_mark(store, record.address, kind, by="saver")
        assert getattr(read_record_marks(store, record.address), kind.value)
    add_mark(store, record.address, MarkKind.NOTE, by="user", data={"text": "spike after this"})
    assert read_record_marks(store, record.address).notes == ["spike after this"]


def test_the_marks_of_a_run_are_grouped_by_record(store, train):
    trainer = train()
    first, second, third = (trainer.save(step) for step in (1, 2, 3))
    add_mark(store, first.address, MarkKind.GOOD, by="health")
    add_mark(store, second.address, MarkKind.VERIFIED, by="saver")
    marks = read_marks(store, trainer.run.number)
    assert marks[RecordId(first.id)].good
    assert not marks[RecordId(first.id)].verified
    assert marks[RecordId(second.id)].verified
    assert marks.get(RecordId(third.id), NO_MARKS) == NO_MARKS


def test_late_metrics_join_those_of_the_record(store, record):
    """Hazards 36: a metric logged at a step belongs to the record of that step only."""
    add_metrics(store, record.address, {"val_loss": math.nan, "acc": 0.5}, by="user")
    metrics = read_record_marks(store, record.address).metrics(record)
    assert metrics["loss"] == 3.0
    assert math.isnan(metrics["val_loss"])


def test_a_metric_that_is_measured_again_replaces_the_earlier_value(store, record):
    for value in (2.0, 1.0, 1.5):
        add_metrics(store, record.address, {"val_loss": value}, by="user")
    found = read_record_marks(store, record.address)
    assert found.metrics(record)["val_loss"] == 1.5
    assert len(found.measurements()) == 1


def test_a_pin_holds_until_it_is_lifted(store, record):
    pin(store, record.address, by="user", why="baseline")
    assert read_record_marks(store, record.address).pinned
    unpin(store, record.address, by="user")
    assert not read_record_marks(store, record.address).pinned
    pin(store, record.address, by="user")
    assert read_record_marks(store, record.address).pinned


def test_unpinning_what_is_not_pinned_writes_nothing(store, record):
    assert unpin(store, record.address, by="user") is None
    assert read_marks(store, record.address.run) == {}


def test_a_pin_that_was_made_beside_an_unpin_stays(store, record):
    """No clock decides: an unpin lifts the pins that it saw and no other."""
    pin(store, record.address, by="a")
    seen_by_b = [mark.attempt for mark in read_record_marks(store, record.address).pins]
    pin(store, record.address, by="c")
    add_mark(store, record.address, MarkKind.UNPINNED, by="b", data={"lifts": seen_by_b})
    assert [mark.by for mark in read_record_marks(store, record.address).pins] == ["c"]


def test_a_damaged_mark_is_said_and_read_on_the_safe_side(store, record, damage):
    for kind in (MarkKind.PINNED, MarkKind.QUARANTINED, MarkKind.GOOD, MarkKind.VERIFIED):
        mark = add_mark(store, record.address, kind, by="user")
        damage(store, layout.mark(record.address, kind, mark.attempt))
    found = read_record_marks(store, record.address)
    assert found.pinned
    assert found.quarantined
    assert not found.good
    assert not found.verified
    assert len(found.damaged) == 4
    again = read_marks(store, record.address.run)[RecordId(record.id)]
    assert [one.name for one in again.damaged] == [one.name for one in found.damaged]


def test_a_damaged_pin_can_be_lifted(store, record, damage):
    mark = pin(store, record.address, by="user")
    damage(store, layout.mark(record.address, MarkKind.PINNED, mark.attempt))
    unpin(store, record.address, by="user")
    assert not read_record_marks(store, record.address).pinned


def test_a_record_that_is_gone_gets_no_marks(store, record):
    store.storage.delete([record.name])
    with pytest.raises(Missing):
        add_mark(store, record.address, MarkKind.GOOD, by="health")


def test_a_record_that_a_sweep_has_announced_cannot_be_pinned(store, record):
    """Hazards 4: pins use the two-sided pattern."""
    sweep = Sweep(id="a1", created=utc_now(), owner=store.owner, objects=[str(record.name)])
    create_once(store.storage, layout.sweep("a1"), sweep)
    with pytest.raises(BeingDeleted):
        pin(store, record.address, by="user")
    assert not read_record_marks(store, record.address).pinned


@pytest.mark.parametrize("clock", ["2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "2025-12-31T00:00:00Z"])
def test_late_metrics_win_in_the_order_of_writing_whatever_the_clock_says(store, record, monkeypatch, clock):
    """Measured in one second, or on hosts whose clocks disagree: a mark replaces all that its writer saw."""
    monkeypatch.setattr("holdfast.catalog.marks.utc_now", lambda: "2026-01-01T00:00:00Z")
    add_metrics(store, record.address, {"a": 1, "b": 2}, by="log")
    add_metrics(store, record.address, {"c": 3}, by="log")
    monkeypatch.setattr("holdfast.catalog.marks.utc_now", lambda: clock)
    newest = add_metrics(store, record.address, {"a": 5}, by="log")
    found = read_record_marks(store, record.address)
    assert found.measurements() == [newest]
    assert {"a": 5, "b": 2, "c": 3}.items() <= found.metrics(record).items()
