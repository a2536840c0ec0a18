"""Readers hold what they read."""

from __future__ import annotations

from errno import EROFS

import pytest

from holdfast.catalog import layout
from holdfast.catalog.holds import find_holds
from holdfast.catalog.readers import reading
from holdfast.catalog.store import existing_store
from holdfast.errors import BeingDeleted, Missing, StorageError, StorageReadOnly
from holdfast.ids import Order, RecordAddress, RecordId
from holdfast.records import Sweep
from holdfast.seals import seal


def holds(run) -> list[set[str]]:
    return [{target.id for target in found.hold.reads} for found in find_holds(run.store, run.number)]


def test_while_reading_there_is_a_hold_and_afterwards_there_is_none(train):
    trainer = train()
    first, second = trainer.save(1), trainer.save(2)
    with reading(trainer.run.store, [first.address, second.address]):
        assert holds(trainer.run) == [{first.id, second.id}]
    assert holds(trainer.run) == []


def test_records_of_two_runs_are_held_in_both(train):
    one, two = train(), train()
    first, second = one.save(1), two.save(1)
    with reading(one.run.store, [first.address, second.address]):
        assert (holds(one.run), holds(two.run)) == ([{first.id}], [{second.id}])


def test_the_hold_goes_when_the_load_fails(train):
    trainer = train()
    record = trainer.save(1)
    with pytest.raises(ZeroDivisionError), reading(trainer.run.store, [record.address]):
        1 / 0  # noqa: B018
    assert holds(trainer.run) == []


def test_what_is_not_there_cannot_be_read_and_leaves_no_hold(train):
    trainer = train()
    trainer.save(1)
    nowhere = RecordAddress(trainer.run.number, Order(9, 0, 9), RecordId("0" * 16))
    with pytest.raises(Missing), reading(trainer.run.store, [nowhere]):
        pytest.fail("got in")
    assert holds(trainer.run) == []


def test_what_a_sweep_has_announced_cannot_be_read(train):
    """Whoever comes second sees the first: the sweep may have looked for readers already."""
    trainer = train()
    record, store = trainer.save(1), trainer.run.store
    sweep = Sweep(id="f" * 16, created="", owner=store.owner, objects=[str(record.name)])
    store.storage.create(layout.sweep(sweep.id), seal(layout.sweep(sweep.id), sweep))
    with pytest.raises(BeingDeleted, match="sweep ffffffffffffffff"), reading(store, [record.address]):
        pytest.fail("got in")
    assert holds(trainer.run) == []


def test_a_hold_that_cannot_be_removed_does_not_spoil_what_was_read(train, monkeypatch, caplog):
    trainer = train()
    record = trainer.save(1)

    def fail(names):
        raise StorageError("network down")

    with reading(trainer.run.store, [record.address]):
        monkeypatch.setattr(trainer.run.store.storage, "delete", fail)
    assert "could not be removed" in caplog.text


def test_nothing_to_read_touches_nothing(store):
    before = list(store.storage.list(""))
    with reading(store, []):
        assert list(store.storage.list("")) == before


class ReadOnly:
    """A storage on read-only media."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def create(self, name, data):
        raise StorageReadOnly("Read-only file system", errno=EROFS)


def test_a_store_that_cannot_be_written_is_read_without_holds(train, caplog):
    """An evaluation on a read-only mount, or with somebody else's permissions, loads all the same."""
    caplog.set_level("INFO")
    trainer = train()
    record, gone = trainer.save(1), trainer.save(2)
    trainer.run.store.storage.delete([gone.name])
    store = existing_store(ReadOnly(trainer.run.store.storage))
    with reading(store, [record.address]):
        assert holds(trainer.run) == []
    assert "is read without a hold" in caplog.text
    with pytest.raises(Missing), reading(store, [gone.address]):
        pass
