"""Where the training stands: which step, whether between steps, what was logged, and which save is due.

A *boundary* lies between two optimizer steps (`holdfast.recovery.progress`).
Saves are made at boundaries only: between two iterations, or in the body
before anything has changed. Random states and the position in the data are
those from before the next batch is drawn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from holdfast.errors import StateMismatch
from holdfast.ids import TagName
from holdfast.policy import kind_of
from holdfast.records import Kind, Record, Target
from holdfast.recovery.afterwards import Afterwards
from holdfast.recovery.checkpoints import Checkpoints
from holdfast.recovery.decisions import Decisions
from holdfast.recovery.exactness import say_resumed
from holdfast.recovery.finding import Mismatch, find_together
from holdfast.recovery.loading import Loaded, load
from holdfast.recovery.measuring import plain, taken
from holdfast.recovery.progress import Progress
from holdfast.recovery.reducing import reduced
from holdfast.recovery.session import Plan, Session
from holdfast.recovery.signals import StopRequests
from holdfast.recovery.taking import Taking
from holdfast.recovery.triggers import Moment, Trigger
from holdfast.recovery.whole import Whole
from holdfast.saver import SaveRequest
from holdfast.state import Snapshot, rng
from holdfast.state.gradients import clear_gradients
from holdfast.state.loaders import LoaderPosition

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 60.0
"""How long the end waits for the saver to end; it finishes by itself all the same."""

STOP_SECONDS = 10.0
"""How long a request to stop waits for the step at hand; then the checkpoint is made in the middle of it."""


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
        checkpoints: Checkpoints,
        after: Afterwards,
        stops: StopRequests,
        accumulate: int | None,
    ) -> None:
        self.total: int | None = plan.total
        self.torn = False
        self.looping = False
        self._session, self._group = session, session.group
        self._whole = Whole(objects=objects, values=values, files=files, rank=session.group.rank)
        self._checkpoints, self._after = checkpoints, after
        self._latest: tuple[Kind, str, int] = (Kind.MANUAL, "", -1)
        self._save_trigger = Trigger(plan.save, after)
        self._decisions = Decisions(session.group, stops, self._save_trigger)
        self._stage_trigger = None if plan.stage is None else Trigger(plan.stage, after)
        self.progress = Progress(objects.values(), values, accumulate)
        self._taking = Taking(session, self._whole, self.progress)
        self._position: LoaderPosition | None = None
        self._called, self._moved, self._rng = 0, False, cast("Any", None)
        self._data: dict[str, Any] | None = None
        self._begin_at(0)

    def _begin_at(self, step: int) -> None:
        self.progress.begin_at(step)
        self._reached = self._epoch_ended = self._stopped = False
        self._untouched, self._rng = True, None
        self._metrics: dict[str, Any] = {}  # of the boundary
        self._coming: dict[str, Any] = {}  # of the step at hand
        self._asked: list[tuple[TagName | None, str]] = []
        self._decisions.forget()
        self._satisfied(step, 0)

    def _satisfied(self, step: int, epochs: int) -> None:
        for trigger in filter(None, (self._save_trigger, self._stage_trigger)):
            trigger.satisfied(step, epochs)

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self.progress.step

    @property
    def last(self) -> Record | None:
        """The newest durable checkpoint of this line."""
        return self._checkpoints.last

    @property
    def stop_asked(self) -> str | None:
        """What has asked the training to stop, if anything has."""
        return self._decisions.stop

    # Resuming

    @property
    def unbegun(self) -> bool:
        """Whether nothing was restored or begun yet."""
        return not self._session.begun

    def resume(self) -> None:
        """Restores the newest good checkpoint; a fresh start leaves everything as it is."""
        fresh, self.torn = self._session.resume(self._load) is None, False
        if fresh:
            self._group.agreed(self._whole.check, "whether the state can be saved")
            self._checkpoints.resumed(None)

    def restore_from(self, reference: str | None) -> None:
        """Restores a named checkpoint, or the newest one of this line again, as a new timeline."""
        self.settle()
        self._checkpoints.drain()
        asked = self._session.named(reference).address if reference else None
        self._session.resume(self._load, asked or self._session.newest(self.last).address, asked)
        self.torn = False

    def restore_parts(self, reference: str | None, only: tuple[str, ...]) -> list[str]:
        """Restores parts of a checkpoint and nothing else, no step number either; returns what was not loaded.

        A run that has work of its own goes on with that: what its first launch began with, it has learned from since.
        """
        self._checkpoints.drain()
        record = self._session.named(reference) if reference else self._session.newest(self.last)
        if self.unbegun and self._session.has_work():
            self.resume()
            if reference is None or record.run != self._session.run.number:
                logger.info("%s goes on from its own work, not from %s", self._session.run.number, record.address)
                return []
        not_loaded = self._read(record, only).not_loaded
        if self.unbegun:
            self._session.begin_with_parts(record, only)
            self._checkpoints.resumed(None)
        return not_loaded

    def _read(self, record: Record, only: tuple[str, ...] | None = None) -> Loaded:
        before, self.torn = self.torn, True
        try:
            loaded = load(self._session.store, record, self._whole, self._group, only=only)
        except StateMismatch:
            self.torn = before  # it is found before anything is changed
            raise
        self.torn = before or only is None  # a whole state is not of the old timeline: until the new one is noted
        return loaded

    def _load(self, record: Record) -> None:
        loaded = self._read(record)
        # Gradients of the state that was left, NaN perhaps, would be added to those of the first batch.
        clear_gradients(self._whole.objects.values())
        self._begin_at(record.step)
        self._rng, self._data = loaded.rng, loaded.data
        self._moved = record.world != self._group.size
        self._satisfied(record.step, int((loaded.data or {}).get("epoch", 0)))
        self._checkpoints.resumed(record)
        if self._position is not None:
            self._find(self._position)
        say_resumed(record, rng.restore(loaded.rng or rng.capture()), self._group, self._after.note)

    # The loop

    def attach_loader(self, position: LoaderPosition, mismatch: Mismatch = Mismatch.RAISE) -> LoaderPosition:
        """Takes over the loader of the loop, at its place: that of the checkpoint, or where an earlier loop left it."""
        self.settle()
        known = self._position
        if known is not None and known.loader is position.loader:
            position = known
        elif self._untouched and self.ended():
            self.begin_loop()  # nothing is drawn: what is saved has the stored position, not that of a fresh loader
            return position
        elif self._untouched:
            self._find(position, mismatch)
        if known is not None and known is not position:
            known.close()
        self._position = position
        self.begin_loop()
        return position

    def begin_loop(self) -> None:
        """The next batch is drawn from here on."""
        self.settle()
        if self._untouched and self._rng is not None:
            # The user's code between the restore and the loop may have drawn numbers.
            rng.restore(self._rng)
        else:
            self._rng = rng.capture()
        if stop := self._decisions.stop:
            logger.warning("%s has asked to stop, so the loop ends at once", stop)

    def _find(self, position: LoaderPosition, mismatch: Mismatch = Mismatch.RAISE) -> None:
        if self._data is not None:
            if self._moved and position.strategy != "cursor":
                mismatch = Mismatch.RESTART_EPOCH  # nobody can tell which samples the other ranks have had
            with self._whole.generators_kept():
                find_together(self._group, position, self._data, mismatch)
            self._satisfied(self.step, position.epoch + (position.batch == position.length))

    def ended(self) -> bool:
        """Whether the total is reached, or a signal has asked to stop and this is the place to."""
        stop = self._decisions.stop is not None and (self.progress.clean or self._stopped)
        return stop or (self.total is not None and self.step >= self.total)

    def enter(self) -> None:
        """The body begins."""
        self._untouched = self._epoch_ended = False
        self.progress.enter()

    def leave(self, *, epoch_ended: bool) -> None:
        """The body has ended: count, save what is due, and notice a request to stop."""
        if self.progress.leave():
            self._metrics, self._coming = self._coming, {}
        if self.progress.clean or self.progress.overdue or self._decisions.waited(STOP_SECONDS):
            self._boundary(epoch_ended)

    def epoch_over(self) -> None:
        """The loader has come to its end; only where it does not know its length is this news."""
        position = self._position
        if position is not None and position.length is None and self.progress.clean:
            self._boundary(epoch_ended=True)

    def end_loop(self, reached: bool = False) -> None:
        """The loop has come to its end by itself: a request to stop that came after the last body is served."""
        self._reached = self._reached or reached
        self._decisions.end()
        if self._decisions.stop and self.progress.clean and self._checkpoints.here(self.step) is None:
            self._save(Kind.PREEMPTED, f"{self._decisions.stop} asked to stop")

    def settle(self) -> None:
        """If the body was left by `break`: counts its step if it was made, and makes the saves that waited for it.

        Not while the generator closes: nobody would see an error there, and an exception may be on its way.
        """
        if self.looping:
            return
        if self.progress.left(told=self._told):
            self._metrics, self._coming = self._coming, {}
        self._save_asked()

    def _boundary(self, epoch_ended: bool) -> None:
        self._rng = rng.capture()
        self._epoch_ended = epoch_ended
        self._checkpoints.listen()
        self._checkpoints.prepare(self._snapshot)
        reason = self._decisions.due(self._moment(), self._metrics, self._called)
        if stop := self._decisions.stop:
            self._save(Kind.PREEMPTED, f"{stop} asked to stop")
            self._stopped = True
        elif reason:
            self._save(kind_of(reason), reason)
        self._save_asked()
        self._reserve()

    def _reserve(self) -> None:
        """Keeps this state in memory, where the saver finds it if this process dies."""
        trigger = self._stage_trigger
        if trigger is None or not self._checkpoints.reserves or self._checkpoints.here(self.step):
            return
        if reason := trigger.due(self._moment(), self._metrics, by_step=True if self._group.size > 1 else None):
            request = self._request(Kind.REGULAR, f"kept in reserve, {reason}", time.monotonic())
            self._checkpoints.reserve(self._taking.compared(self._snapshot()), request)
            trigger.satisfied(self.step, self._moment().epochs)

    @property
    def _epoch(self) -> int:
        """The epoch, from 0, that the boundary lies in: a loader without a length is in the next one at its end."""
        position = self._position
        if position is None:
            return 0
        return position.epoch - (self._epoch_ended and position.length is None)

    def _moment(self) -> Moment:
        return Moment(self.step, self._epoch, self._epoch_ended)

    # Logging and saving

    def log(self, metrics: Mapping[str, Any], reduce: str | None) -> None:
        """See `Checkpointer.log`."""
        self.settle()
        found = taken(metrics) if reduce is None else reduced(self._group, taken(metrics), reduce)
        if not self.progress.before_step:
            self._coming |= found
        elif here := self._checkpoints.here(self.step):
            self._checkpoints.add_metrics(here, plain(found))
        else:
            self._metrics |= found
            self._save_best(found)

    def _save_best(self, logged: Mapping[str, Any]) -> None:
        reason = self._decisions.measured(self._moment(), self._metrics, logged)
        if reason and self._at_boundary():
            self._save(kind_of(reason), reason)
        elif reason:
            logger.warning("%s at step %d, but the body has gone on: log it before the forward pass", reason, self.step)

    def save_asked(self, tag: TagName | None, reason: str, *, durable: bool) -> Record | None:
        """See `Checkpointer.save`."""
        self.settle()
        self._called += 1
        self._asked.append((tag, reason))
        if self.progress.in_body and not self._at_boundary():
            return None
        target = self._save_asked()
        if target is not None and durable:
            return self._checkpoints.await_durable(target)
        return self.last if self.last is not None and target == Target.of(self.last.address) else None

    def _save_asked(self) -> Target | None:
        target = None
        while self._asked:
            tag, reason = self._asked.pop(0)
            target = self._save(Kind.MANUAL, reason)
            if tag is not None:
                self._group.told(partial(self._checkpoints.check_tag, tag), "whether the tag is free")
                self._checkpoints.add_tag(target, tag)
        return target

    def _at_boundary(self) -> bool:
        """Whether a checkpoint of the boundary can be made now: the state is its, and the position can be told."""
        return self.progress.untouched and (self._told or not self.progress.in_body)

    @property
    def _told(self) -> bool:
        """Whether the loader can say where it was before it gave the batch at hand."""
        return self._position is None or self._position.before() is not None

    def _save(self, kind: Kind, reason: str) -> Target:
        """The checkpoint of this boundary; there is one at most, so an existing one is returned."""
        if (here := self._checkpoints.here(self.step)) is not None:
            return here
        began, self._latest = time.monotonic(), (kind, reason, self.step)
        target = Target.of(self._session.address(self.step))
        snapshot = self._taking.compared(self._snapshot())
        self._satisfied(self.step, self._moment().epochs)
        self._checkpoints.save(snapshot, self._request(kind, reason, began), urgent=kind is Kind.PREEMPTED)
        return target

    def _snapshot(self) -> Snapshot:
        # What happens outside of a loop, an evaluation perhaps, goes on from there; inside, the boundary counts.
        at_boundary = self._rng if self.looping or self.progress.in_body else None
        return self._taking.snapshot(self._position, self._data, at_boundary or rng.capture())

    def _request(self, kind: Kind, reason: str, began: float) -> SaveRequest:
        return self._taking.request(
            self._position, epoch=self._epoch, metrics=self._metrics, kind=kind, reason=reason, began=began
        )

    def finish(self) -> None:
        """The ``final`` checkpoint, if the total was reached; whatever is in flight is waited for.

        Raises:
            HoldfastError: the last save has failed, or was damaged when it was read back.
        """
        self.settle()
        self._save_final()
        self._checkpoints.drain()
        if self._checkpoints.failed and self._latest[2] == self.step and self._group.size == 1:
            self._save(*self._latest[:2])  # once more, before the state is gone for good
            self._checkpoints.drain()
        self._checkpoints.check()

    def _save_final(self) -> None:
        if not (self._reached or (self.total is not None and self.step >= self.total)):
            return
        if self._checkpoints.in_flight:
            self._checkpoints.drain()  # what it becomes decides whether there is anything left to do
        if self.last is not None and self.last.step == self.step and self._after.is_final(self.last):
            return
        if self._checkpoints.here(self.step) is not None and self.last is not None and not self._checkpoints.in_flight:
            self._after.finished(self.last)
        else:
            self._save(Kind.FINAL, f"the end: {self.step} steps")

    def interrupted(self, error: BaseException | None) -> None:
        """The block was left by an exception: what is staged is finished, and nothing else is saved."""
        self._group.close()  # so that no other rank waits for this one
        self.progress.left(told=self._told)
        dropped = f"; a save that was asked for ({self._asked[0][1]}) was not made" if self._asked else ""
        self._checkpoints.interrupted(type(error).__name__, self.step, dropped)

    def close(self) -> None:
        """Lets saver and loader go, and writes the journal."""
        self._checkpoints.close(CLOSE_SECONDS)
        self._after.close()
        self._group.close()
        if self._position is not None:
            self._position.close()
