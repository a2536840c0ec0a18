"""Large files at offsets, by several threads, past the page cache where that helps.

A checkpoint's packs are written once and read rarely: through the page cache
they would cost a copy and push out what training needs. Direct I/O wants
offsets, lengths and addresses that are multiples of a block, so two
descriptors are used: whole blocks go through the direct one, odd heads and
tails through the buffered one, and never both into the same page. One sync
covers both, for it is one file. Whether a file can do direct I/O is asked per
file (``statx``), and any EINVAL falls back to the buffered descriptor.

Reads take what the page cache has first and fetch only the rest directly.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from holdfast.errors import Corrupt, InvalidInput, ObjectExists, ObjectMissing, StorageUnavailable
from holdfast.ids import Buffer
from holdfast.storage.durable import DurableWriter, Unfinished
from holdfast.storage.files import Files, reported

PAGE = mmap.PAGESIZE

_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_EMPTY_PATH = 0x1000
_DIOALIGN = 0x2000
_MASK_AT, _MEMORY_AT, _OFFSET_AT = 0, 152, 156  # in struct statx, see linux/stat.h
_NOT_CACHED = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def aligned_buffer(length: int) -> memoryview:
    """Zeroed memory that begins on a page, so that direct I/O needs no copy.

    Example:
        >>> len(aligned_buffer(8 << 20))
        8388608
    """
    return memoryview(mmap.mmap(-1, max(length, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:length]


def direct_alignment(descriptor: int) -> int | None:
    """The alignment that direct I/O on this file wants, at least a page; None where it is known to be impossible."""
    facts = ctypes.create_string_buffer(256)
    call = getattr(_LIBC, "statx", None)
    if call is None or call(descriptor, b"", _EMPTY_PATH, _DIOALIGN, facts) != 0:
        return PAGE
    at = ctypes.c_uint32.from_buffer
    if not at(facts, _MASK_AT).value & _DIOALIGN:
        return PAGE  # an old kernel or filesystem does not say; opening tells
    offset, memory = at(facts, _OFFSET_AT).value, at(facts, _MEMORY_AT).value
    return max(PAGE, offset, memory) if offset else None


class _Users:
    """Threads at work on a descriptor; the last one to leave runs what was left for the end.

    Closing a descriptor under another thread's write would let that write go
    into whatever file gets the number next.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._count = 0
        self._ended = False
        self._last: Callable[[], None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._ended:
                raise InvalidInput(f"{self._path} is closed already; open it again")
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
        self._run_if_last()

    @property
    def busy(self) -> bool:
        """Whether a thread is at work."""
        return self._count > 0

    def end(self, last: Callable[[], None] | None = None) -> bool:
        """Let nobody in any more and run ``last`` when all have left; False if it was ended before."""
        with self._lock:
            if self._ended:
                return False
            self._ended, self._last = True, last
        self._run_if_last()
        return True

    def _run_if_last(self) -> None:
        with self._lock:
            last, self._last = (self._last, None) if self._count == 0 else (None, self._last)
        if last is not None:
            last()


class FileSink:
    """A `Sink` on a filesystem: a temporary file that `DurableWriter` finishes."""

    def __init__(self, writer: DurableWriter, path: Path, reserve: int) -> None:
        self._writer = writer
        self._path = path
        self._users = _Users(path)
        self._lock = threading.Lock()
        self._end = 0
        self._failed: OSError | None = None
        with reported("begin", path):
            self._file = writer.begin(path)
            try:
                if reserve:
                    writer.files.reserve(self._file.descriptor, reserve)
                self._direct, self._alignment = _open_direct(writer.files, self._file)
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
                self._failed = error
                raise
        with self._lock:
            self._end = max(self._end, offset + len(view))

    def commit(self, length: int) -> None:
        """See `Sink.commit`."""
        self._check(length)
        if not self._users.end():
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
        """See `Sink.abort`."""
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
        files, part = self._writer.files, _next_part(offset, len(data), self._alignment)
        if self._direct is not None and _is_whole(offset, part, self._alignment):
            with contextlib.suppress(OSError) as _, _only_einval():
                return files.write(self._direct, data[:part], offset)
        return files.write(self._file.descriptor, data[:part], offset)

    def _check(self, length: int) -> None:
        if self._users.busy:
            raise InvalidInput(f"{self._path} cannot be committed while other threads still write to it")
        if self._failed is not None:
            raise StorageUnavailable(f"{self._path} cannot be committed: an earlier write failed ({self._failed})")
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
