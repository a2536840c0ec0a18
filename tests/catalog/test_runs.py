"""Listing the records of a run."""

from __future__ import annotations

import pytest
from holds_kit import save

from holdfast.catalog import layout
from holdfast.catalog.holds import take_name
from holdfast.catalog.launches import begin_launch
from holdfast.errors import Corrupt, UnknownReference
from holdfast.ids import Order, RecordAddress, RecordId


def test_records_come_in_order_of_launch_timeline_and_step(train):
    trainer = train()
    trainer.save(1000)
    trainer.roll_back(None)
    trainer.save(2)
    trainer.roll_back(None, relaunch=True)
    trainer.save(1)
    assert [record.step for record in trainer.run.records()] == [1000, 2, 1]
    assert [address.order.step for address in trainer.run.addresses()] == [1000, 2, 1]


def test_a_given_up_save_is_no_record(train):
    trainer = train()
    trainer.save(1)
    order = Order(1, 0, 2)
    address = RecordAddress(trainer.run.number, order, RecordId("a" * 16))
    take_name(trainer.run.store, address, saver=None, reason="test")
    assert [record.step for record in trainer.run.records()] == [1]
    assert [one.step for one in trainer.run.published().aborted] == [2]
    with pytest.raises(UnknownReference):
        trainer.run.record(address.id)


def test_a_damaged_record_is_reported_and_hides_no_other(train, damage):
    """Hazards 13: one flipped bit in a metric is found."""
    trainer = train()
    bad, good = trainer.save(1), trainer.save(2)
    damage(trainer.run.store, bad.name)
    assert trainer.run.records() == [good]
    assert [one.name for one in trainer.run.damaged()] == [bad.name]
    with pytest.raises(Corrupt):
        trainer.run.record(RecordId(bad.id))


def test_two_swapped_records_are_found(train):
    """Each is sealed and whole, but says that it is the other."""
    trainer = train()
    first, second = trainer.save(1), trainer.save(2)
    storage = trainer.run.store.storage
    data = {record.name: storage.read(record.name) for record in (first, second)}
    storage.delete(data)
    storage.create(first.name, data[second.name])
    storage.create(second.name, data[first.name])
    assert trainer.run.records() == []
    assert len(trainer.run.damaged()) == 2


def test_foreign_files_among_the_records_are_ignored(train):
    trainer = train()
    record = trainer.save(1)
    folder = layout.records_folder(trainer.run.number)
    trainer.run.store.storage.create(f"{folder}readme.txt", b"hello")
    assert trainer.run.records() == [record]


def test_a_deleted_record_is_gone_from_the_next_listing(train):
    trainer = train()
    first, second = trainer.save(1), trainer.save(2)
    assert trainer.run.records() == [first, second]
    trainer.run.store.storage.delete([first.name])
    assert trainer.run.records() == [second]


def test_records_that_were_read_once_are_not_read_again(train, monkeypatch):
    trainer = train()
    trainer.save(1)
    before = trainer.run.records()
    monkeypatch.setattr(trainer.run.store.storage, "read", pytest.fail)
    assert trainer.run.records() == before


def test_launches_and_starts_are_listed_apart(store):
    run = store.create_run("gpt2")
    launch = begin_launch(run, deadline=0, command=["python", "train.py"])
    launch.record_start(0, None, "fresh")
    record = save(launch, 5, [b"weights"])
    second = begin_launch(run, deadline=0)
    second.record_start(0, record.address, "newest")
    assert run.launch_numbers() == [1, 2]
    assert [info.command for info in run.launches()] == [["python", "train.py"], []]
    assert [(start.launch, start.resumed_from and start.resumed_from.step) for start in run.starts()] == [
        (1, None),
        (2, 5),
    ]
