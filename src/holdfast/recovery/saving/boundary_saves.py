"""The checkpoint of the boundary at which the training stands: there is one at most."""

from __future__ import annotations

import time
from typing import Any

from holdfast.records import Kind, Target
from holdfast.recovery.launching.session import Session
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.recovery.saving.place import Place
from holdfast.recovery.saving.taking import Taking
from holdfast.recovery.saving.triggers import Trigger
from holdfast.recovery.steps.progress import Progress
from holdfast.saver import SaveRequest
from holdfast.state import Snapshot, rng


class BoundarySaves:
    """One per launch. Not thread-safe.

    Args:
        session: the launch.
        checkpoints: take what is captured here.
        taking: captures.
        place: in the data.
        progress: the step.
        trigger: the policy of saving, told of every save.
        stage: the policy of keeping a reserve, if there is one.
    """

    def __init__(
        self,
        session: Session,
        checkpoints: Checkpoints,
        taking: Taking,
        place: Place,
        progress: Progress,
        *,
        trigger: Trigger,
        stage: Trigger | None,
    ) -> None:
        self._session, self._checkpoints, self._taking = session, checkpoints, taking
        self._place, self._progress = place, progress
        self._trigger, self._stage = trigger, stage
        self.metrics: dict[str, Any] = {}
        """Of the boundary."""
        self.latest: tuple[Kind, str, int] = (Kind.MANUAL, "", -1)
        """Kind, reason and step of the newest save."""
        self.inside = False
        """Whether the loop runs: what happens outside of it, an evaluation perhaps, goes on from there."""
        self.began = 0.0
        """When the newest one began, by the monotonic clock."""
        self._outdated: Target | None = None

    def satisfied(self, step: int, epochs: int) -> None:
        """What the policies want was done."""
        for trigger in filter(None, (self._trigger, self._stage)):
            trigger.satisfied(step, epochs)

    @property
    def here(self) -> Target | None:
        """The checkpoint of this boundary, durable or in the making, if it has what is live."""
        found = self._checkpoints.here(self._progress.step)
        return None if found == self._outdated else found

    def outdate(self) -> None:
        """Parts of another checkpoint are live now: what was measured and saved of this boundary is not of them."""
        self._outdated, self.metrics = self._checkpoints.here(self._progress.step), {}

    def save(self, kind: Kind, reason: str) -> Target:
        """The checkpoint of this boundary; an existing one is returned.

        Raises:
            HoldfastError: as `Checkpoints.save`.
        """
        if (here := self.here) is not None:
            return here
        step = self._progress.step
        if self._outdated is not None and self._outdated == self._checkpoints.here(step):
            self._session.branch(f"parts were restored over step {step}, which is saved already: {reason}")
        self.began, self.latest = time.monotonic(), (kind, reason, step)
        target = Target.of(self._session.address(step))
        snapshot = self._taking.compared(self.snapshot())
        self.satisfied(step, self._place.moment(step).epochs)
        self._checkpoints.save(snapshot, self._request(kind, reason, self.began), urgent=kind is Kind.PREEMPTED)
        return target

    def again(self) -> Target:
        """The newest save once more, for it has failed."""
        kind, reason, _ = self.latest
        return self.save(kind, reason)

    def reserve(self, *, by_step: bool | None) -> None:
        """Keeps this state in memory if that is due, where the saver finds it if this process dies."""
        if self._stage is None or not self._checkpoints.reserves or self.here:
            return
        step, began = self._progress.step, time.monotonic()
        moment = self._place.moment(step)
        if reason := self._stage.due(moment, self.metrics, by_step=by_step):
            request = self._request(Kind.REGULAR, f"kept in reserve, {reason}", began)
            self._checkpoints.reserve(self._taking.compared(self.snapshot()), request)
            self._stage.satisfied(step, moment.epochs)

    def snapshot(self) -> Snapshot:
        """The live state, which is that of the boundary; inside the loop with the random states of the boundary."""
        place = self._place
        if place.rng is None or not (self.inside or self._progress.in_body):
            return self._taking.snapshot(place.position, place.stored, rng.capture())
        with place.generators_there():
            return self._taking.snapshot(place.position, place.stored, place.rng)

    def _request(self, kind: Kind, reason: str, began: float) -> SaveRequest:
        return self._taking.request(
            self._place.position,
            epoch=self._place.epoch,
            metrics=self.metrics,
            kind=kind,
            reason=reason,
            began=began,
        )
