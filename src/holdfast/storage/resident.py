"""Which parts of a file the page cache has, asked without reading anything.

By ``mincore`` on a mapping that is never touched. Not by a read with
``RWF_NOWAIT``: a miss starts read-ahead of the whole range, so every cold byte
would be read twice, once into the cache and once past it (measured: half speed).
"""

from __future__ import annotations

import ctypes
import mmap

_LIBC = ctypes.CDLL(None, use_errno=True)
_LOWEST_BIT = bytes(value & 1 for value in range(256))
_FAILED = ctypes.c_void_p(-1).value


class ResidentPages:
    """The pages of one open file; thread-safe until closed. Knows nothing, and says no, where the system does not tell.

    A process that neither owns nor may write the file is told yes, always.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._size = size
        self._address = _map(descriptor, size)

    def have(self, offset: int, length: int) -> bool:
        """Whether all pages of a range inside the file are in memory."""
        start = offset - offset % mmap.PAGESIZE
        end = min(offset + length, self._size)
        if self._address is None or start >= end:
            return False
        found = ctypes.create_string_buffer(-(-(end - start) // mmap.PAGESIZE))
        asked = (ctypes.c_void_p(self._address + start), ctypes.c_size_t(end - start), found)
        return _LIBC.mincore(*asked) == 0 and found.raw.translate(_LOWEST_BIT).count(1) == len(found)

    def close(self) -> None:
        """Give the mapping up; idempotent."""
        if self._address is not None:
            _LIBC.munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self._size))
            self._address = None


def _map(descriptor: int, size: int) -> int | None:
    if size == 0 or not hasattr(_LIBC, "mincore"):
        return None
    _LIBC.mmap.restype = ctypes.c_void_p
    length, offset = ctypes.c_size_t(size), ctypes.c_int64(0)
    address: int | None = _LIBC.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
    return None if address == _FAILED else address
