"""``newer``: all that were made within some time before the newest one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.catalog.naming.metrics import measured
from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy, Worth
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.numbers import plain_numbers

_SECONDS = {"minutes": 60, "hours": 3600, "days": 86400}


@dataclass(frozen=True, slots=True)
class Newer(Policy):
    """See `newer`."""

    unit: str
    amount: int | float

    def __post_init__(self) -> None:
        plain_numbers(self)
        number = measured(self.amount)
        if self.unit not in _SECONDS or number is None or number <= 0:
            raise InvalidPolicy(f"newer({self.unit}=) wants a finite number above 0, not {self.amount!r}")

    @property
    def worth(self) -> Worth:
        """The first to go: there are many, and each has near neighbours."""
        return Worth.RECENT

    def _due(self, facts: SaveFacts) -> str | None:
        raise InvalidPolicy(f"{self} says what to keep, not when to save; use it in keep=, and every(...) in save=")

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        if not line:
            return {}
        now, seconds = line[0].seconds, self.amount * _SECONDS[self.unit]
        # One from the future (a clock that was set back) is newer, too.
        return dict.fromkeys((one.id for one in line if now - one.seconds <= seconds), str(self))

    def __str__(self) -> str:
        return f"newer({self.unit}={json.dumps(self.amount)})"


def newer(*, minutes: float | None = None, hours: float | None = None, days: float | None = None) -> Newer:
    """All checkpoints of the line that were made within that time before its newest; serves ``keep=`` only.

    Time counts from the newest checkpoint, not from now: a training that rests loses nothing by resting, and the same
    facts give the same plan at any time. By the creation times of the checkpoints; where a clock was set back, more is
    kept, where it was set forward, less.

    Raises:
        InvalidPolicy: not exactly one argument, or one that is not above zero.

    Example:
        >>> print(newer(hours=24))
        newer(hours=24)
    """
    amounts = {"minutes": minutes, "hours": hours, "days": days}
    given = {unit: amount for unit, amount in amounts.items() if amount is not None}
    if len(given) != 1:
        said = ", ".join(given) or "none"
        raise InvalidPolicy(f"newer() wants exactly one of {', '.join(amounts)}; given: {said}")
    ((unit, amount),) = given.items()
    return Newer(unit, amount)
