"""A request to stop, noticed at the next boundary: SIGTERM and SIGUSR1 set a flag, and nothing else.

Saving inside a handler could catch the state in the middle of a step. Earlier
handlers still run; ours live only while the training loop does, so that
nothing is changed for the rest of the program.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)

WATCHED = (signal.SIGTERM, signal.SIGUSR1)


class StopRequests:
    """A context in which the watched signals ask the loop to stop.

    Outside the main thread Python cannot install handlers: a warning says so, and the loop runs without.
    """

    def __init__(self) -> None:
        self._asked: str | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> str | None:
        """The name of the signal that asked, or None."""
        return self._asked

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            logger.warning("the loop runs outside the main thread: SIGTERM will end it without a last checkpoint")
            return self
        for number in WATCHED:
            self._earlier[number] = signal.signal(number, self._handler)
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        for number, earlier in self._earlier.items():
            # None: the earlier handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
        self._earlier.clear()

    def _handler(self, number: int, frame: FrameType | None) -> None:
        self._asked = signal.Signals(number).name
        earlier: Callable[[int, FrameType | None], object] | Any = self._earlier.get(signal.Signals(number))
        if callable(earlier):
            earlier(number, frame)
