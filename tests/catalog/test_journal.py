from __future__ import annotations

import threading
from pathlib import Path

import pytest

from holdfast.catalog import layout
from holdfast.catalog.journal.journal import LONGEST, Gap, JournalWriter, read_journal
from holdfast.errors import InvalidName, StorageUnavailable, UnsupportedValue
from holdfast.ids import RunNumber
from holdfast.records import MarkKind

RUN = RunNumber(1)


def messages(journal) -> list[tuple[str, str]]:
    return [(entry.writer, entry.event.message) for entry in journal.entries]


class Answers:
    """A storage whose creations fail while ``down``, before or after the object was created."""

    def __init__(self, inner) -> None:
        self.inner, self.down, self.lost_answers = inner, False, False

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def create(self, name, data):
        if self.lost_answers:
            self.inner.create(name, data)
        if self.down:
            raise StorageUnavailable("the storage is away")
        self.inner.create(name, data)


@pytest.fixture
def flaky(store):
    return type(store)(storage=Answers(store.storage), info=store.info)


def test_events_are_read_by_writer_and_in_order(store):
    """Hazards 37: no append exists on object stores, so every flush is an object."""
    with JournalWriter(store, RUN, "b") as b, JournalWriter(store, RUN, "a") as a:
        b.add("save", "b1", step=500)
        a.add("save", "a1")
        b.flush()
        b.add("save", "b2")
        b.add("save", "b3")
    journal = read_journal(store, RUN)
    assert messages(journal) == [("a", "a1"), ("b", "b1"), ("b", "b2"), ("b", "b3")]
    assert [entry.batch for entry in journal.entries] == [1, 1, 2, 2]
    assert journal.entries[1].event.data == {"step": 500}
    assert not journal.damaged
    assert not journal.missing


def test_nothing_to_say_writes_nothing(store):
    with JournalWriter(store, RUN, "a") as writer:
        writer.flush()
    assert list(store.storage.list(f"{layout.run_folder(RUN)}journal/")) == []


def test_a_failed_flush_loses_nothing_and_is_repeated(flaky):
    writer = JournalWriter(flaky, RUN, "a")
    writer.add("save", "one")
    flaky.storage.down = True
    with pytest.raises(StorageUnavailable):
        writer.flush()
    writer.add("save", "two")
    flaky.storage.down = False
    writer.flush()
    assert messages(read_journal(flaky, RUN)) == [("a", "one"), ("a", "two")]


def test_a_lost_answer_does_not_write_a_batch_twice(flaky):
    writer = JournalWriter(flaky, RUN, "a")
    writer.add("save", "one")
    flaky.storage.down = flaky.storage.lost_answers = True
    with pytest.raises(StorageUnavailable):
        writer.flush()
    flaky.storage.down = flaky.storage.lost_answers = False
    writer.flush()
    assert messages(read_journal(flaky, RUN)) == [("a", "one")]


def test_while_the_storage_is_away_the_oldest_events_go_and_that_is_said(flaky):
    """I9: nothing grows without bound."""
    writer = JournalWriter(flaky, RUN, "a")
    for n in range(LONGEST + 5):
        writer.add("step", str(n))
    writer.flush()
    found = messages(read_journal(flaky, RUN))
    assert found[0][1].startswith("5 events before these were dropped")
    assert found[1] == ("a", "5")
    assert len(found) == LONGEST + 1


def test_a_writer_that_comes_back_goes_on_after_its_last_batch(store):
    for n in range(3):
        with JournalWriter(store, RUN, "a") as writer:
            writer.add("start", str(n))
    assert messages(read_journal(store, RUN)) == [("a", "0"), ("a", "1"), ("a", "2")]


def test_a_damaged_batch_costs_its_own_events_only_and_is_said(store, damage):
    """Hazards 37: a torn last batch is tolerated and said."""
    writer = JournalWriter(store, RUN, "a")
    for n in range(3):
        writer.add("step", str(n))
        writer.flush()
    damage(store, layout.journal(RUN, "a", 3))
    journal = read_journal(store, RUN)
    assert [message for _, message in messages(journal)] == ["0", "1"]
    assert [one.name for one in journal.damaged] == [layout.journal(RUN, "a", 3)]


def test_a_missing_batch_is_said(store):
    writer = JournalWriter(store, RUN, "a")
    for n in range(3):
        writer.add("step", str(n))
        writer.flush()
    store.storage.delete([layout.journal(RUN, "a", 2)])
    assert read_journal(store, RUN).missing == [Gap("a", 2, 2)]


def test_threads_may_share_a_writer(store):
    writer = JournalWriter(store, RUN, "a")

    def work(name: str) -> None:
        for n in range(50):
            writer.add("step", f"{name}{n}")
            writer.flush()

    threads = [threading.Thread(target=work, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [message for _, message in messages(read_journal(store, RUN))]
    assert sorted(found) == sorted(f"{name}{n}" for name in "xyz" for n in range(50))
    assert [m for m in found if m[0] == "x"] == [f"x{n}" for n in range(50)]


def test_an_event_that_cannot_be_written_is_refused_at_once(store):
    writer = JournalWriter(store, RUN, "a")
    with pytest.raises(UnsupportedValue):
        writer.add("save", "bad", what=object())
    writer.add("save", "a path with a stray byte: \udcff")
    writer.flush()
    assert messages(read_journal(store, RUN)) == [("a", "a path with a stray byte: ?")]


@pytest.mark.parametrize("name", ["", "A", "a/b", "../a", "-a", "a" * 81])
def test_the_name_of_a_writer_is_part_of_object_names(store, name):
    with pytest.raises(InvalidName):
        JournalWriter(store, RUN, name)


def test_an_event_is_what_it_was_when_it_was_added(store):
    """Values are copied at once: what changes later, or has a type of its own, cannot take a batch with it."""
    seen = {"at": Path("/x"), "where": [1]}
    with JournalWriter(store, RUN, "a") as journal:
        journal.add("save", "one", seen=seen, level=MarkKind.NOTE, z=1j)
        seen["where"].append(object())
        seen["hook"] = print
    (entry,) = read_journal(store, RUN).entries
    assert entry.event.data == {"seen": {"at": Path("/x"), "where": [1]}, "level": MarkKind.NOTE, "z": 1j}


def test_missing_batches_are_told_in_stretches(store):
    """One stray file with a large number must not cost a name for every number below it."""
    with JournalWriter(store, RUN, "a") as writer:
        writer.add("step", "1")
    store.storage.create(layout.journal(RUN, "a", 10**15), b"x")
    missing = read_journal(store, RUN).missing
    assert missing == [Gap("a", 2, 10**15 - 1)]
    assert str(missing[0]) == "batch 2 to 999999999999999 of a"
