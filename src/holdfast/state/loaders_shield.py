"""Workers of a loader outlive the signals that ask the training to stop.

Schedulers, service managers and terminals signal all processes of a job at
once. A worker that dies of that takes the training with it before it can
save. So workers that are made within our loops pass over these signals until
the loop lets them go, or the program ends: `multiprocessing` ends its children
by the same signals, and waits for them. Workers watch their parent themselves.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch.multiprocessing
from torch.utils.data import DataLoader

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What workers are shielded from, if nobody says otherwise."""

_DEPTH = 2
# A loader within a wrapper within a wrapper.

_flags: WeakKeyDictionary[DataLoader[Any], tuple[int, Any]] = WeakKeyDictionary()
# By loader, because kept workers may meet several positions; with the process that made it.

_ended_by: set[int] = set()
# Processes that lower all of their shields when they end.


_signals: tuple[int, ...] = SIGNALS


def shield_from(signals: Sequence[int]) -> None:
    """From now on, workers that are made are shielded from these signals; those that exist stay as they are."""
    global _signals
    _signals = tuple(signals)


class ShieldedStart:
    """Stands in for a loader's ``worker_init_fn``; can be pickled if the one of the user can."""

    def __init__(self, own: Callable[[int], Any] | None, up: Any, signals: Sequence[int]) -> None:
        self._own, self._up, self._signals = own, up, tuple(signals)

    def __call__(self, worker: int) -> None:
        """In the worker: shielded, then as the user wants it."""
        for number in self._signals:
            signal.signal(number, self._pass_over)
            signal.siginterrupt(number, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        if self._own is not None:
            self._own(worker)

    def _pass_over(self, number: int, frame: FrameType | None) -> None:
        if not self._up.value:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class Shield:
    """Shields the workers that one loader makes; does nothing for loaders without any."""

    def __init__(self, loader: object) -> None:
        self._loaders = list(_with_workers(loader, _DEPTH))

    @contextmanager
    def over(self) -> Iterator[None]:
        """Within, workers that the loader makes are shielded; the loader itself stays what the user made."""
        before = [(one, one.worker_init_fn) for one in self._loaders]
        for one, own in before:
            if not isinstance(own, ShieldedStart):
                one.worker_init_fn = ShieldedStart(own, _raised(one), _signals)
        try:
            yield
        finally:
            for one, own in before:
                one.worker_init_fn = own

    @contextmanager
    def making(self) -> Iterator[None]:
        """As `over`; signals wait, here and in the new workers, until those are shielded."""
        if not self._loaders:
            yield
            return
        # The server of forkserver would inherit the mask for ever, and with it everything else that it forks.
        waiting = () if any(_forkserver(one) for one in self._loaders) else _signals
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
        try:
            with self.over():
                yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def lower(self) -> None:
        """The loop is over: workers that the loader keeps are what they were."""
        for one in self._loaders:
            if one in _flags:
                _flags[one][1].value = 0


def _with_workers(loader: object, depth: int) -> Iterator[DataLoader[Any]]:
    if isinstance(loader, DataLoader) and loader.num_workers > 0:
        yield loader
    if depth:
        for part in list(getattr(loader, "__dict__", {}).values()):
            if isinstance(part, DataLoader):
                yield from _with_workers(part, depth - 1)


def _raised(loader: DataLoader[Any]) -> Any:
    pid = os.getpid()
    if loader not in _flags or _flags[loader][0] != pid:
        _flags[loader] = pid, _context(loader).RawValue("b", 0)
    if pid not in _ended_by:
        # Before multiprocessing ends the workers that are left, and waits for them.
        _ended_by.add(pid)
        Finalize(None, _lower_all, exitpriority=100)
    flag = _flags[loader][1]
    flag.value = 1
    return flag


def _lower_all() -> None:
    for pid, flag in _flags.values():
        if pid == os.getpid():
            flag.value = 0


def _context(loader: DataLoader[Any]) -> Any:
    return loader.multiprocessing_context or torch.multiprocessing


def _forkserver(loader: DataLoader[Any]) -> bool:
    return bool(_context(loader).get_start_method() == "forkserver")
