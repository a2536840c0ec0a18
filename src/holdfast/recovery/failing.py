"""A training that fails: a checkpoint where the state is that of the last boundary still, else the reason why not."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping

from holdfast.records import Kind
from holdfast.recovery.boundary_saves import BoundarySaves
from holdfast.recovery.checkpoints import Checkpoints
from holdfast.recovery.classifying import Cause
from holdfast.recovery.place import Place
from holdfast.recovery.progress import Progress
from holdfast.recovery.signals import StopRequests
from holdfast.state.finite import nonfinite_parameter

logger = logging.getLogger(__name__)

TRACEBACK = 8000
"""Characters of a traceback that the journal keeps: its end, where the error is."""


class Failing:
    """One per launch. Not thread-safe.

    Args:
        objects: what is registered.
        size: how many ranks there are.
        progress: the step, and what has changed since.
        place: in the data.
        saves: of the boundary.
        checkpoints: what is durable.
        stops: whether there is a time by which all has to be done.
    """

    def __init__(
        self,
        objects: Mapping[str, object],
        size: int,
        *,
        progress: Progress,
        place: Place,
        saves: BoundarySaves,
        checkpoints: Checkpoints,
        stops: StopRequests,
    ) -> None:
        self._objects, self._size = objects, size
        self._progress, self._place, self._saves = progress, place, saves
        self._checkpoints, self._stops = checkpoints, stops

    def failed(self, error: BaseException, cause: Cause, *, inside: bool, dropped: str) -> None:
        """Saves what can be saved, and says why not if it cannot; raises nothing.

        Args:
            error: what has ended the training.
            cause: what that says about the state.
            inside: whether it came in the loop, where changes are watched.
            dropped: what else is not done because of it, for the log.
        """
        try:
            self._end(error, cause, inside=inside, dropped=dropped)
        except Exception as broken:  # the error that ends the training is the one that has to be seen
            text = "what was to be done at the end of a failed training could not be done"
            logger.error(text, exc_info=broken)

    def _end(self, error: BaseException, cause: Cause, *, inside: bool, dropped: str) -> None:
        name, on_purpose = type(error).__name__, cause is Cause.ON_PURPOSE
        step = self._progress.step
        if not on_purpose:
            why = self._saved(name, cause, inside=inside)
            dropped += f"; step {step} was not saved: {why}" if why else ""
        self._progress.left(told=self._place.told)
        self._checkpoints.interrupted(
            name,
            self._progress.step,
            dropped,
            kind=Kind.PREEMPTED if on_purpose else Kind.FAILED,
            # Whoever presses Ctrl-C again does not wait for anything: the saver finishes by itself.
            left=(lambda: 0.0) if isinstance(error, KeyboardInterrupt) else (lambda: self._stops.left),
            traceback="" if on_purpose else traced(error),
        )

    def _saved(self, name: str, cause: Cause, *, inside: bool) -> str | None:
        """Makes the checkpoint; else why not."""
        try:
            why = self._why_not(cause, inside=inside) or self.back() or self._nothing_new
            if why is not None:
                return why
            self._saves.save(Kind.FAILED, f"the training ended with {name}")
        except Exception as error:  # the rest of the end has to be done all the same
            return f"it could not be saved: {type(error).__name__}: {error}"
        return None

    def _why_not(self, cause: Cause, *, inside: bool) -> str | None:
        if cause is Cause.DEVICE_LOST:
            return "after such an error nothing on the device can be read"
        if cause is Cause.OURS:
            return "it is not the program that has failed"
        if not inside:
            return "it came outside of the loop, where nobody watches what changes"
        if self._size > 1:
            return f"the state lies on {self._size} ranks, and the others may be in the middle of a step"
        return None

    @property
    def _nothing_new(self) -> str | None:
        """Restart after restart would push every older checkpoint out of the retention."""
        last, step = self._checkpoints.last, self._progress.step
        if step == 0:
            return "no step was made"
        return "there is a checkpoint of it" if self._saves.here or (last is not None and last.step == step) else None

    def back(self) -> str | None:
        """Makes the live state that of the boundary again, as far as it is not; else why not."""
        if self._progress.in_body and not self._place.told:
            return "the loader cannot say where it was before the batch at hand"
        why = self._progress.back()
        if why is None and (bad := nonfinite_parameter(self._objects.items())):
            return f"{bad} has a NaN or an infinity in it"
        return why


def traced(error: BaseException) -> str:
    """Its traceback, as much as the journal keeps."""
    return "".join(traceback.format_exception(error))[-TRACEBACK:]
