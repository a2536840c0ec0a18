"""``every``: at regular distances in steps, time or epochs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from holdfast.catalog.naming.metrics import measured
from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy, Worth
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.numbers import plain_numbers


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
        plain_numbers(self)
        whole = self.unit not in _SECONDS
        number = measured(self.amount)
        if number is None or number <= 0 or (whole and not isinstance(self.amount, int)):
            kind = "an integer" if whole else "a finite number"
            raise InvalidPolicy(f"every({self.unit}=) wants {kind} above 0, not {self.amount!r}")

    @property
    def by_step(self) -> bool:
        """Clocks differ between ranks; steps do not, nor do the steps at which epochs end."""
        return self.unit in (Unit.STEPS, Unit.EPOCHS)

    @property
    def worth(self) -> Worth:
        """Milestones."""
        return Worth.MILESTONE

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
            # Step 0 is a multiple, too. The first one after it is none: each run would keep its first one for ever.
            groups = ((one.step // self.amount, one) for one in oldest_first)
            chosen = _first_of_each((group, one) for group, one in groups if group or not one.step)
        elif self.unit is Unit.EPOCHS:
            chosen = _first_of_each((one.epoch // self.amount, one) for one in line if one.epoch is not None)
        else:
            chosen = _first_of_spans(oldest_first, self.amount * _SECONDS[self.unit])
        return dict.fromkeys((one.id for one in chosen), str(self))

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
    first checkpoint at or after each multiple, and one of step 0; for epochs the last one of each group of so many
    epochs; for time the first in each span of so much on the clock (``hours=6``: from 0, 6, 12 and 18 o'clock UTC), by
    the creation times of the checkpoints.

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


def _first_of_spans(oldest_first: Iterable[CheckpointFacts], seconds: float) -> list[CheckpointFacts]:
    """The first of each span of the clock.

    Spans do not depend on what else is there. Distances between those that are kept would shift as soon as a limit
    takes one away, and each shift would cost others.
    """
    chosen: list[CheckpointFacts] = []
    span: float | None = None
    for one in oldest_first:
        # Not: the first that was ever seen of a span. A clock that was set back makes us keep more, never less.
        if (now := one.seconds // seconds) != span:
            chosen.append(one)
        span = now
    return chosen
