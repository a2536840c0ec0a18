"""What direct I/O asks of offsets, lengths and addresses, and who may still be using a descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from holdfast.errors import InvalidInput

PAGE = mmap.PAGESIZE

_HUGE = 2 * 1024 * 1024
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", 0)  # Linux only

_LIBC = ctypes.CDLL(None, use_errno=True)
_EMPTY_PATH = 0x1000
_DIOALIGN = 0x2000
_MASK_AT, _MEMORY_AT, _OFFSET_AT = 0, 152, 156  # in struct statx of linux/stat.h


def aligned_buffer(length: int) -> memoryview:
    """Zeroed memory that begins on a page, so that direct I/O needs no copy; long ones ask for huge pages.

    Huge pages make direct writes about a fifth faster (benchmarks/peers.py): the kernel pins 512 times fewer of them,
    and describes as many fewer to the disk.

    Example:
        >>> len(aligned_buffer(8 << 20))
        8388608
    """
    if length < _HUGE or not _ADVICE:
        return memoryview(mmap.mmap(-1, max(length, 1)))[:length]
    # Only private memory gets huge pages everywhere, and only where a whole one fits.
    memory = mmap.mmap(-1, length + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(_ADVICE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _HUGE
    return memoryview(memory)[start : start + length]


LENT_BYTES = 8 * 1024 * 1024
"""Length of the buffers that are lent."""

_spare: deque[memoryview] = deque(maxlen=4)


@contextlib.contextmanager
def lent_buffer() -> Iterator[memoryview]:
    """An `aligned_buffer` of `LENT_BYTES` with anything in it: one that was used before, if there is one.

    To touch new memory can cost more than to read it from the disk: on a virtual machine whose host takes free memory
    back, 5 ms for 2 MiB. At most four are kept; see `drop_buffers`. Thread-safe.
    """
    try:
        buffer = _spare.pop()
    except IndexError:
        buffer = aligned_buffer(LENT_BYTES)
    try:
        yield buffer
    finally:
        _spare.append(buffer)


def drop_buffers() -> None:
    """Gives the memory of buffers back that nobody has at the moment."""
    _spare.clear()


def direct_alignment(descriptor: int) -> int | None:
    """The alignment that direct I/O on this open file wants, at least a page; None where it has none.

    A page at least, whatever the device says, so that no page is ever written both ways.
    """
    facts = ctypes.create_string_buffer(256)
    call = getattr(_LIBC, "statx", None)
    if call is None or call(descriptor, b"", _EMPTY_PATH, _DIOALIGN, facts) != 0:
        return PAGE
    at = ctypes.c_uint32.from_buffer
    if not at(facts, _MASK_AT).value & _DIOALIGN:
        return PAGE  # an old kernel or another filesystem does not say; opening the file tells
    offset, memory = at(facts, _OFFSET_AT).value, at(facts, _MEMORY_AT).value
    return max(PAGE, offset, memory) if offset else None


def next_part(offset: int, length: int, alignment: int) -> tuple[int, bool]:
    """How many bytes to move next, and whether they are whole blocks: a head, then all blocks, then a tail.

    Example:
        >>> next_part(100, 10_000, 4096), next_part(4096, 6_004, 4096), next_part(8192, 1_908, 4096)
        ((3996, False), (4096, True), (1908, False))
    """
    if head := -offset % alignment:
        return min(head, length), False
    blocks = length - length % alignment
    return (blocks, True) if blocks else (length, False)


class Users:
    """Threads at work on a descriptor; the last one to leave does what was left for the end.

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

    def end(self, last: Callable[[], None]) -> bool:
        """Let nobody in any more and run ``last`` once all have left; False if it was ended before."""
        with self._lock:
            if self._ended:
                return False
            self._ended, self._last = True, last
        self._run_if_last()
        return True

    def _run_if_last(self) -> None:
        with self._lock:
            if self._count or self._last is None:
                return
            last, self._last = self._last, None
        last()
