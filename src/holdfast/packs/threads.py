"""Threads that stay for the next call: to start new ones costs more than most of what is done at once here.

They serve short work that must not wait for other work of theirs, with the priority that the process has. What lowers
its priority needs threads of its own: `holdfast.packs.parallel`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MANY = 16
"""Threads at most: for objects of a store far away, the processors being fewer. They are started as they are needed."""

T = TypeVar("T")
U = TypeVar("U")

_pools: list[ThreadPoolExecutor] = []
_making = threading.Lock()
_own = threading.local()


def start(work: Callable[[], T]) -> Future[T]:
    """Has a thread do the work, as soon as one is free; not from within such work. Thread-safe."""
    with _making:
        if not _pools:
            _pools.append(ThreadPoolExecutor(MANY, "holdfast", initializer=_mark))
        return _pools[0].submit(work)


def in_parallel(work: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """What ``work`` gives for each, in order; the first error is raised when all have ended. Thread-safe.

    Example:
        >>> in_parallel(len, ["a", "bb"])
        [1, 2]
    """
    found = list(items)
    if len(found) < 2 or getattr(_own, "marked", False):
        return [work(item) for item in found]
    futures = [start(lambda item=item: work(item)) for item in found]  # type: ignore[misc]
    failed = [error for future in futures if (error := future.exception()) is not None]
    if failed:
        raise failed[0]
    return [future.result() for future in futures]


def _mark() -> None:
    _own.marked = True


def _forget() -> None:
    # A forked child has the pool and none of its threads; the lock may have been held by one.
    global _making
    _pools.clear()
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
