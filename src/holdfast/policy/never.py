"""``never``: no checkpoint by policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy
from holdfast.policy.facts import CheckpointFacts, SaveFacts


@dataclass(frozen=True, slots=True)
class Never(Policy):
    """See `never`."""

    @property
    def by_step(self) -> bool:
        """All ranks see the same: nothing."""
        return True

    def _due(self, facts: SaveFacts) -> str | None:
        return None

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        raise InvalidPolicy(f"{self} says when to save, not what to keep; use it in save=, and latest(1) in keep=")

    def __str__(self) -> str:
        return "never()"


def never() -> Never:
    """No checkpoint by policy: only those that are made whatever the policy; serves ``save=`` only.

    These are ``ckpt.save()``, the one of a signal, of a failure, and the final one.

    Example:
        >>> never().due(SaveFacts(step=500, steps_since_save=500)) is None
        True
    """
    return Never()
