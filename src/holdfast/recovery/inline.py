"""Saving in the trainer's own process: the training loop waits until the checkpoint is durable and verified."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.catalog.marks import add_metrics
from holdfast.catalog.tags import create_tag
from holdfast.errors import BeingDeleted, Conflict, Damaged, Missing, SaveFailed, StorageError
from holdfast.ids import Digest, TagName
from holdfast.packs.segment import Segment
from holdfast.records import Record, Target
from holdfast.recovery.outcomes import Committed, Followed, GivenUp, Outcome
from holdfast.saver import SaveRequest, Saving, Shape
from holdfast.saver.following import Following
from holdfast.state import Snapshot
from holdfast.trees import Lifetime

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LiveContent:
    """The live tensors of a snapshot, while nobody changes them."""

    snapshot: Snapshot

    def segments(self, lifetime: Lifetime) -> Iterable[Segment]:
        """Those of one lifetime."""
        return self.snapshot.segments(lifetime)

    def kept(self) -> Mapping[int, Digest]:
        """Nothing: all of it is at hand."""
        return {}


def shape_of(snapshot: Snapshot) -> Shape:
    """The structure of a snapshot, its values and its small tensors."""
    return Shape(snapshot.skeleton, snapshot.values_bytes, snapshot.inline, snapshot.anomalies)


@dataclass(slots=True)
class InlineSaves:
    """See `holdfast.recovery.outcomes.Saves`."""

    saving: Saving
    following: Following
    survives: str = "nothing"
    reserves: bool = False
    _outcomes: list[Outcome] = field(default_factory=list)

    def prepare(self, snapshot: Snapshot) -> None:
        """There is nothing to prepare."""

    def save(self, snapshot: Snapshot, request: SaveRequest, *, urgent: bool) -> None:
        """Saves, with everything that follows."""
        try:
            record = self.saving.save(request, shape_of(snapshot), LiveContent(snapshot))
        except (StorageError, SaveFailed, Conflict) as error:
            self._outcomes.append(GivenUp(target=Target.of(self.saving.address(request)), error=error))
            return
        self._outcomes.append(Committed(record=record))
        for tag in request.tags:
            create_tag(self.saving.launch.run.store, TagName(tag), record.address)
        self._follow(record)

    def reserve(self, snapshot: Snapshot, request: SaveRequest) -> None:
        """Nothing that this process holds would outlive it."""

    def outcomes(self) -> list[Outcome]:
        """What has happened since."""
        found, self._outcomes = self._outcomes, []
        return found

    def drain(self, seconds: float) -> bool:
        """Nothing is ever in flight."""
        return True

    def add_metrics(self, target: Target, metrics: Mapping[str, Any]) -> None:
        """Adds them now; if somebody has deleted the record, they are of no use to anybody."""
        try:
            add_metrics(self.saving.launch.run.store, target.address, metrics, by="log")
        except (BeingDeleted, Missing) as error:
            logger.warning("metrics of %s were not stored: %s", target.address, error)

    def add_tag(self, target: Target, tag: str) -> None:
        """Names it now; errors as in `holdfast.catalog.tags.create_tag`."""
        create_tag(self.saving.launch.run.store, TagName(tag), target.address)

    def rescue(self, kind: str, reason: str) -> None:
        """There is no reserve."""

    def restored(self) -> None:
        """Nothing is remembered of it."""

    def close(self, seconds: float) -> None:
        """Nothing is left to do."""

    def _follow(self, record: Record) -> None:
        try:
            found = self.following.follow(record)
        except (StorageError, BeingDeleted, Damaged) as error:
            # The checkpoint is committed; what follows it (verification, retention) is tried again after the next one.
            # Somebody may also have deleted it meanwhile, which is no reason to end a training.
            logger.warning("after the save of %s: %s", record.address, error)
            return
        self.saving.damaged |= found.damaged
        deleted = [str(id_) for id_ in found.deleted]
        self._outcomes.append(Followed(record=record, problem=found.problem, deleted=deleted))
