"""``every``: at regular distances in steps, time or epochs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from holdfast.catalog.metrics import measured
from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy
from holdfast.policy.facts import CheckpointFacts, SaveFacts


class Unit(StrEnum):
    """What a distance is measured in."""

    STEPS = "steps"
    SECONDS = "seconds"
    MINUTES = "minutes"
    HOURS = "hours"
    EPOCHS = "epochs"


_SECONDS = {Unit.SECONDS: 1, Unit.MINUTES: 60, Unit.HOURS: 3600}


@dataclass(frozen=True, slots=True)
class Every(Policy):
    """See `every`."""

    unit: Unit
    amount: int | float

    def __post_init__(self) -> None:
        whole = self.unit not in _SECONDS
        number = measured(self.amount)
        if number is None or number <= 0 or (whole and not isinstance(self.amount, int)):
            kind = "an integer" if whole else "a finite number"
            raise InvalidPolicy(f"every({self.unit}=) wants {kind} above 0, not {self.amount!r}")

    @property
    def by_step(self) -> bool:
        """Clocks differ between ranks; steps do not, nor do the steps at which epochs end."""
        return self.unit in (Unit.STEPS, Unit.EPOCHS)

    def _due(self, facts: SaveFacts) -> str | None:
        return str(self) if self._is_due(facts) else None

    def _is_due(self, facts: SaveFacts) -> bool:
        if self.unit is Unit.STEPS:
            return self._passed(facts.step, facts.steps_since_save)
        if self.unit is Unit.EPOCHS:
            return self._passed(facts.epochs, facts.epochs_since_save)
        return facts.seconds_since_save >= self.amount * _SECONDS[self.unit]

    def _passed(self, now: int, since: int) -> bool:
        # A multiple without a boundary of its own (accumulation, a skipped step) counts at the next boundary.
        return since > 0 and now // self.amount > (now - since) // self.amount

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        oldest_first = line[::-1]
        if self.unit is Unit.STEPS:
            chosen = _first_of_each((one.step // self.amount, one) for one in oldest_first if one.step >= self.amount)
        elif self.unit is Unit.EPOCHS:
            chosen = _first_of_each((one.epoch // self.amount, one) for one in line if one.epoch is not None)
        else:
            chosen = _spaced(oldest_first, self.amount * _SECONDS[self.unit])
        return {one.id: str(self) for one in chosen}

    def __str__(self) -> str:
        return f"every({self.unit}={json.dumps(self.amount)})"


def every(
    *,
    steps: int | None = None,
    seconds: float | None = None,
    minutes: float | None = None,
    hours: float | None = None,
    epochs: int | None = None,
) -> Every:
    """At every multiple of ``steps`` or ``epochs``, or whenever that much time has passed.

    As ``save=``: due at each multiple, or at the first boundary after one that had none; by time, due
    once so much has passed since the last save, by the monotonic clock. As ``keep=``: for steps the
    first checkpoint at or after each multiple; for epochs the last one of each group of so many
    epochs; for time one per interval, by the creation times of the checkpoints.

    Raises:
        InvalidPolicy: not exactly one argument, or one that is not above zero.

    Example:
        >>> print(every(steps=500) | every(minutes=30))
        every(steps=500) | every(minutes=30)
    """
    amounts = {"steps": steps, "seconds": seconds, "minutes": minutes, "hours": hours, "epochs": epochs}
    given = {unit: amount for unit, amount in amounts.items() if amount is not None}
    if len(given) != 1:
        said = ", ".join(given) or "none"
        raise InvalidPolicy(f"every() wants exactly one of {', '.join(amounts)}; given: {said}; combine two with |")
    ((unit, amount),) = given.items()
    return Every(Unit(unit), amount)


def _first_of_each(grouped: Iterable[tuple[int | float, CheckpointFacts]]) -> list[CheckpointFacts]:
    first: dict[int | float, CheckpointFacts] = {}
    for group, one in grouped:
        first.setdefault(group, one)
    return list(first.values())


def _spaced(oldest_first: Iterable[CheckpointFacts], seconds: float) -> list[CheckpointFacts]:
    chosen: list[CheckpointFacts] = []
    for one in oldest_first:
        # The absolute distance: a wall clock that was set back makes us keep more, never less.
        if not chosen or abs(one.seconds - chosen[-1].seconds) >= seconds:
            chosen.append(one)
    return chosen
