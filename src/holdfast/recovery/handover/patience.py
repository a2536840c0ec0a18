"""How long a save waits for memory that earlier saves hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

SLOT_SECONDS = 600.0
"""How long a save waits for a place in memory while earlier ones are being saved; then it has failed."""
STOPPING_SECONDS = 10.0
"""How long a training that is to stop waits for saves that do not get on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Back-pressure has an end: with the saver's silence, and with the time that a signal has left."""

    stopping: Callable[[], bool]
    """Whether the training was asked to stop: then there is no time to wait for a disk that is full."""
    left: Callable[[], float | None]
    """Seconds until this process is killed, less than 0 if it should be dead; None: nobody says."""

    def at_most(self, seconds: float) -> float:
        """So many seconds, or what is left."""
        left = self.left()
        return seconds if left is None else max(0.0, min(left, seconds))

    def over(self, *, heard: float, gets_on: float) -> str | None:
        """Why it is of no use to wait any longer; None: it is.

        Args:
            heard: when the saver was heard last, or the wait began, by the monotonic clock.
            gets_on: when it was heard last that a save gets on, or the wait began.

        Example:
            >>> dying = Patience(stopping=lambda: True, left=lambda: -0.1)
            >>> dying.over(heard=time.monotonic(), gets_on=time.monotonic())
            'earlier saves hold all staging memory, and the time that was left is over'
        """
        now = time.monotonic()
        if self.at_most(SLOT_SECONDS) <= 0:
            return "earlier saves hold all staging memory, and the time that was left is over"
        if now >= heard + SLOT_SECONDS:
            return f"earlier saves hold all staging memory and say nothing for {SLOT_SECONDS:.0f} s"
        if self.stopping() and now >= gets_on + STOPPING_SECONDS:
            return "the training is to stop, and earlier saves hold all staging memory and wait"
        return None
