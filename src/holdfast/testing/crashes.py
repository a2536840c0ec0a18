"""Power cuts without a power switch: every legal state of a disk after a recorded piece of work was cut off.

Kills prove nothing about syncs, for the page cache survives a killed process.
So the operations of real work are recorded at the `Files` seam, and for every
point of the record the states are built that a filesystem may be in after the
power fails there:

- what was written to a file and not synced may be there, or be missing, or be zeros, or be half there,
  each write for itself;
- an entry that was made in or removed from a folder and not synced may be there or not, each for itself;
- a sync of a file covers its bytes and length, not its name; a sync of a folder covers its entries, not the
  folder's own entry one level up.

This is stricter than common filesystems, which order more than they promise.
Source: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.

Example:
    >>> import tempfile
    >>> from holdfast.ids import ObjectName
    >>> from holdfast.storage.local import LocalStorage
    >>> root = Path(tempfile.mkdtemp())
    >>> files = RecordingFiles(root)
    >>> LocalStorage(root, files).create(ObjectName("a"), b"abc")
    >>> files.trace.note("a is there")
    >>> found = {state.files.get("a") for state in crash_states(files.trace, seed=0) if state.notes}
    >>> found
    {b'abc'}
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from holdfast.storage.files import Files
from holdfast.testing.faults import Event, HookedFiles, Op

R = TypeVar("R")
Inode = int

ROOT: Inode = 0

_PAIRS = 12  # above so many unsynced operations pairs are drawn at random
_FIXED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Bytes written to a file."""

    inode: Inode
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """The length of a file set, or, with ``grow``, raised (reserved space reads as zeros)."""

    inode: Inode
    length: int
    grow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """Entries of a folder changed together: names given (to a number) and taken away (None)."""

    inode: Inode
    entries: tuple[tuple[str, Inode | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """All earlier changes of a file's bytes, or of a folder's entries, are durable."""

    inode: Inode


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something that the program was told or told others at this point: an acknowledgement."""

    text: str


Change = Write | Resize | Enter
Step = Change | Barrier | Note


class Fate(StrEnum):
    """What becomes of one unsynced change in a power cut; the last two only of writes."""

    KEPT = "kept"
    LOST = "lost"
    ZEROS = "zeros"
    HALF = "half"


@dataclass(slots=True)
class Trace:
    """Recorded work. Numbers stand for files and folders, `ROOT` for the root; ``base`` was there before, durable."""

    base: dict[Inode, bytes | dict[str, Inode]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note: what was acknowledged by now must hold in every state after it."""
        self.steps.append(Note(text=text))

    @property
    def barriers(self) -> int:
        """How many syncs there are."""
        return sum(isinstance(step, Barrier) for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashState:
    """What is on the disk after one power cut."""

    files: dict[str, bytes]
    """Path below the root -> content."""
    folders: frozenset[str]
    """Paths below the root."""
    notes: tuple[str, ...]
    """What had been noted before the cut."""
    position: int
    """The cut came after so many steps."""
    story: str
    """What became of the changes that were not durable, for the message of a failed test."""


class RecordingFiles(HookedFiles):
    """Files that do everything and record it in ``trace``. What is below ``root`` at the start counts as durable.

    Only work below ``root``, through this object, and by this process is seen.
    A file must not be written through descriptors opened elsewhere.
    """

    def __init__(self, root: Path, inner: Files | None = None) -> None:
        super().__init__(inner)
        self.trace = Trace()
        self._root = root.absolute()
        self._lock = threading.Lock()
        self._numbers: dict[Path, Inode] = {}
        self._open: dict[int, Inode] = {}
        self._next = itertools.count(ROOT)
        self._take_base(self._root)

    def around(self, event: Event, run: Callable[[], R]) -> R:
        """Do it and record it. A sync is recorded as of its start: it covers no write that ends during it."""
        if event.op in (Op.SYNC, Op.SYNC_FOLDER):
            with self._lock:
                position = len(self.trace.steps)
            result = run()
            with self._lock:
                self.trace.steps.insert(position, Barrier(inode=self._number(event)))
            return result
        if event.op is Op.CLOSE:
            # Before it is done, for afterwards another thread may get the number.
            with self._lock:
                self._open.pop(event.descriptor or 0, None)
            return run()
        with self._lock:
            result = run()
            self._record(event, result)
        return result

    def _record(self, event: Event, result: object) -> None:
        match event:
            case Event(op=Op.CREATE, path=Path() as path):
                number = self._new(path)
                self._open[_integer(result)] = number
                self._enter(path, number)
            case Event(op=Op.OPEN_DIRECT, path=Path() as path):
                self._open[_integer(result)] = self._numbers[path]
            case Event(op=Op.WRITE, data=memoryview() as data, offset=int(offset)):
                written = bytes(data[: _integer(result)])
                self.trace.steps.append(Write(inode=self._number(event), offset=offset, data=written))
            case Event(op=Op.RESERVE | Op.TRUNCATE, length=int(length)):
                grow = event.op is Op.RESERVE
                self.trace.steps.append(Resize(inode=self._number(event), length=length, grow=grow))
            case Event(op=Op.MAKE_FOLDER, path=Path() as path):
                self._enter(path, self._new(path))
            case _:
                self._record_names(event)

    def _record_names(self, event: Event) -> None:
        match event:
            case Event(op=Op.LINK, path=Path() as path, target=Path() as target):
                self._numbers[target] = self._numbers[path]
                self._enter(target, self._numbers[path])
            case Event(op=Op.RENAME_NEW, path=Path() as path, target=Path() as target):
                self._numbers[target] = number = self._numbers.pop(path)
                # One step: a rename within a folder is atomic.
                self._enter(target, number, (path.name, None))
            case Event(op=Op.UNLINK, path=Path() as path):
                self._numbers.pop(path)
                self._enter(path, None)

    def _enter(self, path: Path, number: Inode | None, *others: tuple[str, None]) -> None:
        self.trace.steps.append(Enter(inode=self._numbers[path.parent], entries=((path.name, number), *others)))

    def _number(self, event: Event) -> Inode:
        return self._numbers[event.path] if event.path is not None else self._open[event.descriptor or 0]

    def _new(self, path: Path) -> Inode:
        self._numbers[path] = number = next(self._next)
        return number

    def _take_base(self, path: Path) -> Inode:
        number = self._new(path)
        if path.is_dir():
            self.trace.base[number] = {below.name: self._take_base(below) for below in sorted(path.iterdir())}
        else:
            self.trace.base[number] = path.read_bytes()
        return number


def without_sync(trace: Trace, number: int) -> Trace:
    """The same work with its ``number``-th sync (from 1) left out: a check on the tests that use a trace.

    Raises:
        IndexError: there are fewer syncs.
    """
    places = [place for place, step in enumerate(trace.steps) if isinstance(step, Barrier)]
    place = places[number - 1]
    return Trace(base=trace.base, steps=trace.steps[:place] + trace.steps[place + 1 :])
