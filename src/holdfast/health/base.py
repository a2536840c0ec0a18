"""What all checks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from holdfast.health.observation import Fact, Observation
from holdfast.health.verdict import Severity, Verdict
from holdfast.policy import Every, SaveFacts


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    message: str
    severity: Severity
    first: int
    last: int

    def verdict(self, check: Check, observation: Observation) -> Verdict:
        """With the names of who found it, and when."""
        return Verdict(
            check=str(check),
            message=self.message,
            severity=self.severity,
            step=observation.step,
            first=self.first,
            last=self.last,
            rank=observation.rank,
        )


class Look(NamedTuple):
    """What came of one look."""

    state: Any
    """What the check wants to know at the next one; immutable."""
    finding: Finding | None = None
    seen: bool = True
    """Whether there was anything to look at: a check that saw nothing has not passed."""


class Check(ABC):
    """Judges boundaries one after the other; frozen, compared by value, prints as it is written.

    Pure: `look` depends on nothing but its arguments, and the same state may be looked at twice.
    """

    __slots__ = ()
    facts: ClassVar[frozenset[Fact]] = frozenset()

    @property
    def tests_training(self) -> bool:
        """Whether a pass says something about what is learned, and not just about the machine."""
        return False

    @property
    def wants(self) -> frozenset[Fact]:
        """Facts that have to be gathered for it."""
        return self.facts

    @property
    def cadence(self) -> Every | None:
        """How often it looks: its field ``every``; None: at each boundary.

        With `wants` it is how often these facts are gathered. They become known later, so then it looks always, and
        sees nothing where they are not there.
        """
        every: Every | None = getattr(self, "every", None)
        return every

    @abstractmethod
    def look(self, observation: Observation, state: Any) -> Look:
        """Judges one boundary.

        Args:
            observation: its facts.
            state: what the look before gave; None at the first one.
        """

    def rewound(self, state: Any, step: int) -> Any:
        """The state after a rollback to ``step``: what was learned from later steps is void. By default all of it."""
        return None


class LookedAt(NamedTuple):
    """When somebody looked the last time."""

    step: int
    seconds: float


def is_due(cadence: Every | None, last: LookedAt | None, step: int, seconds: float) -> bool:
    """Whether it is time to do it again; always at first.

    A rollback takes steps back, and what was done at them stays done: it is time again behind the last of them.

    Example:
        >>> from holdfast.policy import every
        >>> [is_due(every(steps=10), LookedAt(7, 0.0), step, 1.0) for step in (3, 9, 10, 13)]
        [False, False, True, True]
    """
    if cadence is None or last is None or seconds < last.seconds:
        return True
    facts = SaveFacts(step=step, steps_since_save=step - last.step, seconds_since_save=seconds - last.seconds)
    return cadence.due(facts) is not None
