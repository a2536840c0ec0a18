"""Faults at single file events: kill, fail, write short, lie about a sync; and damage to stored bytes.

All are `Files` around `Files`, so they nest: `DropSync(RecordingFiles(root), at=2)`
records what a disk would see whose second sync does nothing.

Example:
    >>> import errno, tempfile
    >>> from pathlib import Path
    >>> from holdfast.ids import ObjectName
    >>> from holdfast.storage.local import LocalStorage
    >>> storage = LocalStorage(Path(tempfile.mkdtemp()), FailAt(3, errno.ENOSPC))
    >>> storage.create(ObjectName("a"), b"abc")
    Traceback (most recent call last):
    holdfast.errors.StorageFull: ...
    >>> list(storage.list(""))
    []
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from holdfast.storage.files import Files

R = TypeVar("R")


class Op(StrEnum):
    """The kinds of file events, one for each method of `Files`."""

    CREATE = "create"
    OPEN_DIRECT = "open_direct"
    WRITE = "write"
    RESERVE = "reserve"
    TRUNCATE = "truncate"
    SYNC = "sync"
    CLOSE = "close"
    LINK = "link"
    RENAME_NEW = "rename_new"
    UNLINK = "unlink"
    MAKE_FOLDER = "make_folder"
    SYNC_FOLDER = "sync_folder"


SYNCS = frozenset({Op.SYNC, Op.SYNC_FOLDER})
"""The events that make something durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One file event that is about to happen; what a kind has no use for is None."""

    op: Op
    path: Path | None = None
    target: Path | None = None
    descriptor: int | None = None
    offset: int | None = None
    length: int | None = None
    data: memoryview | None = None


class HookedFiles(Files):
    """Files whose every event goes through `around`; the base of all others here. Thread-safe if `around` is."""

    def __init__(self, inner: Files | None = None) -> None:
        self.inner = inner or Files()

    def around(self, event: Event, run: Callable[[], R]) -> R:
        """Do what is to be done; subclasses do it, don't, or do something else."""
        return run()

    def create(self, path: Path) -> int:
        """See `Files.create`."""
        return self.around(Event(op=Op.CREATE, path=path), lambda: self.inner.create(path))

    def open_direct(self, path: Path) -> int:
        """See `Files.open_direct`."""
        return self.around(Event(op=Op.OPEN_DIRECT, path=path), lambda: self.inner.open_direct(path))

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """See `Files.write`."""
        event = Event(op=Op.WRITE, descriptor=descriptor, data=data, offset=offset, length=len(data))
        return self.around(event, lambda: self.inner.write(descriptor, data, offset))

    def reserve(self, descriptor: int, length: int) -> None:
        """See `Files.reserve`."""
        event = Event(op=Op.RESERVE, descriptor=descriptor, length=length)
        self.around(event, lambda: self.inner.reserve(descriptor, length))

    def truncate(self, descriptor: int, length: int) -> None:
        """See `Files.truncate`."""
        event = Event(op=Op.TRUNCATE, descriptor=descriptor, length=length)
        self.around(event, lambda: self.inner.truncate(descriptor, length))

    def sync(self, descriptor: int) -> None:
        """See `Files.sync`."""
        self.around(Event(op=Op.SYNC, descriptor=descriptor), lambda: self.inner.sync(descriptor))

    def close(self, descriptor: int) -> None:
        """See `Files.close`."""
        self.around(Event(op=Op.CLOSE, descriptor=descriptor), lambda: self.inner.close(descriptor))

    def link(self, source: Path, target: Path) -> None:
        """See `Files.link`."""
        self.around(Event(op=Op.LINK, path=source, target=target), lambda: self.inner.link(source, target))

    def rename_new(self, source: Path, target: Path) -> None:
        """See `Files.rename_new`."""
        event = Event(op=Op.RENAME_NEW, path=source, target=target)
        self.around(event, lambda: self.inner.rename_new(source, target))

    def unlink(self, path: Path) -> None:
        """See `Files.unlink`."""
        self.around(Event(op=Op.UNLINK, path=path), lambda: self.inner.unlink(path))

    def make_folder(self, path: Path) -> None:
        """See `Files.make_folder`."""
        self.around(Event(op=Op.MAKE_FOLDER, path=path), lambda: self.inner.make_folder(path))

    def sync_folder(self, path: Path) -> None:
        """See `Files.sync_folder`."""
        self.around(Event(op=Op.SYNC_FOLDER, path=path), lambda: self.inner.sync_folder(path))


class CountedFiles(HookedFiles):
    """Files whose events of the kinds ``ops`` (all, if empty) are counted from 1; subclasses act at one."""

    def __init__(self, inner: Files | None = None, *, ops: frozenset[Op] = frozenset()) -> None:
        super().__init__(inner)
        self._ops = ops
        self._lock = threading.Lock()
        self._seen: list[Event] = []

    @property
    def seen(self) -> tuple[Event, ...]:
        """The events so far; their data is dropped."""
        return tuple(self._seen)

    def around(self, event: Event, run: Callable[[], R]) -> R:
        """Count the event, then act."""
        if self._ops and event.op not in self._ops:
            return run()
        with self._lock:
            self._seen.append(_without_data(event))
            number = len(self._seen)
        return self.at(number, event, run)

    def at(self, number: int, event: Event, run: Callable[[], R]) -> R:
        """Act on the ``number``-th event."""
        return run()


class KillAt(CountedFiles):
    """``SIGKILL`` to this very process at the ``number``-th event: before it is done, or after."""

    def __init__(self, number: int, *, after: bool, inner: Files | None = None) -> None:
        super().__init__(inner)
        self._number = number
        self._after = after

    def at(self, number: int, event: Event, run: Callable[[], R]) -> R:
        """See the class."""
        if number == self._number and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return run()
        finally:
            if number == self._number:
                os.kill(os.getpid(), signal.SIGKILL)


class FailAt(CountedFiles):
    """``OSError`` with ``code`` at the ``number``-th event of the kinds ``ops``, and, if persistent, at all later ones.

    A failing `close` closes, as it does on Linux; everything else that fails does nothing.
    """

    def __init__(
        self,
        number: int,
        code: int,
        *,
        persistent: bool = False,
        ops: frozenset[Op] = frozenset(),
        inner: Files | None = None,
    ) -> None:
        super().__init__(inner, ops=ops)
        self._number = number
        self._code = code
        self._persistent = persistent

    def at(self, number: int, event: Event, run: Callable[[], R]) -> R:
        """See the class."""
        if number == self._number or (self._persistent and number > self._number):
            if event.op is Op.CLOSE:
                run()
            raise OSError(self._code, os.strerror(self._code), str(event.path or ""))
        return run()


class ShortWrites(HookedFiles):
    """Every write writes at most ``most`` bytes and says so, as the kernel may."""

    def __init__(self, most: int, inner: Files | None = None) -> None:
        super().__init__(inner)
        self._most = most

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """See the class."""
        return super().write(descriptor, data[: self._most], offset)


class DropSync(CountedFiles):
    """The ``at``-th sync, of a file or a folder, says that it is done and does nothing."""

    def __init__(self, inner: Files, *, at: int) -> None:
        super().__init__(inner, ops=SYNCS)
        self._at = at

    def at(self, number: int, event: Event, run: Callable[[], R]) -> R:
        """See the class."""
        return run() if number != self._at else None  # type: ignore[return-value] # syncs return nothing


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file where it lies; ``bit`` is taken modulo its length."""
    data = bytearray(path.read_bytes())
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def cut(path: Path, length: int) -> None:
    """Cut a file to its first ``length`` bytes."""
    os.truncate(path, length)


def tear(path: Path, start: int, length: int) -> None:
    """Overwrite a range of a file with zeros, as a torn write leaves it."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(length))


def _without_data(event: Event) -> Event:
    return Event(
        op=event.op,
        path=event.path,
        target=event.target,
        descriptor=event.descriptor,
        offset=event.offset,
        length=event.length,
    )
