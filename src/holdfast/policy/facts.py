"""What a policy may look at: plain facts that were gathered before it is asked.

No clock, disk or network is reached from a policy, so its decisions can be
replayed, tested and explained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from holdfast.ids import RecordId


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFacts:
    """One boundary between two optimizer steps, as a save policy sees it."""

    step: int
    """Completed optimizer steps."""
    steps_since_save: int
    """Steps since the checkpoint that this line of work has last saved or resumed from; ``step`` if none."""
    seconds_since_save: float = 0.0
    """By the monotonic clock, since that save or since the loop began: the wall clock may jump."""
    epoch: int = 0
    """The epoch, from 0, that the boundary lies in."""
    epoch_ended: bool = False
    """Whether this boundary is the last one of its epoch."""
    epochs_since_save: int = 0
    """Epochs that ended since that save, this boundary's included."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What was logged at this very boundary."""
    saved: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Per metric, its values in the checkpoints of this line that exist: a save that failed does not count."""
    save_seconds: float | None = None
    """For how long a save keeps the loop waiting: the median of recent saves of the run; None: none was measured."""
    durable_seconds: float | None = None
    """How long it takes until a save is durable, as a median, too."""
    failures: int = 0
    """How often this run had to go back: restarts and rollbacks, without ends that somebody had asked for."""
    observed_seconds: float = 0.0
    """How long the run has been trained in all, as far as is known, earlier launches included."""

    @property
    def epochs(self) -> int:
        """Epochs completed."""
        return self.epoch + (1 if self.epoch_ended else 0)


class CheckpointFacts(Protocol):
    """A committed, intact checkpoint on the ancestor line of the head, as a keep policy sees it."""

    @property
    def id(self) -> RecordId:
        """Its record id."""

    @property
    def step(self) -> int:
        """Completed optimizer steps."""

    @property
    def epoch(self) -> int | None:
        """The epoch, from 0, that it was saved in; None where the loop has no epochs."""

    @property
    def seconds(self) -> float:
        """When it was created, in seconds since any fixed instant."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What was logged at its step, and later through metric marks."""
