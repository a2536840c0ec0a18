"""What all policies share, and their combination by ``|``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from holdfast.catalog.deleting.retention import Limit
from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.facts import CheckpointFacts, SaveFacts


class Worth(IntEnum):
    """What goes first where a limit leaves no room for all that is wanted: the lowest."""

    RECENT = 0
    MILESTONE = 1
    LATEST = 2
    BEST = 3


class Policy(ABC):
    """Says when to save, what to keep, or both; frozen, compared by value, prints as it is written."""

    __slots__ = ()

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The policies that this one combines; itself if it is a single one."""
        return (self,)

    @property
    def by_step(self) -> bool:
        """Whether saves follow from step numbers alone, so that ranks agree without asking each other."""
        return False

    @property
    def worth(self) -> Worth:
        """How much what it keeps is worth, where a limit leaves no room for all."""
        return Worth.RECENT

    @property
    def limit_bytes(self) -> int | None:
        """For how many bytes of checkpoints it leaves room; None: it sets no limit."""
        return None

    @property
    def limit(self) -> Limit | None:
        """The limit that it sets to retention: the lowest of its parts' limits; None: none."""
        limits = [(size, str(part)) for part in self.parts if (size := part.limit_bytes) is not None]
        return Limit(*min(limits), self.worths) if limits else None

    def worths(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, int]:
        """What each kept one of ``line`` is worth: as much as the part that values it most says."""
        worths: dict[RecordId, int] = {}
        for part in sorted(_keepers(self.parts), key=lambda part: part.worth):
            worths.update(dict.fromkeys(part.kept(line), int(part.worth)))
        return worths

    def due(self, facts: SaveFacts) -> str | None:
        """Why a checkpoint is due at this boundary; None if none is. Pure.

        Raises:
            InvalidPolicy: this policy only says what to keep.
        """
        return self._due(facts)

    def kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        """Which checkpoints of ``line`` to keep, and why. Pure, and the same again on what it has kept.

        Args:
            line: the ancestor line of the head, newest first.

        Raises:
            InvalidPolicy: this policy only says when to save.
        """
        return self._kept(line)

    @abstractmethod
    def _due(self, facts: SaveFacts) -> str | None: ...

    @abstractmethod
    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]: ...

    def __or__(self, other: Policy) -> AnyOf:
        if not isinstance(other, Policy):
            return NotImplemented
        return any_of(self, other)


@dataclass(frozen=True, slots=True)
class AnyOf(Policy):
    """Saves when one of its parts does; keeps what one of its parts keeps."""

    alternatives: tuple[Policy, ...]

    @property
    def parts(self) -> tuple[Policy, ...]:
        """What was combined, in that order."""
        return self.alternatives

    @property
    def by_step(self) -> bool:
        """Whether all parts are."""
        return all(part.by_step for part in self.alternatives)

    def _due(self, facts: SaveFacts) -> str | None:
        reasons = [reason for part in self.alternatives if (reason := part.due(facts))]
        return "; ".join(reasons) or None

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        reasons: dict[RecordId, list[str]] = {}
        for part in _keepers(self.alternatives):
            for id_, reason in part.kept(line).items():
                reasons.setdefault(id_, []).append(reason)
        return {id_: "; ".join(found) for id_, found in reasons.items()}

    def __str__(self) -> str:
        return " | ".join(map(str, self.alternatives))


def _keepers(parts: Sequence[Policy]) -> Sequence[Policy]:
    """Those that want something by themselves; limits alone want everything, as far as there is room."""
    return [part for part in parts if part.limit_bytes is None] or parts


def any_of(*policies: Policy) -> AnyOf:
    """The combination that ``|`` writes; nested ones are flattened and repeated ones dropped.

    Raises:
        InvalidPolicy: nothing to combine, or something that is no policy.

    Example:
        >>> from holdfast.policy import any_of, every, latest
        >>> print(any_of(latest(3), every(steps=500)))
        latest(3) | every(steps=500)
    """
    for policy in policies:
        if not isinstance(policy, Policy):
            raise InvalidPolicy(f"{policy!r} is no policy; combine every(...), best(...) and latest(...)")
    parts = tuple(dict.fromkeys(part for policy in policies for part in policy.parts))
    if not parts:
        raise InvalidPolicy("any_of() needs at least one policy")
    return AnyOf(parts)


def for_saving(policy: object, use: str = "save") -> Policy:
    """``policy``, checked to be one that can serve ``save=``, or what ``use`` names.

    Raises:
        InvalidPolicy: no policy, or a part of it only says what to keep.
    """
    for part in _policy(use, policy).parts:
        part.due(SaveFacts(step=0, steps_since_save=0))
    return _policy(use, policy)


def for_keeping(policy: object) -> Policy:
    """``policy``, checked to be one that can serve ``keep=``.

    Raises:
        InvalidPolicy: no policy, or a part of it only says when to save.
    """
    for part in _policy("keep", policy).parts:
        part.kept(())
    return _policy("keep", policy)


def _policy(use: str, policy: object) -> Policy:
    if not isinstance(policy, Policy):
        raise InvalidPolicy(f"{use}= wants a policy such as every(steps=500) or best('val_loss'), not {policy!r}")
    return policy
