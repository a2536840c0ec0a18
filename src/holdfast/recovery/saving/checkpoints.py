"""The checkpoints of one launch: handed over, committed or failed, and what follows from that for the training."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import msgspec

from holdfast.catalog import layout
from holdfast.catalog.objects import exists
from holdfast.errors import Fenced, HoldfastError, NameTaken, SaveFailed
from holdfast.ids import RecordAddress, TagName
from holdfast.policy.tolerance import Tolerance
from holdfast.records import Kind, MarkKind, Record, Target
from holdfast.recovery.handover.outcomes import Committed, Followed, GivenUp, Outcome, Saves
from holdfast.recovery.launching.session import Session
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.saver import SaveRequest
from holdfast.saver.figures import sentence
from holdfast.saver.together import Together
from holdfast.state import Snapshot

logger = logging.getLogger(__name__)

SILENT_SECONDS = 600.0
"""How long a wait for a save goes on without any sign of progress."""


LOOK_SECONDS = 0.02
"""Between two looks for news, while a save is waited for that must not take longer than there is time."""


class Checkpoints:
    """What was saved, what is being saved, and how many failures there were. Not thread-safe."""

    def __init__(self, session: Session, saves: Saves, after: Afterwards, tolerance: Tolerance) -> None:
        self.last: Record | None = None
        """The newest durable checkpoint of this line."""
        self._session, self._saves, self._after, self._tolerance = session, saves, after, tolerance
        self._newest: Target | None = None
        self._unsound: Record | None = None
        self._prepared = False
        self._late: tuple[Target, dict[str, Any]] | None = None
        self._tags: dict[Target, list[TagName]] = {}
        self._failure: HoldfastError | None = None
        self._failed: Target | None = None
        """What the failure is about: only this checkpoint, or a later one, makes up for it."""
        self._failures = 0
        self._good_at = time.monotonic()
        self._took: deque[float] = deque(maxlen=9)
        self._new: list[Record] = []
        self._deleted: list[str] = []

    # What there is

    def address(self, step: int) -> RecordAddress:
        """Where a checkpoint of this moment would lie."""
        return self._session.address(step)

    def here(self, step: int) -> Target | None:
        """The checkpoint of this very boundary, durable or in the making."""
        newest = self._newest
        return newest if newest is not None and newest == Target.of(self.address(step)) else None

    def resumed(self, record: Record | None) -> None:
        """The line goes on from another record, or begins."""
        self.last, self._newest, self._unsound = record, None, None
        self._new = []
        self._saves.restored()
        if record is not None:
            self._after.resumed(record)
            self._took.append(record.timing.durable)

    @property
    def typical(self) -> float | None:
        """Seconds from the call of a save until it is durable: the median of the last ones; None: there was none."""
        return statistics.median(self._took) if self._took else None

    def committed(self) -> list[Record]:
        """Those of this line that have become durable since the last call."""
        found, self._new = self._new, []
        return found

    def deleted(self) -> list[str]:
        """Ids of the records that retention has removed since the last call."""
        found, self._deleted = self._deleted, []
        return found

    @property
    def in_flight(self) -> bool:
        """Whether the newest checkpoint is not durable yet."""
        return self._newest is not None and (self.last is None or Target.of(self.last.address) != self._newest)

    # Making them

    def prepare(self, snapshot: Callable[[], Snapshot]) -> None:
        """At the first boundary, when the optimizer has made its state: sets memory aside, in the background.

        What fails here fails at the first save.
        """
        if self._prepared or not self._saves.reserves:
            return
        self._prepared = True
        try:
            self._saves.prepare(snapshot())
        except SaveFailed as error:
            logger.warning("%s", error)

    def save(self, snapshot: Snapshot, request: SaveRequest, *, urgent: bool) -> None:
        """Hands a state over; what becomes of it is heard later.

        Raises:
            HoldfastError: there were too many failures.
        """
        target = Target.of(self.address(request.step))
        self._newest = target
        request = self._with_late_metrics(target, request)
        self._after.measured(target, request.metrics)
        failed = None
        try:
            self._saves.save(snapshot, request, urgent=urgent)
        except SaveFailed as error:
            self._tell_others(request, error)
            failed = self._given_up(target, error)
        except BaseException:
            self._newest = None  # nobody makes it
            raise
        self._listen(failed)

    def _tell_others(self, request: SaveRequest, error: SaveFailed) -> None:
        """No saver hears of what could not even be staged, and other ranks wait for it."""
        if request.world > 1:
            Together().give_up(self._session.store, self.address(request.step), request, error)

    def reserve(self, snapshot: Snapshot, request: SaveRequest) -> None:
        """Keeps a state in case this process dies; that it cannot be kept is said, and no failure of a save."""
        try:
            self._saves.reserve(snapshot, request)
        except SaveFailed as error:
            logger.warning("step %d is not kept in reserve: %s", request.step, error)

    @property
    def reserves(self) -> bool:
        """Whether a reserve would outlive this process."""
        return self._saves.reserves

    def add_metrics(self, target: Target, metrics: Mapping[str, Any]) -> None:
        """Metrics that were measured after the save; if that fails, the next one of the same boundary has them."""
        known = self._late[1] if self._late is not None and self._late[0] == target else {}
        self._late = target, {**known, **metrics}
        if self._session.group.rank == 0:
            self._saves.asides.add_metrics(target, metrics)
        self._after.measured(target, metrics)

    def _with_late_metrics(self, target: Target, request: SaveRequest) -> SaveRequest:
        late, self._late = self._late, None
        if late is None or late[0] != target:
            return request
        return msgspec.structs.replace(request, metrics={**late[1], **request.metrics})

    def add_mark(self, target: Target, kind: MarkKind) -> None:
        """Notes a fact about a checkpoint, once it exists."""
        if self._session.group.rank == 0:
            self._saves.asides.add_mark(target, kind)

    def free_space(self) -> None:
        """Has removed what retention allows to remove."""
        self._saves.asides.free_space()

    def check_tag(self, tag: TagName) -> None:
        """Refuses a name that is taken.

        Raises:
            NameTaken: it is.
        """
        if exists(self._session.store.storage, layout.tag(tag)):
            raise NameTaken(f"there is a tag {tag!s} already; tags do not move")

    def add_tag(self, target: Target, tag: TagName) -> None:
        """Names a checkpoint as soon as it exists; that it never will is said."""
        if target not in (self._newest, None if self.last is None else Target.of(self.last.address)):
            self._not_tagged(target, [tag])
            return
        if self.in_flight:
            self._tags.setdefault(target, []).append(tag)
        if self._session.group.rank == 0:
            self._saves.asides.add_tag(target, str(tag))

    def _not_tagged(self, target: Target, tags: Iterable[TagName]) -> None:
        for tag in tags:
            logger.error("there is no tag %s: %s, which it was meant for, was not saved", tag, target.address)

    # What becomes of them

    def listen(self) -> None:
        """Takes what has happened since.

        Raises:
            Fenced: a newer launch owns the run.
            HoldfastError: the last failure of more than is tolerated.
        """
        self._listen(None)

    def await_durable(self, target: Target) -> Record:
        """Waits for a checkpoint that was handed over.

        Raises:
            HoldfastError: it has failed.
        """
        while not self._settled(target):
            if not self._saves.drain(SILENT_SECONDS):
                raise SaveFailed(f"{target.address}: nothing was heard of it for {SILENT_SECONDS:.0f} s")
            self.listen()
            if not self._settled(target):
                raise SaveFailed(f"nobody knows what became of {target.address}; look into the store")
        if self.last is None or Target.of(self.last.address) != target:
            self._raise(self._failure or SaveFailed(f"{target.address} was not saved"))
        if self._unsound is not None and self._unsound.address == target.address:
            raise SaveFailed(f"{target.address} was damaged when it was read back; look after the disk, and save again")
        return self.last

    def await_until(self, left: Callable[[], float | None]) -> None:
        """Waits until nothing is in flight, as long as time is ``left``; errors as in `listen`."""
        while self.in_flight and (seconds := left()) is not None and seconds > 0:
            time.sleep(min(seconds, LOOK_SECONDS))
            self.listen()
        if left() is None:
            self.drain()

    def drain(self) -> None:
        """Waits until nothing is in flight, as long as it gets on; errors as in `listen`."""
        finished = self._saves.drain(SILENT_SECONDS)
        self.listen()
        if not finished:
            text = "saves are still in flight after %.0f s without any progress; they go on by themselves"
            logger.error(text, SILENT_SECONDS)

    @property
    def failure(self) -> HoldfastError | None:
        """Why the newest save has failed, if it has, and nobody was told by an exception."""
        return self._failure

    def check(self) -> None:
        """Refuses an end that looks good and is not.

        Raises:
            HoldfastError: the last save has failed, and nobody was told by an exception.
            SaveFailed: nobody knows what becomes of it, or it was damaged when it was read back.
        """
        if self._failure is not None:
            raise self._failure
        if self.in_flight and self._newest is not None:
            raise SaveFailed(
                f"{self._newest.address}, the last save, is not durable yet, and nothing is heard of it; "
                "it goes on by itself, so look into the store whether it has come to an end"
            )
        if self._unsound is not None:
            raise SaveFailed(
                f"{self._unsound.address}, the last checkpoint, was damaged when it was read back; the next start "
                "goes back to one that is not: look after the disk, then start again"
            )

    def interrupted(
        self,
        by: str,
        step: int,
        dropped: str,
        *,
        kind: Kind = Kind.FAILED,
        left: Callable[[], float | None] = lambda: None,
        traceback: str = "",
    ) -> None:
        """The training ends in the middle: what is in reserve and in flight is saved, what stands is said.

        Args:
            by: what has ended it.
            step: at which step.
            dropped: what was not done because of it, for the log.
            kind: of the checkpoint that a reserve becomes; FAILED unless somebody wanted this end.
            left: how long it may be waited for.
            traceback: for the journal.
        """
        self._saves.rescue(kind, f"the training ended with {by}")
        try:
            self.await_until(left)
        except HoldfastError as error:
            logger.error("%s", error)
        stands = f"the last checkpoint is {self.last.address}" if self.last else "there is no checkpoint yet"
        logger.warning("the training ended with %s at step %d; %s%s", by, step, stands, dropped)
        if kind is Kind.FAILED:
            more = {"traceback": traceback} if traceback else {}
            self._after.note("failed", f"{by} at step {step}{dropped}", **more)
        else:
            self._after.note("left", f"{by} at step {step}{dropped}")

    def close(self, seconds: float) -> None:
        """Lets the saver go; what it says last is said, for nobody waits for it any more."""
        self._saves.close(seconds)
        try:
            self.listen()
        except HoldfastError as error:
            logger.error("heard at the very end: %s", error)

    def _settled(self, target: Target) -> bool:
        return self._newest != target or (self.last is not None and Target.of(self.last.address) == target)

    def _listen(self, failed: HoldfastError | None) -> None:
        for outcome in self._saves.outcomes():  # all of them: what comes behind a failure may make up for it
            failed = self._take(outcome) or failed
        if failed is not None and self._failure is not None:
            self._raise(failed)

    def _raise(self, error: HoldfastError) -> NoReturn:
        """Whoever catches it knows of it, so the end of the training does not say it again."""
        self._failure = None if self._failure is error else self._failure
        raise error

    def _take(self, outcome: Outcome) -> HoldfastError | None:
        if isinstance(outcome, GivenUp):
            if not outcome.on_purpose:
                return self._given_up(outcome.target, outcome.error)
            self._made_way(outcome)
        elif isinstance(outcome, Committed):
            self._committed(outcome.record)
        else:
            self._followed(outcome)
        return None

    def _committed(self, record: Record) -> None:
        if self._is_newer(record):
            self.last = record
            self._new.append(record)
            self._took.append(record.timing.durable)
            self._session.parent = record.address
        self._good_at = time.monotonic()
        if self._failed is None or (record.timeline, record.step) >= (self._failed.timeline, self._failed.step):
            self._failures, self._failure, self._failed = 0, None, None
        self._tags.pop(Target.of(record.address), None)
        self._after.committed(record)
        for text in record.anomalies if self._session.group.rank == 0 else ():
            logger.warning("%s: %s", record.address, text)
        level = logging.INFO if self._session.group.rank == 0 else logging.DEBUG
        logger.log(level, "saved %s: %s; %s", record.address, record.reason, sentence(record))

    def _is_newer(self, record: Record) -> bool:
        """Whether the line goes on from it: not if it was staged before a restore, or is older and came late."""
        if record.timeline != self._session.timeline:
            return False
        last = self.last
        same = last is not None and (last.run, last.launch, last.timeline) == (
            record.run,
            record.launch,
            record.timeline,
        )
        return last is None or not same or record.step > last.step

    def _followed(self, outcome: Followed) -> None:
        self._after.gone(outcome.deleted)
        self._deleted += outcome.deleted
        if outcome.problem:
            # What is read back in turn is what the newest checkpoint relies on.
            self._unsound = outcome.record or self.last
        elif outcome.record is not None:
            self._unsound = None
        if outcome.problem and outcome.record is not None:
            self._after.note("damaged", f"{outcome.record.address}: {outcome.problem}")

    def _made_way(self, outcome: GivenUp) -> None:
        """A save that was not begun yet had to make way for a newer one: no failure, but it will not be."""
        logger.warning("%s", outcome.error)
        self._after.note("skipped", str(outcome.error))
        self._after.gone([outcome.target.id])
        self._not_tagged(outcome.target, self._tags.pop(outcome.target, ()))

    def _given_up(self, target: Target, error: HoldfastError) -> HoldfastError | None:
        """The error, if it must end the training."""
        self._failures, self._failure, self._failed = self._failures + 1, error, target
        self._after.gone([target.id])
        self._not_tagged(target, self._tags.pop(target, ()))
        self._newest = None if self._newest == target else self._newest
        stands = f"{self.last.address} stands" if self.last else "there is no checkpoint yet"
        logger.error("the save of %s has failed: %s; %s", target.address, error, stands)
        self._after.note("save failed", f"{target.address}: {error}")
        limit = self._tolerance.exceeded(self._failures, time.monotonic() - self._good_at)
        if limit is not None:
            error.add_note(f"holdfast ends the training: {limit}")
        return error if limit is not None or isinstance(error, Fenced) else None
