"""Large files at offsets, by several threads, past the page cache where that helps.

A checkpoint's packs are written once and read rarely: through the page cache
they would cost a copy and push out what training needs. Direct I/O wants whole
blocks, so a file has two descriptors: whole blocks go through the direct one,
odd heads and tails through the buffered one, and never both into the same
page. One sync covers both, for it is one file. Whether a file can do direct
I/O is asked per file, and EINVAL (an address that is no multiple of a block, a
filesystem without it) falls back to the buffered descriptor.

A range that the page cache has whole is read from there, any other directly.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from holdfast.errors import Corrupt, InvalidInput, StorageUnavailable
from holdfast.ids import Buffer
from holdfast.storage.blocks import Users, direct_alignment, next_part
from holdfast.storage.durable import DurableWriter, Unfinished
from holdfast.storage.files import Files, open_direct, reported
from holdfast.storage.resident import ResidentPages

_NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class FileSink:
    """A `Sink` on a filesystem: a temporary file that `DurableWriter` finishes."""

    def __init__(self, writer: DurableWriter, path: Path, reserve: int) -> None:
        self._writer = writer
        self._path = path
        self._users = Users(path)
        self._lock = threading.Lock()
        self._end = 0
        self._failed: dict[int, OSError] = {}
        """By offset, writes that have failed and were not repeated with success."""
        with reported("begin", path):
            self._file = writer.begin(path)
            try:
                if reserve:
                    writer.files.reserve(self._file.descriptor, reserve)
                self._direct, self._alignment = _open_for_writing(writer.files, self._file)
            except BaseException:
                writer.discard(self._file)
                raise

    @property
    def alignment(self) -> int:
        """See `Sink.alignment`."""
        return self._alignment

    def write(self, offset: int, data: Buffer) -> None:
        """See `Sink.write`."""
        view = memoryview(data).cast("B")
        with self._users, reported("write", self._path):
            try:
                self._write_all(offset, view)
            except OSError as error:
                self._failed[offset] = error
                raise
            with self._lock:
                self._failed.pop(offset, None)
                self._end = max(self._end, offset + len(view))

    def commit(self, length: int) -> None:
        """See `Sink.commit`. After an error nothing is left but to leave the block.

        Raises:
            InvalidInput: other threads still write, or fewer than ``length`` bytes were written.
        """
        self._check(length)
        if not self._users.end(lambda: None):
            raise InvalidInput(f"{self._path} was committed or aborted before")
        with reported("commit", self._path):
            try:
                self._close_direct()
                self._set_length(length)
                self._writer.finish(self._file, self._path, length)
            except BaseException:
                self._writer.discard(self._file)
                raise

    def abort(self) -> None:
        """See `Sink.abort`; if other threads still write, the last of them cleans up."""
        self._users.end(self._discard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.abort()

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            written = self._write_some(offset, data)
            if written <= 0:
                raise OSError(errno.EIO, "nothing was written, and no reason given")
            data, offset = data[written:], offset + written

    def _write_some(self, offset: int, data: memoryview) -> int:
        length, whole = next_part(offset, len(data), self._alignment)
        if whole and self._direct is not None:
            try:
                return self._writer.files.write(self._direct, data[:length], offset)
            except OSError as error:
                if error.errno not in _NOT_DIRECT:
                    raise
        return self._writer.files.write(self._file.descriptor, data[:length], offset)

    def _check(self, length: int) -> None:
        if self._users.busy:
            raise InvalidInput(f"{self._path} cannot be committed while other threads still write to it")
        for error in self._failed.values():
            raise StorageUnavailable(f"{self._path} cannot be committed: an earlier write failed ({error})")
        if length > self._end:
            raise InvalidInput(f"{self._path} cannot be {length} bytes long: only {self._end} were written")

    def _set_length(self, length: int) -> None:
        if os.fstat(self._file.descriptor).st_size != length:
            self._writer.files.truncate(self._file.descriptor, length)

    def _close_direct(self) -> None:
        if self._direct is not None:
            descriptor, self._direct = self._direct, None
            self._writer.files.close(descriptor)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._close_direct()
        self._writer.discard(self._file)


class FileSource:
    """A `Source` on a filesystem."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._users = Users(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._size = _file_size(self._descriptor)
            self._direct, self._alignment = _open_for_reading(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._resident = ResidentPages(self._descriptor, self._size)

    @property
    def size(self) -> int:
        """See `Source.size`."""
        return self._size

    @property
    def alignment(self) -> int:
        """See `Source.alignment`."""
        return self._alignment

    def at_hand(self, offset: int, length: int) -> bool:
        """See `Source.at_hand`."""
        return self._direct is None or self._resident.have(offset, length)

    def read_into(self, offset: int, into: memoryview) -> None:
        """See `Source.read_into`."""
        view = into.cast("B")
        with self._users, reported("read", self._path):
            while view:
                got = self._read_some(offset, view)
                if got == 0:
                    raise Corrupt(f"{self._path} ends at byte {offset}, {len(view)} bytes too early; it was cut later")
                view, offset = view[got:], offset + got

    def close(self) -> None:
        """See `Source.close`; if other threads still read, the last of them closes."""
        self._users.end(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _read_some(self, offset: int, into: memoryview) -> int:
        length, whole = next_part(offset, len(into), self._alignment)
        if whole and self._direct is not None and not self._resident.have(offset, length):
            try:
                return os.preadv(self._direct, [into[:length]], offset)
            except OSError as error:
                if error.errno not in _NOT_DIRECT:
                    raise
        return os.preadv(self._descriptor, [into[:length]], offset)

    def _close(self) -> None:
        self._resident.close()
        for descriptor in (self._direct, self._descriptor):
            if descriptor is not None:
                os.close(descriptor)


def _file_size(descriptor: int) -> int:
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, "not a file")
    return facts.st_size


def _open_for_writing(files: Files, file: Unfinished) -> tuple[int | None, int]:
    alignment = direct_alignment(file.descriptor)
    if alignment is None:
        return None, 1
    try:
        return files.open_direct(file.path), alignment
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
        return None, 1


def _open_for_reading(descriptor: int, path: Path) -> tuple[int | None, int]:
    alignment = direct_alignment(descriptor)
    if alignment is None:
        return None, 1
    try:
        return open_direct(path, os.O_RDONLY), alignment
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
        return None, 1
