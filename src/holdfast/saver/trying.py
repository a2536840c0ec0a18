"""A save that fails is tried again, a bounded number of times; a full disk is first cleared, then waited for.

Who saves decides how to wait. What may pass by itself within one operation was tried again by the storage before.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from holdfast.errors import Conflict, Damaged, RecordConflict, SaveFailed, StorageError, StorageFull
from holdfast.ids import RecordId
from holdfast.records import Record
from holdfast.saver.following import Following
from holdfast.saver.jobs import Content, SaveRequest, Shape
from holdfast.saver.saving import Restage, Saving
from holdfast.saver.together import NotTogether

ATTEMPTS = 3
"""Tries of a save before it is given up; a disk that is full does not count as one."""
FIRST_PAUSE = 0.5
"""Seconds before the second try, at most; doubled for the next. The actual pause is random."""
FULL_PAUSE = 5.0
"""Seconds between two looks whether a full disk has room again."""
SAID_EVERY = 60.0
"""Seconds after which it is said again that a full disk is waited for."""


@dataclass(slots=True, kw_only=True)
class Trying:
    """Makes the saves of one launch, one at a time. Not thread-safe."""

    saving: Saving
    following: Following
    pause_when_full: bool
    said: Callable[[int, str], None]
    """Told, with a level of `logging`, what somebody should hear."""
    deleted: Callable[[Sequence[RecordId]], None]
    """Told of the records that had to go to make room."""
    wait: Callable[[float], bool]
    """Waits so many seconds; False: there is no time to wait any longer."""
    last_patience: float = 0.0
    """Seconds for which room is waited for all the same where nobody but this process has the state."""
    draw: Callable[[float, float], float] = field(default_factory=lambda: random.SystemRandom().uniform)

    def save(self, request: SaveRequest, shape: Shape, content: Content) -> Record:
        """As `Saving.save`, after what can be done about its errors."""
        try:
            return self._tried(request, shape, content)
        except Exception as error:
            self.saving.gave_up(request, error)
            raise

    def _tried(self, request: SaveRequest, shape: Shape, content: Content) -> Record:
        failures, full = 0, _Full()
        while True:
            try:
                return self.saving.save(request, shape, content)
            except StorageFull as error:
                self._make_room(error, full)
            except (Restage, NotTogether):
                raise  # the bytes are not here, or others are needed
            except RecordConflict:
                # An earlier saver had done its part, and the checkpoint came while this one began.
                if (record := self.saving.finished(request)) is None:
                    raise
                return record
            except (StorageError, SaveFailed) as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                self.said(logging.WARNING, f"the save of step {request.step} is tried again: {error}")
                pause = self.draw(0, FIRST_PAUSE * 2 ** (failures - 1))
                if not self.wait(pause):
                    time.sleep(pause)  # the trainer is gone: this is the only copy of the state

    def _make_room(self, error: StorageFull, full: _Full) -> None:
        """Removes what retention allows without counting on the new checkpoint; then waits, or gives up.

        Raises:
            StorageFull: there is no room, and nobody wants to wait for it.
        """
        if freed := self._retained():
            self.said(logging.WARNING, f"{error}; retention has removed {len(freed)} checkpoints to make room")
            return
        if not self.pause_when_full:
            raise error
        if full.to_be_said():
            self.said(logging.ERROR, f"{error}; waiting for room, nothing is lost: free some, or grow the disk")
        if not self.wait(FULL_PAUSE):
            if full.waited_at_the_end() >= self.last_patience:
                raise error
            time.sleep(min(FULL_PAUSE, self.last_patience))

    def _retained(self) -> Sequence[RecordId]:
        try:
            freed = self.following.retain()
        except (StorageError, Damaged, Conflict) as error:
            self.said(logging.WARNING, f"retention could not make room: {error}")
            return []
        self.deleted(freed)
        return freed


@dataclass(slots=True)
class _Full:
    """A full disk that one save has met."""

    _said: float | None = None
    _ending: float | None = None

    def waited_at_the_end(self) -> float:
        """Seconds since there was no time to wait any longer for the first time."""
        self._ending = self._ending or time.monotonic()
        return time.monotonic() - self._ending

    def to_be_said(self) -> bool:
        """Whether it was not said for a while."""
        now = time.monotonic()
        if self._said is not None and now - self._said < SAID_EVERY:
            return False
        self._said = now
        return True
