"""Record what real work does to a filesystem: every event below a folder, with its bytes.

`holdfast.testing.crashes` turns such a trace into the states that a power cut may leave.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from holdfast.storage.files import Files
from holdfast.testing.faults import SYNCS, Event, HookedFiles, Op

R = TypeVar("R")
Inode = int

ROOT: Inode = 0


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


@dataclass(slots=True)
class Trace:
    """Recorded work. Numbers stand for files and folders, `ROOT` for the root."""

    base: dict[Inode, bytes | dict[str, Inode]] = field(default_factory=dict)
    """What each file and folder held, durably, when it was first seen."""
    steps: list[Step] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note: what was acknowledged by now must hold in every state after it."""
        self.steps.append(Note(text=text))

    @property
    def barriers(self) -> int:
        """How many syncs there are."""
        return sum(isinstance(step, Barrier) for step in self.steps)


class RecordingFiles(HookedFiles):
    """Files that do everything and record it in ``trace``. What is below ``root`` at the start counts as durable.

    Only work below ``root``, through this object, and by this process is seen; the root's own entry counts as durable.
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
        if event.op in SYNCS:
            return run() if event.path == self._root.parent else self._sync(event, run)
        if event.op is Op.CLOSE:
            # Before it is done, for afterwards another thread may get the number.
            with self._lock:
                self._open.pop(event.descriptor or 0, None)
            return run()
        with self._lock:
            result = run()
            self._record(event, result)
        return result

    def _sync(self, event: Event, run: Callable[[], R]) -> R:
        with self._lock:
            barrier = Barrier(inode=self._number(event))
            self.trace.steps.append(barrier)
        try:
            return run()
        except BaseException:
            with self._lock:
                self.trace.steps[:] = [step for step in self.trace.steps if step is not barrier]
            raise

    def _record(self, event: Event, result: object) -> None:
        match event:
            case Event(op=Op.CREATE, path=Path() as path):
                number = self._new(path, b"")
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
                self._enter(path, self._new(path, {}))
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

    def _new(self, path: Path, content: bytes | dict[str, Inode]) -> Inode:
        self._numbers[path] = number = next(self._next)
        self.trace.base[number] = content
        return number

    def _take_base(self, path: Path) -> Inode:
        if not path.is_dir():
            return self._new(path, path.read_bytes())
        entries: dict[str, Inode] = {}
        number = self._new(path, entries)
        entries.update((below.name, self._take_base(below)) for below in sorted(path.iterdir()))
        return number


def without_sync(trace: Trace, number: int) -> Trace:
    """The same work with its ``number``-th sync (from 1) left out: a check on the tests that use a trace.

    Raises:
        IndexError: there are fewer syncs.
    """
    places = [place for place, step in enumerate(trace.steps) if isinstance(step, Barrier)]
    place = places[number - 1]
    return Trace(base=trace.base, steps=trace.steps[:place] + trace.steps[place + 1 :])


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value
