"""The watchdog: when a training that makes no step any more counts as hung, and what is done then. Pure.

The watchdog itself lives in another process, for a hung one cannot watch
itself. By default it only has the stacks written down: an evaluation, a
compilation, a laptop that was asleep look the same from outside. Ending the
training is asked for with a time of its own, and nothing is done but between
two boundaries of the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from holdfast.catalog.naming.metrics import measured
from holdfast.errors import InvalidPolicy
from holdfast.health import arguments
from holdfast.health.writing import written
from holdfast.policy.numbers import plain_numbers

LEAST = 10
"""Steps without which no limit is derived: the first ones compile, open files, fill caches."""


class Then(StrEnum):
    """What is done about a training that hangs."""

    DUMP = "dump"
    """The stacks of all threads go to the journal; nothing else."""
    END = "end"
    """That, and at ``end_after`` seconds the training is ended, so that its launcher starts it again."""


class Limits(NamedTuple):
    """Seconds without a step; 0: never."""

    hung: float
    """After which the stacks are written."""
    end: float
    """After which the training is ended."""


@dataclass(frozen=True, slots=True)
class Watchdog:
    """See `watchdog`."""

    hung: float | None = None
    factor: float = 20.0
    minimum: float = 600.0
    then: Then = Then.DUMP
    end_after: float | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.hung is not None:
            arguments.number("watchdog(hung=)", self.hung)
        arguments.number("watchdog(factor=)", self.factor, above=1.0)
        arguments.number("watchdog(minimum=)", self.minimum)
        if self.then is Then.END and self.end_after is None:
            raise InvalidPolicy(
                "watchdog(then='end') wants end_after=: seconds without a step that no healthy one takes"
            )
        if self.end_after is not None:
            self._check_end(self.end_after)

    def _check_end(self, end_after: float) -> None:
        arguments.number("watchdog(end_after=)", end_after)
        if self.then is not Then.END:
            raise InvalidPolicy("watchdog(end_after=) goes with then='end'; without it nothing is ended")
        if self.hung is not None and end_after < self.hung:
            raise InvalidPolicy(f"watchdog(end_after=) wants at least the {self.hung:g} s of hung=, not {end_after!r}")

    def limit(self, step_seconds: Sequence[float]) -> float | None:
        """Seconds without a step after which the training counts as hung; None: not to be said yet.

        ``hung`` if it was given. Else ``factor`` times the median of the observed steps, at least twice the longest
        of them, and never below ``minimum``; nothing before 10 steps.

        Args:
            step_seconds: how long the last steps took, from boundary to boundary; impossible ones are passed over.

        Example:
            >>> watchdog().limit([0.2] * 100), watchdog().limit([60.0] * 100), watchdog().limit([0.2] * 5)
            (600.0, 1200.0, None)
        """
        if self.hung is not None:
            return self.hung
        known = [seconds for one in step_seconds if (seconds := measured(one)) is not None and seconds >= 0]
        if len(known) < LEAST:
            return None
        return max(self.minimum, self.factor * median(known), 2 * max(known))

    def limits(self, step_seconds: Sequence[float]) -> Limits:
        """What a silence is measured by: nothing is ended before it counts as hung.

        Before a limit can be derived, ``end_after`` is both.

        Args:
            step_seconds: see `limit`.

        Example:
            >>> dog = watchdog(then="end", end_after=900.0)
            >>> [tuple(dog.limits(took)) for took in ([], [0.2] * 100, [0.2] * 99 + [700.0])]
            [(900.0, 900.0), (600.0, 900.0), (1400.0, 1400.0)]
            >>> tuple(watchdog().limits([0.2] * 100))
            (600.0, 0.0)
        """
        hung = self.limit(step_seconds) or self.end_after or 0.0
        return Limits(hung, 0.0 if self.end_after is None else max(hung, self.end_after))

    def __str__(self) -> str:
        return written("watchdog", self)


def watchdog(
    *,
    hung: float | None = None,
    factor: float = 20.0,
    minimum: float = 600.0,
    then: str = "dump",
    end_after: float | None = None,
) -> Watchdog:
    """What to do about a training that makes no step any more.

    Args:
        hung: seconds without a step after which it counts as hung; derived from observed steps if left out.
        factor: so many median steps, where it is derived.
        minimum: seconds that a derived limit never falls below.
        then: ``"dump"`` has the stacks of all threads written to the journal; ``"end"`` also ends the training.
        end_after: seconds without a step after which it is ended, but not before it counts as hung; wanted with
            ``then="end"``, and only there.

    Raises:
        InvalidPolicy: an argument makes no sense, or the time after which to end is not given.

    Example:
        >>> print(watchdog(hung=120.0, then="end", end_after=900.0))
        watchdog(hung=120.0, then="end", end_after=900.0)
    """
    if then not in tuple(Then):
        raise InvalidPolicy(f"watchdog(then=) wants {' or '.join(map(repr, map(str, Then)))}, not {then!r}")
    return Watchdog(hung, factor, minimum, Then(then), end_after)
