"""Where the training stands: which step, whether between steps, what was logged, and which save is due.

A *boundary* lies between two optimizer steps. The loop enters its body at a
boundary and leaves it at the next one, or in the middle of an accumulation.
Saves are made at boundaries only: between two iterations, or in the body
before anything has changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from holdfast.catalog.marks import add_mark, read_record_marks
from holdfast.catalog.tags import create_tag
from holdfast.errors import (
    BeingDeleted,
    Damaged,
    SaveFailed,
    StateMismatch,
    StorageError,
)
from holdfast.ids import TagName
from holdfast.packs.codec import Codec
from holdfast.policy import Best, SaveFacts
from holdfast.records import Kind, MarkKind, Record
from holdfast.recovery.afterwards import Afterwards
from holdfast.recovery.exactness import exactness_of, say_inexact
from holdfast.recovery.loading import Loaded, load
from holdfast.recovery.measuring import plain
from holdfast.recovery.readback import quarantined_packs
from holdfast.recovery.session import Plan, Session
from holdfast.recovery.signals import StopRequests
from holdfast.recovery.whole import Whole
from holdfast.saver import InlineSaver, SaveRequest
from holdfast.state import rng
from holdfast.state.boundary import BufferChanges, OptimizerSteps
from holdfast.state.loaders import LoaderPosition

logger = logging.getLogger(__name__)

PATIENCE = 1000
"""Batches without an optimizer step after which a due save is made all the same, and a missing step is warned of."""


class Training:
    """The state machine behind `Checkpointer`; one per launch, not thread-safe."""

    def __init__(
        self,
        session: Session,
        objects: Mapping[str, object],
        values: dict[str, Any],
        files: dict[str, bytes],
        *,
        plan: Plan,
        codec: Codec,
        stops: StopRequests,
        counter: OptimizerSteps,
        accumulate: int | None,
    ) -> None:
        self.total: int | None = plan.total
        self.counter = counter
        self.torn = False
        self.last: Record | None = None
        self._unsound: Record | None = None
        self._session, self._plan, self._stops, self._accumulate = session, plan, stops, accumulate
        self._whole = Whole(objects=objects, values=values, files=files)
        self._saver = InlineSaver(session.launch, codec=codec)
        self._saver.distrust(quarantined_packs(session.store))
        self._after = Afterwards(session, plan.keep)
        self._buffers = BufferChanges(objects.values())
        self._position: LoaderPosition | None = None
        self._data: dict[str, Any] | None = None
        self._begin_at(0)

    def _begin_at(self, step: int) -> None:
        self.step = step
        self._clean, self._in_body, self._reached, self._unused = True, False, False, False
        self._untouched = True
        self._buffers.look()
        self._idle = 0
        self._metrics: dict[str, Any] = {}  # of the boundary
        self._coming: dict[str, Any] = {}  # of the step at hand
        self._asked: list[tuple[TagName | None, str]] = []
        self._rng: Any = None
        self._saved_step, self._saved_at, self._saved_epochs = step, time.monotonic(), 0

    # Resuming

    @property
    def unbegun(self) -> bool:
        """Whether nothing has been restored or begun yet."""
        return self._session.timeline < 0

    def resume(self) -> None:
        """Restores the newest good checkpoint; a fresh start leaves everything as it is."""
        record = self._session.resume(self._load)
        if record is None:
            self._whole.check()
            self._rng = rng.capture()

    def rewind(self) -> None:
        """Restores the newest checkpoint of this line again, as a new timeline.

        Raises:
            NothingToResume: this launch began from zero and has saved nothing yet.
        """
        self._session.resume(self._load, (self.last or self._session.newest()).address)

    def restore_from(self, reference: str) -> None:
        """Restores a named checkpoint."""
        asked = self._session.named(reference).address
        self._session.resume(self._load, asked, asked)

    def restore_parts(self, reference: str | None, only: tuple[str, ...]) -> list[str]:
        """Restores parts of a checkpoint and nothing else, no step number either; returns what was not loaded."""
        record = self._session.named(reference) if reference else (self.last or self._session.newest())
        not_loaded = self._read(record, only).not_loaded
        if self._session.timeline < 0:
            self._session.begin_with_parts(record, only)
            self._rng = rng.capture()
        return not_loaded

    def _read(self, record: Record, only: tuple[str, ...] | None = None) -> Loaded:
        before, self.torn = self.torn, True
        try:
            loaded = load(self._session.store, record, self._whole, only=only)
        except StateMismatch:
            self.torn = before  # it is found before anything is changed
            raise
        self.torn = before and only is not None
        return loaded

    def _load(self, record: Record) -> None:
        loaded = self._read(record)
        self._begin_at(record.step)
        self._rng, self._data = loaded.rng, loaded.data
        self._saved_epochs = int((loaded.data or {}).get("epoch", 0))
        self.last = record
        self._after.resumed(record)
        if self._position is not None:
            self._find_position()
        rng.restore(self._rng)
        say_inexact(record)

    def attach_loader(self, position: LoaderPosition) -> LoaderPosition:
        """Takes over the loader of the loop, at its place: that of the checkpoint, or where an earlier loop left it."""
        known, self._position = self._position, position
        if known is not None and known.loader is position.loader:
            self._position = known
        elif self._untouched:
            self._find_position()
        if self._untouched:
            # The user's code between the restore and the loop may have drawn numbers.
            rng.restore(self._rng)
        return self._position

    def _find_position(self) -> None:
        if self._position is not None and self._data is not None:
            self._position.load(self._data)
            with self._whole.generators_kept():
                self._position.replay(lambda replay: logger.info("%s", replay))
            self._saved_epochs = self._epochs(self._position.batch == self._position.length)

    # The loop

    def ended(self) -> bool:
        """Whether the total is reached, or a signal has asked to stop at this boundary."""
        return (self.total is not None and self.step >= self.total) or (self._stops.asked is not None and self._clean)

    def enter(self) -> None:
        """The body begins."""
        self._in_body, self._unused, self._untouched = True, False, False
        if self._clean:
            self._rng = rng.capture()
            self._buffers.note()
        self.counter.reset()

    def leave(self, *, epoch_ended: bool) -> None:
        """The body has ended: count, save what is due, and notice a request to stop."""
        self._settle()
        if self._clean or self._overdue():
            self._boundary(epoch_ended)

    def epoch_over(self) -> None:
        """The loader has come to its end; only where it does not know its length is this news."""
        position = self._position
        if position is not None and position.length is None and self._clean:
            self._boundary(epoch_ended=True)

    def left_early(self) -> None:
        """The loop was left by `break`, or has ended."""
        if self._in_body:
            self._settle_break()
        self._save_asked()

    def _settle_break(self) -> None:
        """After `break` the batch counts if the step was made; else the boundary before still stands."""
        if self._stepped():
            self._settle()
            self._rng = rng.capture()
        elif not self._at_boundary():
            # The state has moved on, or nobody can say where the loader was: what is saved now is not exact.
            self._in_body, self._unused = False, True

    def complete(self, reached: bool) -> None:
        """Notes that the last epoch is over."""
        self._reached = self._reached or reached

    def _settle(self) -> None:
        self._in_body = False
        self._clean = self._stepped()
        self._idle = 0 if self._clean else self._idle + 1
        self.step += self._clean
        if self._clean:
            self._metrics, self._coming = self._coming, {}
        if self._idle == PATIENCE:
            logger.warning(
                "no optimizer step in %d batches; if steps are made where no hook can see them "
                "(a foreign optimizer, a CUDA graph), give accumulate=",
                PATIENCE,
            )

    def _stepped(self) -> bool:
        if self._accumulate is not None:
            return (self._idle + 1) % self._accumulate == 0
        return self.counter.taken > 0 or not self.counter.sees

    def _overdue(self) -> bool:
        return self._idle >= PATIENCE and self._idle % PATIENCE == 0

    def _boundary(self, epoch_ended: bool) -> None:
        self._rng = None
        saved = self.last
        reason = self._due(self._metrics, epoch_ended)
        if self._stops.asked:
            self._save(Kind.PREEMPTED, f"{self._stops.asked} asked to stop")
        elif reason:
            self._save(self._kind(reason), reason)
        self._save_asked()
        if self.last is not saved:
            self._saved_epochs = self._epochs(epoch_ended)

    def _epochs(self, epoch_ended: bool) -> int:
        """Epochs completed at this boundary."""
        return 0 if self._position is None else self._position.epoch + epoch_ended

    def _due(self, metrics: Mapping[str, Any], epoch_ended: bool) -> str | None:
        epoch = 0 if self._position is None else self._position.epoch
        facts = SaveFacts(
            step=self.step,
            steps_since_save=self.step - self._saved_step,
            seconds_since_save=time.monotonic() - self._saved_at,
            epoch=epoch,
            epoch_ended=epoch_ended,
            epochs_since_save=self._epochs(epoch_ended) - self._saved_epochs,
            metrics=plain(metrics) if self._after.watches(self._plan.save) else {},
            saved=self._after.saved_metrics(self._plan.save),
        )
        return self._plan.save.due(facts)

    def _kind(self, reason: str) -> Kind:
        return Kind.BEST if all(part.startswith("best(") for part in reason.split("; ")) else Kind.REGULAR

    # Logging and saving

    def log(self, metrics: Mapping[str, Any]) -> None:
        """See `Checkpointer.log`."""
        if not self._before_step():
            self._coming |= metrics
        elif self._last_is_here() and self.last is not None:
            self._after.log(self.last, plain(metrics))
        else:
            self._metrics |= metrics
            best = any(isinstance(part, Best) and part.metric in metrics for part in self._plan.save.parts)
            reason = self._due(self._metrics, epoch_ended=False) if best and self._at_boundary() else None
            if reason:
                self._save(self._kind(reason), reason)

    def save_asked(self, tag: TagName | None, reason: str) -> Record | None:
        """See `Checkpointer.save`."""
        self._asked.append((tag, reason))
        if self._in_body and not self._at_boundary():
            return None
        self._save_asked()
        return self.last

    def _save_asked(self) -> None:
        while self._asked:
            tag, reason = self._asked.pop(0)
            record = self._save(Kind.MANUAL, reason)
            if tag is not None:
                create_tag(self._session.store, tag, record.address)

    def _at_boundary(self) -> bool:
        """Whether the state is that of the last boundary: no step was made in the body, and none is half made."""
        if not self._in_body:
            return self._clean
        told = self._position is None or self._position.before() is not None
        return told and self._before_step() and not self._buffers.any

    def _before_step(self) -> bool:
        return self._clean and not (self._in_body and self._stepped_in_body())

    def _stepped_in_body(self) -> bool:
        return self.counter.taken > 0 or not self.counter.sees

    def _last_is_here(self) -> bool:
        last, session = self.last, self._session
        if last is None or last.step != self.step:
            return False
        return (last.run, last.launch, last.timeline) == (session.run.number, session.launch.number, session.timeline)

    def _save(self, kind: Kind, reason: str) -> Record:
        """The checkpoint of this boundary; there is one at most, so an existing one is returned."""
        if self._last_is_here() and self.last is not None:
            return self.last
        data = self._data_state()
        snapshot = self._whole.snapshot(rng=self._rng or rng.capture(), data=data)
        record = self._saver.save(snapshot, self._request(kind, reason, data))
        self._session.parent, self.last = record.address, record
        self._saved_step, self._saved_at = self.step, time.monotonic()
        self._saved_epochs = 0 if data is None else int(data["epoch"])
        logger.info("saved %s: %s, %.2f s", record.address, reason, record.timing.stall)
        self._afterwards(record)
        return record

    def _afterwards(self, record: Record) -> None:
        try:
            damaged = self._after.saved(record)
            self._saver.distrust(damaged)
            self._unsound = record if damaged else None
        except (StorageError, BeingDeleted, Damaged) as error:
            # The checkpoint is committed; what follows it (verification, retention) is tried again after the next one.
            # Somebody may also have deleted it meanwhile, which is no reason to end a training.
            logger.warning("after the save of %s: %s", record.address, error)

    def _request(self, kind: Kind, reason: str, data: dict[str, Any] | None) -> SaveRequest:
        session = self._session
        return SaveRequest(
            timeline=session.timeline,
            step=self.step,
            epoch=None if data is None else int(data["epoch"]),
            parent=session.parent,
            kind=kind,
            reason=reason,
            metrics=plain(self._metrics),
            exactness=exactness_of(self._position, clean=self._clean, unused=self._unused),
            environment=session.environment,
            config_digest=session.config_digest,
        )

    def _data_state(self) -> dict[str, Any] | None:
        """The loader's position at the boundary: in the body, the batch at hand is not used up yet."""
        if self._position is None:
            return self._data
        return self._position.before() if self._in_body else self._position.state()

    # The end

    def finish(self) -> None:
        """The ``final`` checkpoint, if the total was reached.

        Raises:
            SaveFailed: the last checkpoint was damaged when it was read back, and no later save wrote it again.
        """
        self._save_final()
        if self._unsound is not None:
            raise SaveFailed(
                f"{self._unsound.address}, the last checkpoint, was damaged when it was read back; the next start "
                "goes back to the one before: look after the disk, then start again"
            )

    def _save_final(self) -> None:
        reached = self._reached or (self.total is not None and self.step >= self.total)
        if not reached or (self.last is not None and self._is_final(self.last)):
            return
        if self._last_is_here() and self.last is not None:
            add_mark(self._session.store, self.last.address, MarkKind.FINAL, by="checkpointer")
            return
        self._save(Kind.FINAL, f"the end: {self.step} steps")

    def _is_final(self, record: Record) -> bool:
        marked = record.kind is Kind.FINAL or read_record_marks(self._session.store, record.address).final
        return marked and record.step == self.step

    def interrupted(self, error: BaseException | None) -> None:
        """The block was left by an exception: nothing is saved, and it is said what stands."""
        stands = f"the last checkpoint is {self.last.address}" if self.last else "there is no checkpoint yet"
        logger.warning("the training ended with %s at step %d; %s", type(error).__name__, self.step, stands)
        self._after.note("failed", f"{type(error).__name__} at step {self.step}")

    def close(self) -> None:
        """Writes what is left of the journal and lets the loader go."""
        self._after.close()
        if self._position is not None:
            self._position.close()
