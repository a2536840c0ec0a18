"""What a check says of a boundary at which it has found something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from holdfast.errors import InvalidInput


class Severity(StrEnum):
    """What a verdict means for what was learned."""

    WARNING = "warning"
    """The machine or the pace: the state is as good as before."""
    DOUBT = "doubt"
    """The training may have gone wrong: no checkpoint of this time is marked good."""
    BROKEN = "broken"
    """The state holds, or will hold, what is no number: it is not worth saving."""

    @property
    def rank(self) -> int:
        """Higher is worse."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One check has judged one boundary."""

    check: str
    """The check, as it is written."""
    message: str
    """What was found, for people."""
    severity: Severity
    step: int
    """Completed steps at the boundary where it was judged."""
    first: int
    """The steps ``first`` to ``last`` are suspect: their data, and the states after them."""
    last: int
    rank: int = 0
    """The rank whose observation it was."""

    def __str__(self) -> str:
        return f"{self.check} at step {self.step}: {self.message}"

    def data(self) -> dict[str, Any]:
        """As plain values, for the journal and for other ranks."""
        return {**asdict(self), "severity": str(self.severity)}


def verdict_of(data: Mapping[str, Any]) -> Verdict:
    """The verdict that `Verdict.data` wrote.

    Raises:
        InvalidInput: it did not write this.
    """
    try:
        return Verdict(**{**data, "severity": Severity(data["severity"])})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"not a verdict: {error}") from error
