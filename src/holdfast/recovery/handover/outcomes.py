"""What becomes of saves, as the trainer hears of it; and what it wants of whoever makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from holdfast.errors import HoldfastError
from holdfast.records import MarkKind, Record, Target
from holdfast.saver import SaveRequest
from holdfast.state import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A checkpoint exists."""

    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A save has failed for good; the last committed checkpoint stands."""

    target: Target
    error: HoldfastError
    on_purpose: bool = False
    """Whether it had to make way for a newer one: no failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What follows a save was done."""

    record: Record | None
    """None: it concerns no save, but packs that were read back."""
    problem: str | None
    """What is damaged in the checkpoint; None: it was verified, as far as it could be read."""
    deleted: Sequence[str] = ()
    """Ids of the records that retention has removed."""


Outcome = Committed | GivenUp | Followed


class Asides(Protocol):
    """Small things that are wanted of records which may still be in the making. Belongs to one thread."""

    def add_metrics(self, target: Target, metrics: Mapping[str, Any]) -> None:
        """Metrics that were measured after the save."""

    def add_tag(self, target: Target, tag: str) -> None:
        """A name."""

    def add_mark(self, target: Target, kind: MarkKind) -> None:
        """A fact."""

    def free_space(self) -> None:
        """What retention allows to remove is removed, as soon as there is time for it."""


class Saves(Protocol):
    """Whoever makes checkpoints of what the trainer captures. Belongs to one thread."""

    @property
    def asides(self) -> Asides:
        """Whoever adds to them."""

    @property
    def survives(self) -> str:
        """What a staged state survives, for the record."""

    @property
    def reserves(self) -> bool:
        """Whether `reserve` does anything."""

    def prepare(self, snapshot: Snapshot) -> None:
        """Sets memory aside for states like this one, in the background; may be called again."""

    def save(self, snapshot: Snapshot, request: SaveRequest, *, urgent: bool) -> None:
        """Takes the state over: a private copy exists when it returns, and it becomes a checkpoint or an outcome.

        Raises:
            SaveFailed: it could not be taken over.
        """

    def reserve(self, snapshot: Snapshot, request: SaveRequest) -> None:
        """Keeps the state in case the trainer dies; never waits."""

    def outcomes(self) -> list[Outcome]:
        """What has happened since; never waits."""

    def drain(self, seconds: float) -> bool:
        """Waits until nothing is in flight and what follows was done; False: no sign of progress for ``seconds``."""

    def rescue(self, kind: str, reason: str) -> None:
        """What was kept in reserve becomes a checkpoint."""

    def restored(self) -> None:
        """The training begins, or goes on from another checkpoint: from now on there may be something to save."""

    def close(self, seconds: float) -> None:
        """Ends, after what is in flight was finished."""
