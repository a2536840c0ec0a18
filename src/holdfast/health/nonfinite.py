"""``nonfinite``: a NaN or an infinity where a number should be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from holdfast.errors import InvalidPolicy
from holdfast.health import arguments
from holdfast.health.base import Check, Finding, Look
from holdfast.health.observation import SAMPLED, Fact, Observation, Probed
from holdfast.health.verdict import Severity
from holdfast.health.writing import written
from holdfast.policy import Every, every
from holdfast.policy.numbers import plain_numbers

_SAMPLING = every(steps=50)
_SHOWN = 3


class _State(NamedTuple):
    clean: int | None = None
    """The step of the last look that found numbers."""
    in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Nonfinite(Check):
    """See `nonfinite`."""

    what: str
    every: Every = _SAMPLING
    in_a_row: int = 1

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.metric("nonfinite(what)", self.what)
        arguments.count("nonfinite(in_a_row=)", self.in_a_row)
        arguments.cadence("nonfinite(every=)", self.every)
        if self._fact is None and self.every != _SAMPLING:
            raise InvalidPolicy(
                f"nonfinite({self.what!r}) looks whenever it is logged; every= is for gradients "
                "and parameters, which are sampled"
            )

    @property
    def wants(self) -> frozenset[Fact]:
        """A sample, unless it is about a metric."""
        return frozenset() if self._fact is None else frozenset({self._fact})

    @property
    def cadence(self) -> Every | None:
        """How often a sample is taken."""
        return None if self._fact is None else self.every

    @property
    def _fact(self) -> Fact | None:
        return Fact(self.what) if self.what in SAMPLED else None

    @property
    def tests_training(self) -> bool:
        """See `Check.tests_training`."""
        return True

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        before: _State = state or _State()
        if self._fact is None:
            return self._metric(observation, before)
        probes = [one for one in observation.probes if one.what is self._fact and one.sampled]
        return self._samples(probes, before) if probes else Look(before, seen=False)

    def _metric(self, observation: Observation, before: _State) -> Look:
        value = as_float(observation.metrics.get(self.what))
        if value is None:
            return Look(before, seen=False)
        return self._judged(before, observation.step, None if math.isfinite(value) else f"{self.what} is {value}")

    def _samples(self, probes: list[Probed], before: _State) -> Look:
        look = Look(before)
        for probe in probes:
            earlier, look = look, self._judged(look.state, probe.step, _message(probe))
            look = look if look.finding else look._replace(finding=earlier.finding)
        return look

    def _judged(self, before: _State, step: int, message: str | None) -> Look:
        if message is None:
            return Look(_State(step))
        state = _State(before.clean, before.in_a_row + 1)
        if state.in_a_row < self.in_a_row:
            return Look(state)
        # What a step has done shows in the step after it: the last clean look says nothing of the state that it left.
        first = max(1, step - 1) if before.clean is None else before.clean
        return Look(state, Finding(message, Severity.BROKEN, min(first, step), step))

    def __str__(self) -> str:
        return written("nonfinite", self, "what")


def nonfinite(what: str, *, every: Every | None = None, in_a_row: int = 1) -> Nonfinite:
    """A metric of this name is NaN or infinite; or, as ``"gradients"`` and ``"parameters"``, a sampled tensor.

    Samples are taken on the device without making it wait, some tensors at a time in turn, so they are known a few
    steps later. Gradients that overflow now and then are normal with `torch.amp.GradScaler`, which skips such steps:
    they are not looked at; where it serves several optimizers, ask for more than one ``in_a_row``.

    Args:
        what: the metric, or ``"gradients"`` or ``"parameters"``.
        every: how often tensors are sampled, as `every(steps=...)` or by time; every 50 steps if left out.
        in_a_row: so many looks must have found it, one after the other.

    Raises:
        InvalidPolicy: an argument makes no sense.

    Example:
        >>> check = nonfinite("loss")
        >>> check.look(Observation(step=7, seconds=0.0, metrics={"loss": float("nan")}), None).finding.message
        'loss is nan'
        >>> print(nonfinite("gradients", in_a_row=3))
        nonfinite("gradients", in_a_row=3)
    """
    return Nonfinite(what, _SAMPLING if every is None else every, in_a_row)


def as_float(value: object) -> float | None:
    """A logged value as a number, finite or not; None: it is none, or was not logged."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _message(probe: Probed) -> str | None:
    if not probe.nonfinite:
        return None
    more = f" and {len(probe.nonfinite) - _SHOWN} more" if len(probe.nonfinite) > _SHOWN else ""
    return f"{probe.what} are not finite after step {probe.step}: {', '.join(probe.nonfinite[:_SHOWN])}{more}"
