"""A request to stop, noticed at the next boundary: SIGTERM, SIGUSR1 and the first Ctrl-C set a flag, nothing else.

Saving inside a handler could catch the state in the middle of a step. Earlier
handlers still run; ours live only while the training loop does, so that
nothing is changed for the rest of the program. A Ctrl-C after any request is
what it always is: whoever presses it again does not want to wait.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from holdfast.state.loaders_shield import SIGNALS

logger = logging.getLogger(__name__)

WATCHED = SIGNALS


_loops: list[StopRequests] = []
"""The loops of this process that run now: whichever ends first leaves the handlers to the others."""

_earlier: dict[signal.Signals, Any] = {}
"""What was installed before the first of them."""


class StopRequests:
    """A context in which the watched signals ask the loop to stop.

    Outside the main thread Python cannot install handlers: a warning says so, and the loop runs without.
    """

    def __init__(self) -> None:
        self.wake: int | None = None
        """A descriptor that is told of signals at once, also while the main thread is inside a library."""
        self._waking = False
        self._asked: str | None = None
        self._asked_at = 0.0

    @property
    def asked(self) -> str | None:
        """The name of the signal that asked, or None."""
        return self._asked

    def ask(self, name: str) -> None:
        """The signal ``name`` has come."""
        self._asked, self._asked_at = name, time.monotonic()

    def waited(self, seconds: float) -> bool:
        """Whether somebody has asked, at least so many seconds ago."""
        return self._asked is not None and time.monotonic() - self._asked_at >= seconds

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            logger.warning("the loop runs outside the main thread: SIGTERM will end it without a last checkpoint")
            return self
        if not _loops:
            _earlier.update({number: signal.signal(number, _handler) for number in WATCHED})
        _loops.append(self)
        self._wake_others()
        if self._asked == signal.SIGINT.name:
            self._asked = None  # whoever pressed Ctrl-C and then runs another loop wants it to run
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self not in _loops:
            return
        _loops.remove(self)
        if self._waking:
            signal.set_wakeup_fd(-1)
            self._waking = False
        if not _loops:
            _put_back()

    def _wake_others(self) -> None:
        if self.wake is None:
            return
        earlier = signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        self._waking = earlier in (-1, self.wake)
        if not self._waking:
            signal.set_wakeup_fd(earlier)  # asyncio, for example, cannot do without
            logger.info("signals are not passed on to the saver at once: something else has the wakeup descriptor")


def _put_back() -> None:
    for number, earlier in _earlier.items():
        if signal.getsignal(number) is _handler:  # else the program has installed another one meanwhile
            # None: the earlier handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
    _earlier.clear()


def _handler(number: int, frame: FrameType | None) -> None:
    again = any(loop.asked for loop in _loops)
    for loop in tuple(_loops):
        loop.ask(signal.Signals(number).name)
    earlier: Callable[[int, FrameType | None], object] | Any = _earlier.get(signal.Signals(number))
    if callable(earlier) and (again or earlier is not signal.default_int_handler):
        earlier(number, frame)
