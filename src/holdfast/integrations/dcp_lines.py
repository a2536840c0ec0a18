"""Where saves of this process go: one launch for each run, whichever writer and whichever thread asks.

A program may make a writer for every save, and DCP's background process gets a
copy of one with every request. What must outlive them is here: a launch that
is begun once, and what is left of a save that did not come to its end.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from holdfast.catalog import layout
from holdfast.catalog.launches import Launch, begin_launch
from holdfast.catalog.naming.references import ancestor_line, named_run
from holdfast.catalog.objects import exists
from holdfast.catalog.readers import reading
from holdfast.catalog.runs import Run
from holdfast.catalog.saves import SaveAttempt, begin_save
from holdfast.catalog.store import Store, open_store
from holdfast.errors import Conflict, InvalidInput, NotFound, SaveFailed, StorageError, UnknownReference
from holdfast.ids import Order, RecordAddress, RecordId, RunName, RunNumber, nonce
from holdfast.packs.codec import Codec
from holdfast.records import Record, Target
from holdfast.recovery.environment.launcher import command_line, environment_facts, launcher_facts
from holdfast.recovery.launching.choice import wanted
from holdfast.recovery.launching.joining import SEE_SECONDS, Joining, await_store
from holdfast.saver import Saving
from holdfast.saver.readback import quarantined_packs

logger = logging.getLogger(__name__)


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What all ranks have to know of one save."""

    store: str
    """Its id."""
    target: Target
    """The record that is to be."""
    parent: Target | None
    """The record before on this line, whose segments are not written again."""
    attempt: str
    rank: int
    world: int

    def encode(self) -> bytes:
        """As it travels in a plan."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Ticket:
        """The inverse of `encode`."""
        return msgspec.msgpack.decode(data, type=cls)


@dataclass(slots=True)
class Line:
    """A launch of a run, on which this process saves; one save at a time. Not thread-safe."""

    saving: Saving
    timeline: int = -1
    step: int = -1
    """Of the last checkpoint that was committed here."""
    parent: RecordAddress | None = None
    unfinished: SaveAttempt | None = None
    """A save that was begun, and of which nobody has told this process how it ended."""
    seen: str | None = None
    """The attempt of the last ticket."""

    @property
    def launch(self) -> Launch:
        """Which one it is."""
        return self.saving.launch

    @property
    def store(self) -> Store:
        """Where it is."""
        return self.launch.run.store

    def stands(self) -> bool:
        """Whether what was begun is still there: somebody may have removed the store since."""
        name = layout.launch(self.launch.run.number, self.launch.number)
        return _is_at(self.store.url, self.store.info.id) and exists(self.store.storage, name)

    def issue(self, step: int, world: int) -> Ticket:
        """Where the next save goes; a step that was saved before, or one below it, opens a new timeline."""
        self.clear()
        if self.timeline < 0 or step <= self.step or exists(self.store.storage, self._address(step).name):
            self._open_timeline(step)
        return Ticket(
            store=self.store.info.id,
            target=Target.of(self._address(step)),
            parent=None if self.parent is None else Target.of(self.parent),
            attempt=nonce(),
            rank=0,
            world=world,
        )

    def begin(self, ticket: Ticket) -> SaveAttempt:
        """Announces the save: from here on nothing is deleted that it writes or relies on."""
        self.clear()
        self.seen = ticket.attempt
        self.unfinished = begin_save(
            self.launch,
            ticket.target.timeline,
            ticket.target.step,
            bases=[ticket.parent.address] if ticket.parent else [],
            shared=False,
            quarantined=self.saving.damaged,
            attempt=ticket.attempt,
        )
        return self.unfinished

    def committed(self, record: Record) -> None:
        """The save has come to its end."""
        self.unfinished, self.step, self.parent = None, record.step, record.address

    def clear(self) -> None:
        """Removes what is left of a save that has failed: rank 0 begins no other one before the last one is over."""
        left, self.unfinished = self.unfinished, None
        try:
            if left is not None and not _is_published(left):
                left.abandon()
        except StorageError as error:
            logger.warning("what is left of the save of %s could not be removed: %s", left and left.address, error)

    def _address(self, step: int) -> RecordAddress:
        order = Order(self.launch.number, self.timeline, step)
        number = self.launch.run.number
        return RecordAddress(number, order, RecordId.derive(self.store.info.id, number, order))

    def _open_timeline(self, step: int) -> None:
        before = (record.address for record in ancestor_line(self.launch.run) if record.step < step)
        parent = next(before, None)
        why = f"the newest checkpoint before step {step}" if parent else f"nothing was saved before step {step}"
        with reading(self.store, [parent] if parent else []):
            self.launch.record_start(self.timeline + 1, parent, why)
        self.timeline, self.step, self.parent = self.timeline + 1, -1, parent


_own: dict[tuple[int, str, str], Line] = {}
_joined: dict[tuple[int, str, str], Line] = {}
_lock = threading.Lock()


def own_line(url: str, run: str | int, codec: Codec) -> Line:
    """The line of rank 0, begun if this process has none.

    Raises:
        InvalidName: ``run`` can be no run.
        StorageError: the store cannot be reached or written.
    """
    key = (os.getpid(), url, str(wanted(run)))
    with _lock:
        line = _own.get(key)
        if line is None or not line.stands():
            line = _own[key] = _begun(url, run)
        line.saving.codec = codec
        return line


def joined_line(url: str, ticket: Ticket, codec: Codec) -> Line:
    """The line of another rank, on the launch that rank 0 has begun.

    Raises:
        InvalidInput: this rank sees another store, or none.
    """
    key = (os.getpid(), url, f"{ticket.store}/{ticket.target.run}/{ticket.target.launch}")
    with _lock:
        if key not in _joined:
            _joined[key] = _join(url, ticket)
        line = _joined[key]
        line.saving.codec = codec
        return line


def _begun(url: str, run: str | int) -> Line:
    store = open_store(url, create=True)
    found = _run(store, run)
    if (known := _known(store, found)) is not None:
        return known
    launch = begin_launch(found, job=launcher_facts().job, command=command_line(), environment=environment_facts())
    return Line(Saving(launch=launch, damaged=quarantined_packs(store)))


def _known(store: Store, run: Run) -> Line | None:
    """The line of this process on a run that it has met under another name: another launch would fence it."""
    mine = (line for (pid, *_), line in _own.items() if pid == os.getpid())
    where = (store.info.id, run.number)
    there = (line for line in mine if (line.store.info.id, line.launch.run.number) == where)
    return next(filter(Line.stands, there), None)


def _run(store: Store, run: str | int) -> Run:
    want = wanted(run)
    if isinstance(want, RunNumber):
        return store.run(want)
    if not isinstance(want, RunName):
        raise InvalidInput(f"run={run!r}: name the run, or give its number")
    try:
        return named_run(store, want)
    except UnknownReference:
        return store.create_run(want, job=launcher_facts().job)


def _join(url: str, ticket: Ticket) -> Line:
    joining = Joining(
        store=ticket.store,
        run=ticket.target.run,
        launch=ticket.target.launch,
        begin=None,
        asked=None,
        forked_from=None,
        secret="",
    )
    store = await_store(url, joining, ticket.rank, SEE_SECONDS)
    launch = Launch(Run.by_number(store, ticket.target.run), ticket.target.launch)
    return Line(Saving(launch=launch, damaged=quarantined_packs(store)))


def _is_published(attempt: SaveAttempt) -> bool:
    try:
        return attempt.published() is not None
    except (Conflict, SaveFailed):
        return False  # the name has gone to another save


def _is_at(url: str, id_: str) -> bool:
    try:
        return open_store(url).info.id == id_
    except NotFound:
        return False


def absolute(store: str | Path) -> str:
    """A store by a name that other processes understand."""
    text = str(store)
    return text if "://" in text else str(Path(text).absolute())
