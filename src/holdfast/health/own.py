"""``own``: a check that is one function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from holdfast.errors import InvalidPolicy
from holdfast.health import arguments
from holdfast.health.base import Check, Finding, Look
from holdfast.health.observation import Fact, Observation
from holdfast.health.verdict import Severity
from holdfast.health.writing import literal, resolved
from holdfast.policy import Every

Judge = Callable[[Observation], str | None]
"""Gives what is wrong at a boundary, or None."""


@dataclass(frozen=True, slots=True)
class Own(Check):
    """See `own`."""

    judge: Judge
    every: Every | None = None
    severity: Severity = Severity.DOUBT
    needs: frozenset[Fact] = frozenset()

    def __post_init__(self) -> None:
        if not callable(self.judge):
            raise InvalidPolicy(f"own() wants a function of an observation, not {self.judge!r}")
        if self.every is not None:
            arguments.cadence("own(every=)", self.every)

    @property
    def wants(self) -> frozenset[Fact]:
        """See `Check.wants`."""
        return self.needs

    @property
    def tests_training(self) -> bool:
        """See `Check.tests_training`."""
        return self.severity is not Severity.WARNING

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`.

        Raises:
            TypeError: the function gave neither text nor None.
        """
        if self.needs and not self.needs & observation.facts:
            return Look(state, seen=False)
        said: object = self.judge(observation)
        if said is not None and not isinstance(said, str):
            raise TypeError(f"{self} gave {said!r:.100}; a check gives a text that says what is wrong, or None")
        step = observation.step
        return Look(state, Finding(said, self.severity, max(1, step), max(1, step)) if said else None)

    def __str__(self) -> str:
        words = [literal(self.judge)]
        words += [f"every={self.every}"] if self.every is not None else []
        words += [f"severity={literal(str(self.severity))}"] if self.severity is not Severity.DOUBT else []
        words += [f"wants={_names(self.needs)}"] if self.needs else []
        return f"own({', '.join(words)})"


def _names(facts: frozenset[Fact]) -> str:
    """Facts as Python writes a list of their names."""
    return f"[{', '.join(literal(str(fact)) for fact in sorted(facts))}]"


def own(
    judge: Judge | str,
    *,
    every: Every | None = None,
    severity: str = "doubt",
    wants: list[str] | tuple[str, ...] | frozenset[Fact] = (),
) -> Own:
    """A function of an `Observation` that gives what is wrong, or None; where a check is wanted it may stand alone.

    Args:
        judge: the function, or its path ``"package.module:function"``.
        every: how often it is called; at each boundary if left out.
        severity: ``"warning"`` (the machine), ``"doubt"`` (the training; withholds the mark good) or ``"broken"``
            (the state is not worth saving).
        wants: names of facts that are gathered for it as often as ``every`` says: see `Fact`. Then it is called when
            one of them has become known, which may be some steps later.

    Raises:
        InvalidPolicy: no such function, severity or fact.

    Example:
        >>> def worse(observation):
        ...     return "worse than guessing" if observation.metrics.get("accuracy", 1.0) < 0.1 else None
        >>> check = own(worse)
        >>> check.look(Observation(step=5, seconds=0.0, metrics={"accuracy": 0.05}), None).finding.message
        'worse than guessing'
    """
    if severity not in tuple(Severity):
        raise InvalidPolicy(f"own(severity=) wants {', '.join(Severity)}, not {severity!r}")
    unknown = [name for name in wants if name not in tuple(Fact)]
    if unknown:
        raise InvalidPolicy(f"own(wants=) knows {', '.join(Fact)}, not {', '.join(map(repr, unknown))}")
    function = resolved(judge) if isinstance(judge, str) else judge
    return Own(function, every, Severity(severity), frozenset(map(Fact, wants)))
