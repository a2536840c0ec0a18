"""``slow_steps``: steps take much longer than they did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from holdfast.catalog.naming.metrics import measured
from holdfast.health import arguments
from holdfast.health.base import Check, Finding, Look
from holdfast.health.observation import Observation
from holdfast.health.spike import LEAST
from holdfast.health.verdict import Severity
from holdfast.health.window import Window
from holdfast.health.writing import written
from holdfast.policy.numbers import plain_numbers


class _State(NamedTuple):
    window: Window = Window()
    in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class SlowSteps(Check):
    """See `slow_steps`."""

    factor: float = 3.0
    window: int = 100
    in_a_row: int = 5

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.number("slow_steps(factor=)", self.factor, above=1.0)
        arguments.count("slow_steps(window=)", self.window, least=5)
        arguments.count("slow_steps(in_a_row=)", self.in_a_row)

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        before: _State = state or _State()
        seconds = measured(observation.step_seconds)
        if seconds is None or seconds < 0:
            return Look(before, seen=False)
        known = len(before.window.values) >= min(LEAST, self.window)
        slow = known and seconds > self.factor * before.window.median
        window = before.window.having(observation.step, seconds, self.window, odd=slow)
        after = _State(window, before.in_a_row + 1 if slow else 0)
        if after.in_a_row < self.in_a_row:
            return Look(after)
        return Look(after, self._finding(observation.step, seconds, before))

    def rewound(self, state: Any, step: int) -> Any:
        """See `Check.rewound`: how long steps take is no matter of the state."""
        return state

    def _finding(self, step: int, seconds: float, before: _State) -> Finding:
        usual = before.window.median
        message = (
            f"{before.in_a_row + 1} steps in a row took more than {self.factor:g} times the usual {usual:.3g} s; "
            f"the last one {seconds:.3g} s"
        )
        return Finding(message, Severity.WARNING, max(1, step - before.in_a_row), step)

    def __str__(self) -> str:
        return written("slow_steps", self)


def slow_steps(factor: float = 3.0, *, window: int = 100, in_a_row: int = 5) -> SlowSteps:
    """So many steps one after the other took more than ``factor`` times the median of the last ``window`` ones.

    One slow step alone is an evaluation, a checkpoint or a collected garbage, hence ``in_a_row``. A step that does
    not end at all is for the watchdog.

    Raises:
        InvalidPolicy: ``factor`` not above 1, or a count that makes no sense.

    Example:
        >>> print(slow_steps(factor=5.0))
        slow_steps(factor=5.0)
    """
    return SlowSteps(factor, window, in_a_row)
