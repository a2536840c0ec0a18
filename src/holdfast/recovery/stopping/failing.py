"""A training that fails: a checkpoint where the state is that of the last boundary still, else the reason why not."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping

from holdfast.records import Kind
from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.ranks.group import Group
from holdfast.recovery.saving.boundary_saves import BoundarySaves
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.recovery.saving.place import Place
from holdfast.recovery.steps.progress import Progress
from holdfast.recovery.stopping.classifying import Cause, cause_of
from holdfast.state.finite import nonfinite_parameter
from holdfast.state.gradients import clear_gradients

logger = logging.getLogger(__name__)

TOGETHER_SECONDS = 5.0
"""How long a rank that fails waits for the others to do so, too: they do at once, or are in the middle of a step."""

TRACEBACK = 8000
"""Characters of a traceback that the journal keeps: its end, where the error is."""


class Failing:
    """One per launch. Not thread-safe.

    Args:
        objects: what is registered.
        group: of ranks: a state that lies on several is saved if all of them have failed at the same boundary.
        progress: the step, and what has changed since.
        place: in the data.
        saves: of the boundary.
        checkpoints: what is durable.
        stops: whether there is a time by which all has to be done.
        torn: whether the live state may be half of one checkpoint and half of another.
    """

    def __init__(
        self,
        objects: Mapping[str, object],
        group: Group,
        *,
        progress: Progress,
        place: Place,
        saves: BoundarySaves,
        checkpoints: Checkpoints,
        stops: StopRequests,
        torn: Callable[[], bool],
    ) -> None:
        self._objects, self._group, self._torn = objects, group, torn
        self._progress, self._place, self._saves = progress, place, saves
        self._checkpoints, self._stops = checkpoints, stops

    def undone(self, error: BaseException) -> bool:
        """Whether a step that ran out of memory has changed nothing that counts, so that it can be left out."""
        stepped = self._progress.counter.seen or self._progress.counter.torn
        if self._group.size > 1 or cause_of(error) is not Cause.OUT_OF_MEMORY or stepped:
            return False
        clear_gradients(self._objects.values())
        return True

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
            if (why := self.together(why)) is not None:
                return why
            self._saves.save(Kind.FAILED, f"the training ended with {name}")
        except Exception as error:  # the rest of the end has to be done all the same
            return f"it could not be saved: {type(error).__name__}: {error}"
        return None

    def _why_not(self, cause: Cause, *, inside: bool) -> str | None:
        if cause is Cause.DEVICE_LOST:
            return "after such an error nothing on the device can be read"
        if cause is Cause.OURS:
            return "holdfast has ended it, and not the program"
        return None if inside else "it came outside of the loop, where nobody watches what changes"

    @property
    def _nothing_new(self) -> str | None:
        """Restart after restart would push every older checkpoint out of the retention."""
        last, step = self._checkpoints.last, self._progress.step
        if step == 0:
            return "no step was made"
        return "there is a checkpoint of it" if self._saves.here or (last is not None and last.step == step) else None

    def back(self) -> str | None:
        """Makes the live state that of the boundary again, as far as it is not; else why not."""
        if self._torn():
            return "a restore has failed in its middle, so the state may be half of another checkpoint"
        if self._progress.in_body and not self._place.told:
            return "the loader cannot say where it was before the batch at hand"
        if self._place.lost:
            return "the loader cannot say where it was before the fetch that failed"
        why = self._progress.back()
        if why is None and (bad := nonfinite_parameter(self._objects.items())):
            return f"{bad} has a NaN or an infinity in it"
        return why

    def together(self, why: str | None) -> str | None:
        """Why the state of all ranks cannot be saved: each of them has a part of it; None: all are at this boundary.

        Args:
            why: the same for this rank; it does not wait for the others then.
        """
        here, group = f"at step {self._progress.step}", self._group
        if group.size == 1:
            return why
        patience = self._patience
        if why is None and patience <= 0:
            why = "there is no time left"
        said = group.at_the_end(f"{here}: {why}" if why else here, 0.0 if why else patience)
        if why is not None:
            return why
        if said is None:
            return f"not all of the {group.size} ranks have failed with it: the others may be in the middle of a step"
        refused = [f"rank {rank} is {text}" for rank, text in enumerate(said) if text != here]
        return "; ".join(refused[:2]) or None

    @property
    def _patience(self) -> float:
        left = self._stops.left
        return TOGETHER_SECONDS if left is None else max(0.0, min(TOGETHER_SECONDS, left))


def traced(error: BaseException) -> str:
    """Its traceback, as much as the journal keeps."""
    return "".join(traceback.format_exception(error))[-TRACEBACK:]
