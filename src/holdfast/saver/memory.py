"""Memory that two processes share and that outlives either of them: memfd, else a file without a name.

Not /dev/shm: containers give it 64 MB, and the first byte too many kills the
process that writes it. A memfd has no name, so nothing is left behind, and
its pages are set aside before they are touched, so a lack of memory is an
error and not a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import tempfile
import threading
from typing import Self

from holdfast.errors import SaveFailed
from holdfast.saver.forks import blind, same_file

_LIBC = ctypes.CDLL(None, use_errno=True)
_POPULATE_WRITE = 23
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_READ_WRITE = 0x1 | 0x2
_ZEROS_HERE = 0x02 | 0x10 | 0x20 | 0x4000
"""MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE."""
_serials = itertools.count(1)

PIECE = 2 * 1024 * 1024
"""Set aside and given back as a whole."""
_MAPPED = 64 * 1024 * 1024
"""Mapped in one go: the end of the program does not wait for more."""


class Slab:
    """One piece of shared memory of a fixed length, of which only what was touched or set aside costs memory.

    Thread-safe but for `close`.
    """

    def __init__(self, descriptor: int, length: int, serial: int = 0) -> None:
        self.descriptor, self.length, self.serial = descriptor, length, serial
        self._map = mmap.mmap(descriptor, length)
        self.memory = memoryview(self._map)
        self._reserved: set[int] = set()
        self._lock = threading.Lock()

    @classmethod
    def make(cls, length: int) -> Self:
        """A new one; its descriptor can be passed to another process.

        Raises:
            SaveFailed: neither a memfd nor a file could be made.
        """
        length = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = _descriptor()
        try:
            os.ftruncate(descriptor, length)
            return cls(descriptor, length, next(_serials))
        except OSError as error:
            os.close(descriptor)
            raise SaveFailed(f"{length} bytes of shared memory could not be mapped: {error}") from error

    @property
    def address(self) -> int:
        """Where it is mapped in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def reserve(self, start: int, length: int, stop: threading.Event | None = None) -> None:
        """Sets the pages of a range aside, so that touching them cannot fail; with ``stop`` set it ends early.

        Raises:
            SaveFailed: there is no memory (or, for a file, no space) for it.
        """
        for piece in range(start // PIECE, -(-(start + length) // PIECE)):
            if stop is not None and stop.is_set():
                return
            with self._lock:
                if piece not in self._reserved:
                    self._reserve(piece * PIECE)
                    self._reserved.add(piece)

    def populate(self, start: int, length: int, stop: threading.Event) -> None:
        """Maps a range into this process, so that the first copy into it does not pay for page faults."""
        base = self.address
        for at in range(start // mmap.PAGESIZE * mmap.PAGESIZE, start + length, _MAPPED):
            if stop.is_set():
                return
            # Through ctypes, for it lets other threads run meanwhile; an old kernel refuses, and faults come later.
            size = min(_MAPPED, start + length - at)
            _LIBC.madvise(ctypes.c_void_p(base + at), ctypes.c_size_t(size), _POPULATE_WRITE)

    def release(self, start: int, length: int) -> None:
        """Gives the memory of whole pieces inside a range back; they read as zeros afterwards."""
        first, last = -(-start // PIECE), (start + length) // PIECE
        if last <= first:
            return
        with self._lock:
            size = (last - first) * PIECE
            mode, at = ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE), ctypes.c_int64(first * PIECE)
            if hasattr(_LIBC, "fallocate"):
                _LIBC.fallocate(ctypes.c_int(self.descriptor), mode, at, ctypes.c_int64(size))
            self._reserved -= set(range(first, last))

    def close(self) -> None:
        """Lets it go here; the mapping stays while anything looks at it, and the memory while any process has it.

        Idempotent: the number of a descriptor that was closed may be that of another file of the program by now.
        Not unmapped by force: torch keeps no count of what it was given, and would read what is not there.
        """
        if self.descriptor < 0:
            return
        self._map = mmap.mmap(-1, 1)
        self.memory = memoryview(b"")
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)

    def left_behind(self) -> None:
        """For a forked child: it has no part in this memory, and whatever still looks at it there sees zeros.

        Raises:
            OSError: its descriptors could not be let go.
        """
        address, length = ctypes.c_void_p(self.address), ctypes.c_size_t(self.length)
        # Not unmapped: something else would be mapped there, and be lost when the map is collected as garbage.
        _LIBC.mmap(address, length, _READ_WRITE, _ZEROS_HERE, -1, ctypes.c_int64(0))
        blind(list(same_file(self.descriptor)))

    def _reserve(self, start: int) -> None:
        try:
            os.posix_fallocate(self.descriptor, start, min(PIECE, self.length - start))
        except OSError as error:
            raise SaveFailed(
                f"no memory for the staged state ({self.length >> 20} MiB): {error}; give ram_budget=, or free some"
            ) from error


def _descriptor() -> int:
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # forbidden by a sandbox, for example
            return os.memfd_create("holdfast", os.MFD_CLOEXEC)
    try:
        with tempfile.TemporaryFile(prefix="holdfast-") as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise SaveFailed(f"no shared memory: neither memfd_create nor a temporary file works: {error}") from error
