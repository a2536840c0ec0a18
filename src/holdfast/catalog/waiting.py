"""Waiting with a deadline: every wait of the catalog goes through here, on a monotonic clock.

Example:
    >>> Waiter().until(lambda: True, seconds=0.0)
    True
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A clock and a way to sleep, replaceable so that tests need no real time. Thread-safe."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until(self, done: Callable[[], bool], *, seconds: float) -> bool:
        """Whether ``done()`` became true within ``seconds``; asked at least once, and again at growing intervals."""
        end, pause = self.now() + seconds, FIRST_PAUSE
        while not done():
            left = end - self.now()
            if left <= 0:
                return False
            self.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)
        return True
