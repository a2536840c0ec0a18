"""The trainer's side of the watchdog: it says that it is alive, and writes its stacks when the saver asks for them."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator

from holdfast.health import Watchdog
from holdfast.saver.beats import Beats
from holdfast.saver.handle import SaverProcess

logger = logging.getLogger(__name__)

STEPS = 200
"""The last ones, from which a limit is derived."""
_LIMIT_EVERY = 20
"""Steps between two looks at them: a median over all of them is not for every step."""
_ours: set[int] = set()
"""Signals that are ignored while nobody uses them: one may be on its way when nobody writes stacks any more."""
_used: set[int] = set()
"""By trainings of this process."""


class Beating:
    """One per launch. Belongs to the thread that trains.

    Args:
        watchdog: what is wanted; None: nothing is watched.
        asked: whether somebody has asked for it; else it is the default.
    """

    def __init__(self, watchdog: Watchdog | None, *, asked: bool = False) -> None:
        self._watchdog, self._asked = watchdog, asked
        self._beats: Beats | None = None
        self._number = 0
        self._took: deque[float] = deque(maxlen=STEPS)
        self._hung = self._end = 0.0
        self._steps = 0
        self._step = 0
        self._began: float | None = None
        self._whole = True
        """Whether the step at hand tells how long steps take: not one with a pause in it."""
        self._paused = 0

    def nobody_watches(self, why: str) -> None:
        """There is no saver: whoever has asked for a watchdog has to hear of it."""
        if self._watchdog is not None and self._asked:
            logger.warning("the watchdog does not work: %s, so nobody is there to watch this process", why)

    @property
    def signal(self) -> int:
        """The signal upon which this process writes its stacks; 0: none."""
        return self._number

    def attach(self, process: SaverProcess, taken: Collection[int]) -> None:
        """Has a saver watch; before it is started.

        Args:
            process: the saver.
            taken: signals that ask the training to stop: their handlers are installed in the loop, and later than this.
        """
        if self._watchdog is None:
            return
        self._number = _register(process, taken)
        if self._number:
            self._beats = Beats(process.control.slab)

    def enter(self, step: int) -> None:
        """The next step is under way from here on."""
        self._step, self._began, self._whole = step, time.monotonic(), not self._paused
        self.alive()

    def leave(self) -> None:
        """A boundary: what happens there has deadlines of its own."""
        if self._beats is None:
            return
        if self._began is not None and self._whole:
            self._took.append(time.monotonic() - self._began)
            self._steps += 1
        self.rest()

    def rest(self) -> None:
        """No step is under way: before and after a loop, and at its end."""
        self._began = None
        if self._beats is not None:
            self._beats.rest()

    def alive(self) -> None:
        """A sign of life in the middle of a step, from an evaluation perhaps."""
        if self._beats is None or self._watchdog is None or self._began is None or self._paused:
            return
        if sys.gettrace() is not None:
            self._beats.rest()  # a person steps through it
            return
        if self._steps % _LIMIT_EVERY == 0 or not self._hung:
            self._hung, self._end = self._watchdog.limits(self._took)
        self._beats.beat(self._step, self._hung, self._end)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is watched."""
        self._paused += 1
        self._whole = False
        if self._beats is not None:
            self._beats.rest()
        try:
            yield
        finally:
            self._paused -= 1
            self.alive()

    def close(self) -> None:
        """Nothing is watched any more; before the saver's memory is let go."""
        if self._beats is not None:
            self._beats.rest()
            self._beats.release()
            self._beats = None
        if self._number:
            faulthandler.unregister(self._number)
            _used.discard(self._number)
            self._number = 0


def _register(process: SaverProcess, taken: Collection[int]) -> int:
    """A signal that nobody uses; 0: there is none."""
    for number in range(signal.SIGRTMIN + 8, signal.SIGRTMAX - 2):
        if (
            number in _used
            or number in taken
            or (number not in _ours and signal.getsignal(number) is not signal.SIG_DFL)
        ):
            continue
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.SIG_IGN)
            _ours.add(number)
        faulthandler.register(number, file=process.stacks, all_threads=True, chain=False)
        _used.add(number)
        return int(number)
    logger.warning("the watchdog does not work: every real-time signal is taken")
    return 0
