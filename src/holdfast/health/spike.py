"""``spike``: a metric far above its last values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from holdfast.errors import InvalidPolicy
from holdfast.health import arguments
from holdfast.health.base import Check, Finding, Look
from holdfast.health.nonfinite import as_float
from holdfast.health.observation import Fact, Observation
from holdfast.health.verdict import Severity
from holdfast.health.window import Window
from holdfast.health.writing import written
from holdfast.policy import Every, every
from holdfast.policy.numbers import plain_numbers

LEAST = 20
"""Values without which nothing is judged, or the window if that is smaller."""
GRAD_NORM = "grad_norm"
SAMPLING = every(steps=10)
"""For the norm of the gradients, where it is not logged."""


class _State(NamedTuple):
    window: Window = Window()
    clean: int | None = None
    logged: bool = False
    """Whether the user logs it: then what was sampled, which may mean something else, is left alone."""


@dataclass(frozen=True, slots=True)
class Spike(Check):
    """See `spike`."""

    metric: str
    z: float = 6.0
    window: int = 100

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.metric("spike(metric)", self.metric)
        if self.metric in (Fact.GRADIENTS, Fact.PARAMETERS):
            raise InvalidPolicy(f"spike({self.metric!r}) wants a metric; spike('grad_norm') is about the gradients")
        arguments.number("spike(z=)", self.z)
        arguments.count("spike(window=)", self.window, least=5)

    @property
    def tests_training(self) -> bool:
        """See `Check.tests_training`."""
        return True

    @property
    def wants(self) -> frozenset[Fact]:
        """See `Check.wants`: gradients have a norm of their own."""
        return frozenset({Fact.GRADIENTS}) if self.metric == GRAD_NORM else frozenset()

    @property
    def cadence(self) -> Every | None:
        """See `Check.cadence`: how often gradients are sampled; what is logged is looked at whenever it is."""
        return SAMPLING if self.metric == GRAD_NORM else None

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        before: _State = state or _State()
        logged = as_float(observation.metrics.get(self.metric))
        if logged is not None:
            return self._judged(before._replace(logged=True), observation.step, logged)
        norms = [(one.step, one.norm) for one in observation.probes if one.norm is not None]
        if self.metric != GRAD_NORM or before.logged or not norms:
            return Look(before, seen=False)
        return self._judged(before, *norms[-1])

    def rewound(self, state: Any, step: int) -> Any:
        """See `Check.rewound`: what was normal up to there still is."""
        return _State(state.window.until(step), logged=state.logged) if state else None

    def _judged(self, before: _State, step: int, value: float) -> Look:
        message = self._message(before.window, value)
        if message is None:
            window = before.window.having(step, value, self.window, odd=False)
            return Look(before._replace(window=window, clean=step))
        # What is no number has no place in a window, not even among the outliers.
        window = before.window
        if math.isfinite(value):
            window = window.having(step, value, self.window, odd=True)
        first = before.clean if before.clean is not None else max(1, step - 1)
        return Look(before._replace(window=window), Finding(message, Severity.DOUBT, min(first, step), step))

    def _message(self, window: Window, value: float) -> str | None:
        if not math.isfinite(value):
            return f"{self.metric} is {value}"
        if len(window.values) < min(LEAST, self.window):
            return None
        if not window.exceeds(value, self.z):
            return None
        score = window.score(value)
        return (
            f"{self.metric} is {value:.6g} after a median of {window.median:.6g} "
            f"over {len(window.values)} values: {score:.1f} robust deviations above it, more than {self.z:g}"
        )

    def __str__(self) -> str:
        return written("spike", self, "metric")


def spike(metric: str, z: float = 6.0, *, window: int = 100) -> Spike:
    """A metric is more than ``z`` robust standard deviations above the median of its last ``window`` values.

    Only upwards: a loss may fall as fast as it likes. Nothing is judged before 20 values (or ``window``, if that is
    less). Values that were judged are not taken into the window, so a stretch of them does not become normal, unless
    it is as long as the window: then that is the new level. A NaN or an infinity is a spike at any time.
    ``grad_norm`` is what is logged under that name; if nothing is, the norm over all gradients of this rank that are
    there at the boundary, every 10 steps.
    See `Window` for the source of the formula.

    Raises:
        InvalidPolicy: no metric name, ``z`` not above 0, or ``window`` below 5.

    Example:
        >>> print(spike("loss", z=8.0, window=50))
        spike("loss", z=8.0, window=50)
    """
    return Spike(metric, z, window)
