"""The journal of a run: what happened, in batches, because object stores cannot append.

Every process writes under a name of its own. A batch that is damaged or
missing costs its events and nothing else; readers are told.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from holdfast import values
from holdfast.catalog import layout
from holdfast.catalog.objects import DamagedObject, create_once, load_each
from holdfast.clock import utc_now
from holdfast.errors import InvalidName, ObjectExists
from holdfast.ids import ObjectName, RunNumber
from holdfast.records import Batch, Event

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

LONGEST = 1000
"""Events in one batch, and waiting: while the storage is away the oldest are dropped and counted."""

_WRITER = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
_BATCH = re.compile(r"catalog/runs/\d{3,}/journal/([a-z0-9-]+)/(\d{6,})\.json")


@dataclass(slots=True, eq=False)
class JournalWriter:
    """Collects events and writes them at `flush`, which is durable. Thread-safe. Leaving its context flushes.

    Args:
        store: where the run lies.
        run: its number.
        writer: lowercase letters, digits and ``-``; unlike that of any other living process.

    Raises:
        InvalidName: ``writer`` breaks that rule.
    """

    store: Store
    run: RunNumber
    writer: str
    _events: list[Event] = field(default_factory=list)
    _pending: Batch | None = None
    _next: int = 1
    _dropped: int = 0
    _adding: threading.Lock = field(default_factory=threading.Lock)
    _flushing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not _WRITER.fullmatch(self.writer):
            raise InvalidName(f"not the name of a journal writer: {self.writer!r}; use a-z, 0-9 and -")

    def add(self, kind: str, message: str, /, **data: Any) -> None:
        """Notes one event; it reaches the storage at the next `flush`.

        Raises:
            UnsupportedValue: no codec can write one of ``data``; nothing was noted.
        """
        # A copy, and now: a value that cannot be written would take the other events with it at the flush.
        copied = values.decode_or_show(values.encode(data))
        text = message.encode(errors="replace").decode()
        event = Event(time=utc_now(), kind=str(kind), message=text, data=copied)
        with self._adding:
            self._events.append(event)
            if len(self._events) > LONGEST:
                del self._events[0]
                self._dropped += 1

    def flush(self) -> None:
        """Writes what was added since the last time as one batch: atomic, durable; nothing to do is fine.

        Raises:
            StorageError: not known to be written; nothing is lost, and the next call repeats it.
        """
        with self._flushing:
            while (batch := self._pending or self._take()) is not None:
                self._pending = batch
                self._write(batch)
                self._pending = None

    def _take(self) -> Batch | None:
        with self._adding:
            events, dropped = self._events, self._dropped
            self._events, self._dropped = [], 0
        if dropped:
            message = f"{dropped} events before these were dropped: the storage was away for too long"
            events.insert(0, Event(time=utc_now(), kind="dropped", message=message, data={"count": dropped}))
        return Batch(run=int(self.run), writer=self.writer, number=self._next, events=events) if events else None

    def _write(self, batch: Batch) -> None:
        # The same bytes again after a failure: a lost answer then reads as one's own.
        try:
            create_once(self.store.storage, layout.journal(self.run, self.writer, batch.number), batch)
        except ObjectExists:
            batch = Batch(run=batch.run, writer=batch.writer, number=self._free(), events=batch.events)
            create_once(self.store.storage, layout.journal(self.run, self.writer, batch.number), batch)
        self._next = batch.number + 1

    def _free(self) -> int:
        """The next number where an earlier process has written under this name."""
        taken = (number for writer, number in map(_place, _names(self.store, self.run)) if writer == self.writer)
        return max(taken, default=0) + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.flush()


class Entry(NamedTuple):
    """One event, and whose it is."""

    writer: str
    batch: int
    event: Event


class Gap(NamedTuple):
    """Batches that must have been there, since the same writer has a later one."""

    writer: str
    first: int
    last: int

    def __str__(self) -> str:
        which = f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"
        return f"batch {which} of {self.writer}"


class Journal(NamedTuple):
    """The journal of a run, read at one time."""

    entries: list[Entry]
    """By writer, batch and place: the order in which each writer saw things happen."""
    damaged: list[DamagedObject]
    missing: list[Gap]

    def by_time(self) -> list[Entry]:
        """For people, across writers; clocks of different hosts may disagree."""
        return sorted(self.entries, key=lambda entry: entry.event.time)


def read_journal(store: Store, run: RunNumber) -> Journal:
    """Everything that all writers noted; damaged and missing batches are said, never raised."""
    names = _names(store, run)
    batches, damaged = load_each(store.storage, names, Batch)
    batches.sort(key=lambda batch: (batch.writer, batch.number))
    entries = [Entry(batch.writer, batch.number, event) for batch in batches for event in batch.events]
    return Journal(entries, damaged, missing_batches(names))


def _names(store: Store, run: RunNumber) -> list[ObjectName]:
    folder = f"{layout.run_folder(run)}journal/"
    return [listed.name for listed in store.storage.list(folder) if _BATCH.fullmatch(listed.name)]


def _place(name: ObjectName) -> tuple[str, int]:
    folder, number = name.removesuffix(".json").rsplit("/", 1)
    return folder.rpartition("/")[2], int(number)


def missing_batches(names: Iterable[ObjectName]) -> list[Gap]:
    """What is not among ``names``, all of one run, although the same writer has a later one there."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for writer, number in map(_place, filter(_BATCH.fullmatch, names)):
        numbers[writer].append(number)
    return [Gap(writer, *gap) for writer in sorted(numbers) for gap in gaps(numbers[writer])]


def gaps(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and last of the numbers from 1 that are missing below the highest, in stretches: it may be any.

    Example:
        >>> list(gaps([2, 3, 10**12]))
        [(1, 1), (4, 999999999999)]
    """
    before = 0
    for number in sorted(numbers):
        if number > before + 1:
            yield before + 1, number - 1
        before = number
