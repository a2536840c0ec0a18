"""``latest``: the newest ones on the ancestor line of the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy, Worth
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.numbers import plain_numbers


@dataclass(frozen=True, slots=True)
class Latest(Policy):
    """See `latest`."""

    n: int

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_count("latest(n)", self.n)

    @property
    def worth(self) -> Worth:
        """Only the best ones are worth more."""
        return Worth.LATEST

    def _due(self, facts: SaveFacts) -> str | None:
        raise InvalidPolicy(f"{self} says what to keep, not when to save; use it in keep=, and every(...) in save=")

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        return dict.fromkeys((one.id for one in line[: self.n]), str(self))

    def __str__(self) -> str:
        return f"latest({self.n})"


def latest(n: int) -> Latest:
    """The ``n`` newest checkpoints, counted on the ancestor line of the head; serves ``keep=`` only.

    Raises:
        InvalidPolicy: ``n`` is no integer of at least 1.

    Example:
        >>> print(latest(3))
        latest(3)
    """
    return Latest(n)


def check_count(what: str, n: object) -> None:
    """Refuse anything but an integer of at least 1.

    Raises:
        InvalidPolicy: naming ``what`` and the rule.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidPolicy(f"{what} wants an integer of at least 1, not {n!r}")
