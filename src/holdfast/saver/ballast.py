"""A little room on the disk that is kept back: what frees space, or commits what is written, needs some itself.

On a disk that is full to the last block nothing can be deleted in an orderly way, for a sweep announces first what it
deletes; and a save that has written its packs into the last bytes cannot publish its record. So whoever saves holds
some bytes in a file without a name, and gives them up when the creation of a small object finds no room. It goes with
its process, however that ends, and nobody ever sees it.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from holdfast.catalog.launches import Launch
from holdfast.catalog.runs import Run
from holdfast.errors import StorageFull
from holdfast.ids import Buffer, ObjectName
from holdfast.storage.protocol import Listed, Sink, Source, Storage

T = TypeVar("T")

BYTES = 1 << 20
"""Enough for a hold, the announcement of a sweep, a manifest of some gigabytes, a record and its marks."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

logger = logging.getLogger(__name__)


class Ballast:
    """Room in the filesystem of ``folder``. Thread-safe.

    Example:
        >>> ballast = Ballast(Path(tempfile.gettempdir()))
        >>> ballast.hold()
        >>> ballast.drop(), ballast.drop()
        (True, False)
    """

    def __init__(self, folder: Path, length: int = BYTES) -> None:
        self._folder, self._length = folder, length
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._held = False

    def hold(self) -> None:
        """Takes the room, unless it is held already; where there never was that much, saves go on without.

        Raises:
            StorageFull: it was held before and there is no room for it now: what is left is for clearing up.
        """
        with self._lock:
            if self._descriptor is not None:
                return
            try:
                self._descriptor = self._taken()
            except OSError as error:
                if error.errno in _FULL and self._held:
                    raise StorageFull(
                        f"less than {self._length >> 10} KiB are left in {self._folder}; free some space",
                        errno=error.errno,
                    ) from error
                logger.debug("no ballast in %s: %s", self._folder, error)
            else:
                self._held = True

    def drop(self) -> bool:
        """Gives the room up; whether there was any to give."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is None:
                return False
            try:
                os.ftruncate(descriptor, 0)  # forked children hold the file open, too
            finally:
                os.close(descriptor)
            return True

    def _taken(self) -> int:
        with tempfile.TemporaryFile(prefix=".ballast-", dir=self._folder) as file:
            os.posix_fallocate(file.fileno(), 0, self._length)
            return os.dup(file.fileno())


@dataclass(frozen=True, slots=True)
class BallastedStorage:
    """As ``inner``; where a small object finds no room to be made or deleted in, the ballast is given up for it."""

    inner: Storage
    ballast: Ballast

    @property
    def url(self) -> str:
        """As ``inner``."""
        return self.inner.url

    def create(self, name: ObjectName, data: Buffer) -> None:
        """As ``inner``, with the room of the ballast."""
        self._again(lambda: self.inner.create(name, data))

    def read(self, name: ObjectName) -> bytes:
        """As ``inner``."""
        return self.inner.read(name)

    def size(self, name: ObjectName) -> int:
        """As ``inner``."""
        return self.inner.size(name)

    def list(self, prefix: str) -> Iterator[Listed]:
        """As ``inner``."""
        return self.inner.list(prefix)

    def delete(self, names: Iterable[ObjectName]) -> None:
        """As ``inner``, with the room of the ballast: filesystems that copy on write need some to delete."""
        wanted = list(names)
        self._again(lambda: self.inner.delete(wanted))

    def sink(self, name: ObjectName, reserve: int) -> Sink:
        """As ``inner``: packs have to find room of their own."""
        return self.inner.sink(name, reserve)

    def source(self, name: ObjectName) -> Source:
        """As ``inner``."""
        return self.inner.source(name)

    def sweep_unfinished(self) -> int:
        """As ``inner``."""
        return self.inner.sweep_unfinished()

    def unfinished(self) -> int:
        """As ``inner``."""
        return self.inner.unfinished()

    def _again(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except StorageFull:
            if not self.ballast.drop():
                raise
            return call()


@runtime_checkable
class _NamesFolders(Protocol):
    def folders(self, prefix: str) -> tuple[str, ...]: ...


class _WithFolders(BallastedStorage):
    """Over a storage that can name folders without listing what is in them."""

    __slots__ = ()

    def folders(self, prefix: str) -> tuple[str, ...]:
        """As ``inner``."""
        assert isinstance(self.inner, _NamesFolders)
        return self.inner.folders(prefix)


def with_ballast(launch: Launch) -> tuple[Launch, Ballast | None]:
    """The same launch over a storage with ballast; None: its storage is not in a filesystem."""
    run, store = launch.run, launch.run.store
    folder = Path(store.url)
    if "://" in store.url or not folder.is_dir():
        return launch, None
    ballast = Ballast(folder)
    kind = _WithFolders if isinstance(store.storage, _NamesFolders) else BallastedStorage
    over = replace(store, storage=kind(store.storage, ballast))
    return replace(launch, run=Run(over, run.info)), ballast
