"""A request to stop, noticed at the next boundary: SIGTERM, SIGUSR1 and the first Ctrl-C set a flag, nothing else.

Saving inside a handler could catch the state in the middle of a step. Earlier
handlers still run; ours live only while the training loop does, so that
nothing is changed for the rest of the program. A Ctrl-C after any request is
what it always is: whoever presses it again does not want to wait.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from holdfast.recovery.environment.grace import Grace, KillFacts, grace_after
from holdfast.recovery.environment.signal_names import name_of
from holdfast.state.loaders_shield import SIGNALS, shield_from

logger = logging.getLogger(__name__)

WATCHED = SIGNALS
"""What asks to stop if nobody says otherwise."""

_loops: list[StopRequests] = []
"""The loops of this process that run now: whichever ends last puts a handler back."""

_earlier: dict[int, Any] = {}
"""What was installed before the first of them."""


class StopRequests:
    """A context in which the watched signals ask the loop to stop.

    Outside the main thread Python cannot install handlers: a warning says so, and the loop runs without.

    Args:
        watched: numbers of signals.
        grace: seconds from a signal to the end of the process, as the user says.
        facts: who may kill it, where the user does not say.
    """

    def __init__(
        self, watched: Sequence[int] = WATCHED, *, grace: float | None = None, facts: KillFacts | None = None
    ) -> None:
        self.watched = tuple(watched)
        self.wake: int | None = None
        """A descriptor that is told of signals at once, also while the main thread is inside a library."""
        self._waking = False
        self._given, self._facts = grace, facts or KillFacts()
        self._forget()

    def _forget(self) -> None:
        self._asked: str | None = None
        self._came: int | None = None
        """The signal that was the first to ask, if it was one."""
        self._asked_at = 0.0
        self._ends: float | None = None
        self.grace: Grace | None = None
        """How much time the request left, and who says so."""

    @property
    def asked(self) -> str | None:
        """The name of the first signal that asked, or None."""
        return self._asked

    @property
    def left(self) -> float | None:
        """Seconds until the process is killed, less than 0 if it should be dead; None: nobody says."""
        return None if self._ends is None else self._ends - time.monotonic()

    def ask(self, name: str, grace: Grace | None = None) -> None:
        """The signal ``name`` has come, or something else that says how much time is left. Safe in a handler."""
        now = time.monotonic()
        grace = grace or grace_after(name, self._given, self._facts, time.time())
        if self._asked is None:
            self._asked_at, self.grace, self._asked = now, grace, name
        if grace.seconds is not None and (self._ends is None or now + grace.seconds < self._ends):
            self._ends, self.grace = now + grace.seconds, grace

    def waited(self, seconds: float) -> bool:
        """Whether somebody has asked, at least so many seconds ago."""
        return self._asked is not None and time.monotonic() - self._asked_at >= seconds

    def soon(self, seconds: float) -> str | None:
        """What asks within so many seconds: a signal to a whole job may reach a child before its parent."""
        end = time.monotonic() + seconds
        while self._asked is None and time.monotonic() < end:
            time.sleep(0.01)
        return self._asked

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            logger.warning("the loop runs outside the main thread: SIGTERM will end it without a last checkpoint")
            return self
        if self._asked == signal.SIGINT.name and hasattr(sys, "ps1"):
            self._forget()  # whoever pressed Ctrl-C at a prompt and then runs another loop wants it to run
        _loops.append(self)
        for number in self.watched:
            if number not in _earlier:
                _earlier[number] = signal.signal(number, _handler)
        _shield()
        self._wake_others()
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self not in _loops:
            return
        asked = self._asked
        if self._waking:
            signal.set_wakeup_fd(-1)
            self._waking = False
        # First the handlers, then the loop: a signal in between would meet a handler that tells nobody.
        _put_back({number for loop in _loops if loop is not self for number in loop.watched})
        _loops.remove(self)
        _shield()
        if asked is None and self._came is not None:
            signal.raise_signal(self._came)  # while the loop was ending: it is the program's

    def _wake_others(self) -> None:
        if self.wake is None:
            return
        earlier = signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        self._waking = earlier in (-1, self.wake)
        if not self._waking:
            signal.set_wakeup_fd(earlier)  # asyncio, for example, cannot do without
            logger.info("signals are not passed on to the saver at once: something else has the wakeup descriptor")


_forking = threading.local()
"""The mask of signals before the fork that this thread makes."""


def _before_fork() -> None:
    """Holds back what the loops watch, for until the child has its own handlers a signal would be lost in it."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number for loop in _loops for number in loop.watched})


def _in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _in_child() -> None:
    """In a forked child nobody looks at the flag of a loop: what ends a process ends this one."""
    if any(loop._waking for loop in _loops):
        signal.set_wakeup_fd(-1)
    _put_back(set())
    _loops.clear()
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


def _shield() -> None:
    """Workers that loaders make from now on pass over what the loops watch."""
    shield_from(tuple({number: None for loop in _loops for number in loop.watched}) if _loops else SIGNALS)


def _put_back(needed: set[int]) -> None:
    for number in [number for number in _earlier if number not in needed]:
        earlier = _earlier.pop(number)
        if signal.getsignal(number) is _handler:  # else the program has installed another one meanwhile
            # None: the earlier handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _handler(number: int, frame: FrameType | None) -> None:
    again = any(loop.asked for loop in _loops)
    for loop in tuple(_loops):
        if number in loop.watched:
            loop._came = number if loop.asked is None else loop._came
            loop.ask(name_of(number))
    earlier: Callable[[int, FrameType | None], object] | Any = _earlier.get(number)
    if callable(earlier) and (again or earlier is not signal.default_int_handler):
        earlier(number, frame)
