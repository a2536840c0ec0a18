"""When a checkpoint is due: the policies, and when they were last satisfied."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from holdfast.policy import Best, Every, Policy, SaveFacts
from holdfast.policy.every import Unit
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.steps.measuring import plain


class Moment(NamedTuple):
    """A boundary, as policies see it."""

    step: int
    """Completed optimizer steps."""
    epoch: int
    epoch_ended: bool

    @property
    def epochs(self) -> int:
        """Epochs that are over."""
        return self.epoch + self.epoch_ended


@dataclass(slots=True)
class Trigger:
    """One policy. Not thread-safe."""

    policy: Policy
    after: Afterwards
    _step: int = 0
    _at: float = 0.0
    _epochs: int = 0

    def satisfied(self, step: int, epochs: int) -> None:
        """What the policy wants was done at this step."""
        self._step, self._at, self._epochs = step, time.monotonic(), epochs

    def watches(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the policy looks at one of these."""
        return any(isinstance(part, Best) and part.metric in metrics for part in self.policy.parts)

    def never_due(self) -> list[Policy]:
        """Its parts that wait for the end of an epoch."""
        return [part for part in self.policy.parts if isinstance(part, Every) and part.unit is Unit.EPOCHS]

    def due(self, moment: Moment, metrics: Mapping[str, Any], *, by_step: bool | None = None) -> str | None:
        """Why a checkpoint is due now, if it is; metrics on a device are read only for policies that look at any.

        ``by_step`` asks only the policies that see the same on all ranks (True), or only the others (False).
        """
        asked = [part for part in self.policy.parts if by_step is None or part.by_step is by_step]
        if not asked:
            return None
        learned = self.after.experience(asked)
        facts = SaveFacts(
            step=moment.step,
            steps_since_save=moment.step - self._step,
            seconds_since_save=time.monotonic() - self._at,
            epoch=moment.epoch,
            epoch_ended=moment.epoch_ended,
            epochs_since_save=moment.epochs - self._epochs,
            metrics=plain(metrics) if self.after.watches(self.policy) else {},
            saved=self.after.saved_metrics(self.policy),
            save_seconds=learned.save_seconds,
            durable_seconds=learned.durable_seconds,
            failures=learned.failures,
            observed_seconds=learned.seconds,
        )
        return "; ".join(filter(None, (part.due(facts) for part in asked))) or None
