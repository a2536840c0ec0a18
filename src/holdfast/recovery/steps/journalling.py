"""What a training notes of its steps, so that its timeline can be told: progress now and then, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from holdfast.catalog.journal.events import Line, exit_event, progress_event

PROGRESS_SECONDS = 30.0
"""How far apart two notes of progress are at least. They wait in memory for the next time the journal is written."""


class Notes(Protocol):
    """See `holdfast.recovery.saving.afterwards.Afterwards.note`."""

    def __call__(self, kind: str, message: str, /, **data: object) -> None:
        """Takes one line."""


class StepNotes:
    """Notes of one rank of one launch. Not thread-safe; makes no write of its own.

    Progress is noted by rank 0, for all ranks make the same steps; the end by each that has something to say.

    Args:
        note: takes a line for the journal.
        launch: its number.
        rank: of this process.
        began: when the launch was claimed, by ``clock``.
        clock: monotonic seconds.

    Example:
        >>> lines, now = [], 0.0
        >>> note = lambda kind, message, **data: lines.append(message)
        >>> notes = StepNotes(note, launch=1, began=0.0, clock=lambda: now)
        >>> for now in (0.0, 10.0, 31.0, 32.0):
        ...     notes.reached(timeline=0, step=int(now), step_seconds=now)
        >>> notes.left(timeline=0, step=33, step_seconds=33.0)
        >>> lines
        ['step 31 after 31.0 s in steps', 'left at step 33 after 33.0 s in steps']
    """

    def __init__(
        self,
        note: Notes,
        *,
        launch: int,
        rank: int = 0,
        began: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._note, self._launch, self._rank, self._clock = note, launch, rank, clock
        self._began, self._noted = began, clock()

    def reached(self, *, timeline: int, step: int, step_seconds: float) -> None:
        """At a boundary: notes how far the training is, if that was not done for a while."""
        now = self._clock()
        if self._rank == 0 and now - self._noted >= PROGRESS_SECONDS:
            self._noted = now
            self._take(progress_event(launch=self._launch, timeline=timeline, step=step, step_seconds=step_seconds))

    def left(self, *, timeline: int, step: int, step_seconds: float) -> None:
        """Before a restore within the launch: this timeline ends here."""
        if self._rank == 0:
            place = {"launch": self._launch, "timeline": timeline, "step": step}
            self._take(progress_event(**place, step_seconds=step_seconds, left=True))

    def ended(
        self, how: str, *, timeline: int, step: int, step_seconds: float, error: BaseException | None = None
    ) -> None:
        """At the end: how the launch ended; of other ranks than the first one only an error is worth a line."""
        if self._rank == 0 or error is not None:
            line = exit_event(
                launch=self._launch,
                timeline=timeline,
                step=step,
                step_seconds=step_seconds,
                how=how,
                wall_seconds=self._clock() - self._began,
                error=error,
                rank=self._rank,
            )
            self._take(line)

    def _take(self, line: Line) -> None:
        self._note(line.kind, line.message, **line.data)
