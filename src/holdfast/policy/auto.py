"""``auto``: as often as saves are cheap, and as rarely as failures are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.catalog.naming.metrics import measured
from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.numbers import plain_numbers

FIRST = 300.0
"""Seconds to the first save, as long as none has been measured: there is little to lose, and a figure to win."""

SHORTEST = 60.0
"""Seconds between two saves at least: below that a cheap save costs the disk more than it could spare the training."""


@dataclass(frozen=True, slots=True)
class Auto(Policy):
    """See `auto`."""

    max_overhead: float = 0.02

    def __post_init__(self) -> None:
        plain_numbers(self)
        share = measured(self.max_overhead)
        if share is None or not 0 < share < 1:
            raise InvalidPolicy(f"auto(max_overhead=) wants a number between 0 and 1, not {self.max_overhead!r}")

    def interval(self, facts: SaveFacts) -> float:
        """Seconds from one save to the next, by what is known now; see `auto`."""
        cost = facts.save_seconds
        if cost is None:
            return FIRST
        least = max(SHORTEST, cost / self.max_overhead, facts.durable_seconds or 0.0)
        if not facts.failures:
            return least
        return max(least, daly(cost, facts.observed_seconds / facts.failures))

    def _due(self, facts: SaveFacts) -> str | None:
        seconds = self.interval(facts)
        if facts.steps_since_save < 1 or facts.seconds_since_save < seconds:
            return None
        return f"{self}: {seconds:.3g} s, {_because(facts)}"

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        raise InvalidPolicy(f"{self} says when to save, not what to keep; use it in save=, and latest(...) in keep=")

    def __str__(self) -> str:
        return f"auto(max_overhead={json.dumps(self.max_overhead)})"


def auto(max_overhead: float = 0.02) -> Auto:
    """As often as ``max_overhead`` allows; once failures were seen, only as often as it pays.

    With C, the median of the seconds for which recent saves kept the loop waiting, and M, the mean time between the
    failures of this run, the seconds between two saves are::

        no save measured yet    FIRST
        no failure seen yet     max(C / max_overhead, SHORTEST, seconds until a save is durable)
        else                    max(that, D), where D = sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + C / 2M / 9) - C
                                for C < 2M, else D = M

    D loses the least time, to saves and to work that is done again: Young's first-order optimum sqrt(2 C M) with Daly's
    higher-order terms. Sources: J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM
    17(9), 1974, 530-531; J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    FGCS 22(3), 2006, 303-312, equation 37. A restart or rollback counts as a failure unless the training had been asked
    to stop, or had ended. By the monotonic clock of rank 0; serves ``save=`` only.

    Raises:
        InvalidPolicy: ``max_overhead`` is not between 0 and 1.

    Example:
        >>> print(auto(), "|", auto(0.005))
        auto(max_overhead=0.02) | auto(max_overhead=0.005)
        >>> auto(max_overhead=0.02).interval(SaveFacts(step=9, steps_since_save=9, save_seconds=3.0))
        150.0
    """
    return Auto(max_overhead)


def daly(cost: float, between: float) -> float:
    """Daly's optimum of the seconds between two checkpoints, from the end of one to the beginning of the next.

    Args:
        cost: seconds of work that a checkpoint costs.
        between: mean seconds between two failures.

    Example:
        >>> round(daly(60.0, 24 * 3600.0)), round((2 * 60.0 * 24 * 3600.0) ** 0.5)
        (3180, 3220)
        >>> daly(60.0, 20.0)
        20.0
    """
    if cost >= 2 * between:
        return between
    ratio = cost / (2 * between)
    return math.sqrt(2 * cost * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


def _because(facts: SaveFacts) -> str:
    if facts.save_seconds is None:
        return "no save was measured yet"
    cost = f"a save costs {facts.save_seconds:.3g} s"
    if not facts.failures:
        return cost
    return f"{cost}, a failure every {facts.observed_seconds / facts.failures / 3600:.3g} h"
