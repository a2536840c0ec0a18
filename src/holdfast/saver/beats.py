"""Signs of life of a training, in shared memory: when it made its last step, and when it would count as hung.

    words of 8 bytes, behind the rows of `holdfast.saver.control`
       step: completed optimizer steps
       beat: when the training was last known to get on, ns of CLOCK_MONOTONIC, which stands still in suspend
       hung: ns without a beat after which it counts as hung; 0: it is not watched now
       end: ns without a beat after which it is ended; 0: never
       (of both, only those count in which it could have gone on: `holdfast.saver.watching`)

The trainer writes, the saver reads; a reading between two writes is a moment early or late, and no more than that.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from holdfast.saver.memory import Slab

_AT = 1024
_BYTES = 32
_SECOND = 1_000_000_000


class Beat(NamedTuple):
    """What the saver sees."""

    step: int
    hung: float
    """Seconds; 0: not watched now."""
    end: float
    """Seconds; 0: never."""
    at: int
    """When, by CLOCK_MONOTONIC in ns: tells one silence from the next."""


class Beats:
    """The words, in the slab of the control words."""

    def __init__(self, slab: Slab) -> None:
        self._words = slab.memory[_AT : _AT + _BYTES].cast("Q")

    def beat(self, step: int, hung: float, end: float) -> None:
        """The training gets on, and is watched from now on; limits in seconds, 0 for none."""
        words = self._words
        words[2] = 0  # not watched, while it is written
        words[0], words[1], words[3] = step, time.monotonic_ns(), int(end * _SECOND)
        words[2] = int(hung * _SECOND)

    def rest(self) -> None:
        """It is not watched, until the next beat."""
        self._words[2] = 0

    def read(self) -> Beat:
        """What stands there."""
        step, at, hung, end = self._words.tolist()
        return Beat(step, hung / _SECOND, end / _SECOND, at)

    def release(self) -> None:
        """Lets the memory go."""
        self._words.release()
