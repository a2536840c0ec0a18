"""Saving in the trainer's own process: the training loop waits until the checkpoint is durable and verified."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from holdfast.errors import BeingDeleted, Conflict, Damaged, SaveFailed, StorageError
from holdfast.ids import Digest, RecordId
from holdfast.packs.segment import Segment
from holdfast.records import Record, Target
from holdfast.recovery.handover.bars import Bar
from holdfast.recovery.handover.inline_asides import InlineAsides
from holdfast.recovery.handover.outcomes import Committed, Followed, GivenUp, Outcome
from holdfast.saver import SaveRequest, Saving, Shape, messages
from holdfast.saver.figures import figures
from holdfast.saver.following import Following
from holdfast.saver.rereading import Rereading
from holdfast.saver.trying import Trying
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
    return Shape(
        skeleton=snapshot.skeleton,
        values=snapshot.values_bytes,
        inline=snapshot.inline,
        anomalies=snapshot.anomalies,
        own=snapshot.own,
        prints=snapshot.prints,
    )


class Journal(Protocol):
    """See `holdfast.recovery.saving.afterwards.Afterwards`."""

    def note(self, kind: str, message: str, /, **data: Any) -> None:
        """Takes one line."""

    def flush(self) -> None:
        """Writes what was taken, if that was not done for a while."""


@dataclass(slots=True)
class InlineSaves:
    """See `holdfast.recovery.handover.outcomes.Saves`."""

    trying: Trying
    rereading: Rereading
    journal: Journal
    progress: Bar
    survives: str = "nothing"
    reserves: bool = False
    _outcomes: list[Outcome] = field(default_factory=list)
    _count: int = 0
    asides: InlineAsides = field(init=False)

    def __post_init__(self) -> None:
        store, following = self._saving.launch.run.store, self.trying.following
        self.asides = InlineAsides(store, self.journal.note, following.retain, self.deleted)

    def prepare(self, snapshot: Snapshot) -> None:
        """There is nothing to prepare."""

    def save(self, snapshot: Snapshot, request: SaveRequest, *, urgent: bool) -> None:
        """Saves, with everything that follows."""
        shape = shape_of(snapshot)
        self._count += 1
        self._saving.progress = self._report
        try:
            record = self.trying.save(request, shape, LiveContent(snapshot))
        except (StorageError, SaveFailed, Conflict, Damaged) as error:
            self._outcomes.append(GivenUp(target=Target.of(self._saving.address(request)), error=error))
            return
        finally:
            self.progress.close()
        self._outcomes.append(Committed(record=record))
        self.journal.note("saved", f"{record.address}: {record.reason}", **figures(record))
        for text in record.anomalies:
            self.journal.note("anomaly", f"{record.address}: {text}")
        for tag in request.tags:
            self.asides.add_tag(Target.of(record.address), tag)
        self._follow(record)
        self.journal.flush()

    @property
    def _saving(self) -> Saving:
        return self.trying.saving

    def _report(self, done: int, total: int) -> None:
        self.progress(messages.Progress(generation=self._count, done=done, total=total))

    def reserve(self, snapshot: Snapshot, request: SaveRequest) -> None:
        """Nothing that this process holds would outlive it."""

    def outcomes(self) -> list[Outcome]:
        """What has happened since."""
        found, self._outcomes = self._outcomes, []
        return found

    def drain(self, seconds: float) -> bool:
        """Nothing is ever in flight."""
        return True

    def rescue(self, kind: str, reason: str) -> None:
        """There is no reserve."""

    def restored(self) -> None:
        """Nothing is remembered of it."""

    def close(self, seconds: float) -> None:
        """Gives the ballast up: the process may go on for long, and the disk be unmounted."""
        if self._saving.ballast is not None:
            with contextlib.suppress(OSError):  # on a disk that has failed; the descriptor is closed all the same
                self._saving.ballast.drop()

    def _follow(self, record: Record) -> None:
        try:
            found = self.trying.following.follow(record, self._saving.packs_of(record))
        except (StorageError, BeingDeleted, Damaged) as error:
            # The checkpoint is committed; what follows it (verification, retention) is tried again after the next one.
            # Somebody may also have deleted it meanwhile, which is no reason to end a training.
            logger.warning("after the save of %s: %s", record.address, error)
            return
        self._saving.damaged |= found.damaged
        deleted = [str(id_) for id_ in found.deleted]
        self._outcomes.append(Followed(record=record, problem=found.problem, deleted=deleted))

        self.rereading.committed(record, self._saving.packs_of(record) or ())
        self._reread()

    def _reread(self) -> None:
        """One old pack, if it is the turn of any."""
        pack = self.rereading.turn()
        try:
            problems = self.rereading.read(pack) if pack is not None else []
        except StorageError as error:
            logger.warning("%s could not be read back: %s", pack, error)
            return
        if problems:
            text = f"{problems[0].message}; checkpoints rely on it, so the next save writes it again"
            logger.error("%s", text)
            self.journal.note("damaged", text)
            self._saving.damaged.add(problems[0].object)
            self._outcomes.append(Followed(record=None, problem=text))

    def deleted(self, ids: Sequence[RecordId]) -> None:
        """These records had to go, to make room."""
        self._outcomes.append(Followed(record=None, problem=None, deleted=[str(id_) for id_ in ids]))


def inline_saves(
    saving: Saving,
    following: Following,
    rereading: Rereading,
    *,
    pause_when_full: bool,
    said: Callable[[int, str], None],
    journal: Journal,
    wait: Callable[[float], bool],
    progress: Bar,
) -> InlineSaves:
    """Saves in this process.

    Args:
        saving: makes them.
        following: does what follows them.
        rereading: reads old packs back, one after a save at most.
        pause_when_full: whether a full disk is waited for.
        said: told, with a level of `logging`, what somebody should hear.
        journal: is told what becomes of the saves.
        wait: see `holdfast.saver.trying.Trying.wait`.
        progress: told how far a save is.
    """

    def deleted(ids: Sequence[RecordId]) -> None:
        saves.deleted(ids)

    trying = Trying(
        saving=saving, following=following, pause_when_full=pause_when_full, said=said, deleted=deleted, wait=wait
    )
    saves = InlineSaves(trying, rereading, journal, progress)
    return saves
