"""A training that was asked to stop: a checkpoint in time, or word that the last one stands; then it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.errors import HoldfastError, SaveFailed, Unhealthy
from holdfast.records import Kind, Record, Target
from holdfast.recovery.environment.grace import expected_seconds, lacking
from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.saving.boundary_saves import BoundarySaves
from holdfast.recovery.saving.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: "temporary failure, the user is invited to retry"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """How a training ended that was asked to stop.

    Example:
        >>> Preemption(signal="SIGTERM", step=500, record=None, durable=False, left=12.0).exit_code
        75
    """

    signal: str
    """What has asked: the name of a signal, or what a cloud's notice says."""
    step: int
    """Completed optimizer steps."""
    record: Record | None
    """The newest durable checkpoint, with which the next launch begins; None: there is none."""
    durable: bool
    """Whether that is of this very step."""
    left: float | None
    """Seconds until the process is killed; None: nobody says."""
    again: bool = True
    """Whether to start it again; not if the health checks have stopped it."""

    @property
    def exit_code(self) -> int:
        """What to leave the program with: 75, so that whoever started it starts it again, or that of `Unhealthy`."""
        return EXIT_CODE if self.again else Unhealthy.exit_code


Hook = Callable[[Preemption], object]


class Preempting:
    """One per launch. Not thread-safe.

    Args:
        stops: what has asked.
        saves: of the boundary.
        checkpoints: what is durable.
        after: the journal.
        hook: called once, with what has become of it.
    """

    def __init__(
        self,
        stops: StopRequests,
        saves: BoundarySaves,
        checkpoints: Checkpoints,
        after: Afterwards,
        hook: Hook | None,
    ) -> None:
        self._stops, self._saves, self._checkpoints = stops, saves, checkpoints
        self._after, self._hook = after, hook
        self.forget()

    def forget(self) -> None:
        """The training goes on, after a Ctrl-C for example."""
        self.facts: Preemption | None = None
        """Once it is over."""
        self._decided = False
        self._given_up: str | None = None
        self.ailing: str | None = None
        """Why the health checks have stopped the training, if they have."""

    def repeated(self, stop: str) -> None:
        """Another loop begins all the same: of a script with a loop over its epochs each of them."""
        level = logging.WARNING if self.facts is None else logging.DEBUG
        logger.log(level, "%s has asked to stop, so the loop ends at once", stop)

    def lacks(self) -> float:
        """By how many seconds a save that begins now would miss the end; minus infinity if nobody knows of an end."""
        flying = time.monotonic() - self._saves.began if self._checkpoints.in_flight else None
        here = self._saves.here is not None
        return lacking(self._stops.left, expected_seconds(self._checkpoints.typical, flying, same=here))

    def ails(self, why: str, refused: str | None) -> None:
        """The health checks have stopped the training; ``refused`` is why its state is not to be saved."""
        self.ailing = why
        if refused is not None:
            self.refuse(refused)

    def refuse(self, why: str) -> None:
        """The state of this boundary is not to be saved."""
        self._decided, self._given_up = True, why

    def save(self, stop: str, lacks: float) -> None:
        """The checkpoint of this boundary, unless there is one, or it would not be durable in time.

        Args:
            stop: what has asked.
            lacks: as `lacks` on this rank, or of the rank with the least time; all ranks have the same.

        Raises:
            HoldfastError: as `BoundarySaves.save`.
        """
        if self._saves.here is not None or self._decided:
            return
        self._decided = True
        if lacks < 0:
            self._begin(stop)
            return
        typical, grace = self._checkpoints.typical or 0.0, self._stops.grace
        why = f" ({grace.why})" if grace else ""
        takes = f"a save takes about {typical:.1f} s and would end {lacks:.1f} s after the time that is left{why}"
        self._given_up = f"{stop} asked to stop, and {takes}"

    def _begin(self, stop: str) -> None:
        try:
            self._saves.save(Kind.PREEMPTED, f"{stop} asked to stop")
        except SaveFailed as error:  # the wait for memory has taken all the time: the last one stands
            if (left := self._stops.left) is None or left > 0:
                raise
            self._given_up = f"{stop} asked to stop, and {error}"

    def conclude(self, stop: str, step: int, *, first: bool = True) -> None:
        """Waits for what is in flight as long as there is time, says what stands, and calls the hook.

        Args:
            stop: what has asked.
            step: completed steps.
            first: whether this is rank 0.

        Raises:
            HoldfastError: the save has failed; after the hook was called.
            Exception: what the hook raises.
        """
        if self.facts is not None:
            return
        failed: HoldfastError | None = None
        try:
            self._checkpoints.await_until(lambda: self._stops.left)
        except HoldfastError as error:
            failed = error
        self.facts = self._found(stop, step)
        self._say(self.facts, failed)
        if first and self._hook is not None and self.ailing is None:
            self._hook(self.facts)
        if failed is not None:
            raise failed

    def _found(self, stop: str, step: int) -> Preemption:
        record, here = self._checkpoints.last, self._saves.here
        same = record is not None and (Target.of(record.address) == here or (here is None and record.step == step))
        return Preemption(
            signal=stop, step=step, record=record, durable=same, left=self._stops.left, again=self.ailing is None
        )

    def _say(self, facts: Preemption, failed: HoldfastError | None) -> None:
        stands = f"{facts.record.address} stands" if facts.record else "there is no checkpoint"
        if facts.durable:
            text = f"{facts.signal} asked to stop at step {facts.step}: saved as {stands.removesuffix(' stands')}"
        elif why := self._given_up or failed or self._checkpoints.failure:
            text = f"step {facts.step} is not saved: {why}; {stands}"
        elif facts.left is None and not self._checkpoints.in_flight:
            text = f"step {facts.step} is not saved; {stands}"
        else:
            over = "" if facts.left is None else ", and the time is over"
            text = f"step {facts.step} is not durable yet{over}; until it is, {stands}"
        logger.log(logging.INFO if facts.durable else logging.ERROR, "%s", text)
        self._after.note(
            "preempted" if self.ailing is None else "stopped",
            text,
            signal=facts.signal,
            step=facts.step,
            durable=facts.durable,
            left=facts.left,
        )
        self._after.close()  # now: whoever asked may not wait for the end of the program
