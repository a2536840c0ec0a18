"""The threads of one call: all have ended their work before it returns, out of the way of others if asked."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from holdfast.packs import threads

T = TypeVar("T")

THREADS = 4
"""While some wait for the device, the others hash: on two cores four were measured faster than three, six no faster."""


class Stop(Protocol):
    """Tells a thread to end after the work at hand; a `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to end."""
        ...


class Pace(NamedTuple):
    """How much of the processor threads shall leave to others, and until when.

    Linux alone has priorities per thread; elsewhere nothing is lowered. Where the kernel groups tasks by session
    (``/proc/sys/kernel/sched_autogroup_enabled``), they count within one session only.
    """

    nice: int
    """1 to 19: the priority to which threads lower themselves."""
    hurry: threading.Event
    """Once it is set, threads of the caller's own priority do the rest."""


def run_threads(count: int, work: Callable[[Stop], None], pace: Pace | None = None) -> None:
    """Run ``work(stop)`` on ``count`` threads; the first error sets ``stop``, waits for all, and is raised.

    ``work`` returns when there is nothing left to do, or soon after ``stop`` is set; with ``pace`` it may be called
    again after that, on other threads, for what is left: a priority that was lowered cannot be raised again without
    privilege, so threads that shall hurry are new ones. Thread-safe.
    """
    stop = threading.Event()
    count = max(1, count)
    if pace is None:
        _await({threads.start(partial(work, stop)) for _ in range(count)}, stop, lambda _: None)
        return
    # New threads inherit the priority of the one that makes them, so this one makes them all and stays as it is.
    with _pool(count) as quick, _pool(count) as nice:
        lowered = {nice.submit(_nicely, work, stop, pace) for _ in range(count)}
        _await(lowered, stop, lambda left: quick.submit(work, stop) if left else None)


def _await(running: set[Future[T]], stop: threading.Event, after: Callable[[T], Future[Any] | None]) -> None:
    """Until all have ended, and what comes ``after`` them; the first error is raised then."""
    left: set[Future[Any]] = {*running}
    try:
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            for future in done:
                if (more := after(future.result())) is not None:
                    left.add(more)
    except BaseException:
        stop.set()
        wait(left)
        raise


def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="holdfast-packs")


@dataclass(slots=True)
class _Either:
    stop: threading.Event
    hurry: threading.Event
    hurried: bool = False
    """Whether it was urgent at some look: what has ended for that has to be done, urgent or not by then."""

    def is_set(self) -> bool:
        self.hurried = self.hurried or self.hurry.is_set()
        return self.hurried or self.stop.is_set()


def _nicely(work: Callable[[Stop], None], stop: threading.Event, pace: Pace) -> bool:
    """Does the work until it is urgent; whether another thread must do the rest, with its full priority."""
    either = _Either(stop, pace.hurry)
    if not either.is_set():
        lower_priority(pace.nice)
        work(either)
    return either.hurried


def lower_priority(nice: int) -> None:
    """Lower the priority of the calling thread to ``nice`` if it is higher; off Linux, or not allowed: does nothing."""
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, thread) < nice:
            os.setpriority(os.PRIO_PROCESS, thread, nice)
