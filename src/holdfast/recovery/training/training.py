"""Where the training stands: which step, whether between steps, what was logged, and which save is due.

A *boundary* lies between two optimizer steps (`holdfast.recovery.steps.progress`).
Saves are made at boundaries only: between two iterations, or in the body
before anything has changed. Random states and the position in the data are
those from before the next batch is drawn (`holdfast.recovery.saving.place`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from holdfast.ids import RecordAddress, TagName
from holdfast.policy import kind_of
from holdfast.records import Record
from holdfast.recovery.caring.care import Care, Caring
from holdfast.recovery.caring.remedying import Stopped
from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.handover.beating import Beating
from holdfast.recovery.launching.session import Plan, Session
from holdfast.recovery.restoring.exactness import say_resumed
from holdfast.recovery.restoring.finding import Mismatch
from holdfast.recovery.restoring.left_out import LeavingOut
from holdfast.recovery.restoring.loading import Loaded
from holdfast.recovery.restoring.whole import Whole
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.saving.boundary_saves import BoundarySaves
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.recovery.saving.place import Place
from holdfast.recovery.saving.taking import Taking
from holdfast.recovery.saving.triggers import Trigger
from holdfast.recovery.steps.progress import Progress
from holdfast.recovery.steps.unlogged import Unlogged
from holdfast.recovery.stopping.decisions import Decisions
from holdfast.recovery.stopping.ending import End
from holdfast.recovery.stopping.failing import Failing
from holdfast.recovery.stopping.preempting import Hook, Preempting, Preemption
from holdfast.recovery.training.asking import Asking
from holdfast.recovery.training.restoring import Restoring
from holdfast.state import rng
from holdfast.state.loaders import LoaderPosition


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
        on_preempt: Hook | None,
        caring: Caring,
        beating: Beating,
    ) -> None:
        self.total, self.beating, self.decision = plan.total, beating, session.decision
        self._session, self._group, self._objects, self._world = session, session.group, objects, session.group.size
        self._checkpoints, self._after, self._stops = checkpoints, after, stops
        whole = Whole(objects=objects, values=values, files=files, rank=session.group.rank)
        trigger = Trigger(plan.save, after)
        self.decisions = Decisions(session.group, stops, trigger)
        self.progress = Progress(objects, values, accumulate)
        self._place, self._left_out = Place(session.group, whole), LeavingOut(session.group.size)
        self._saves = BoundarySaves(
            session,
            checkpoints,
            Taking(session, whole, self.progress, self._left_out),
            self._place,
            self.progress,
            trigger=trigger,
            stage=None if plan.stage is None else Trigger(plan.stage, after),
        )
        self.restoring = Restoring(session, whole, checkpoints, self._resumed, self._saves.outdate, plan.not_restored)
        self._preempting = Preempting(stops, self._saves, checkpoints, after, on_preempt)
        self.lacks = self._preempting.lacks
        self._end, self._unlogged = self._ending(objects), Unlogged(plan.save, plan.keep, caring.rules)
        self._asking = Asking(
            session.group,
            progress=self.progress,
            place=self._place,
            saves=self._saves,
            checkpoints=checkpoints,
            decisions=self.decisions,
            watch=self._end.watch,
            beating=beating,
            at_boundary=self._at_boundary,
            unlogged=self._unlogged,
        )
        self.turned = False  # whether it has gone back inside of the loop, which then fetches its batches anew
        self._care = Care(
            caring,
            session,
            objects,
            saves=self._saves,
            checkpoints=checkpoints,
            left_out=self._left_out,
            beating=beating,
            after=after,
            go_back=self._go_back,
        )
        self._begin_at(0)

    def _ending(self, objects: Mapping[str, object]) -> End:
        self._failing = Failing(
            objects,
            self._group,
            progress=self.progress,
            place=self._place,
            saves=self._saves,
            checkpoints=self._checkpoints,
            stops=self._stops,
            torn=lambda: self.restoring.torn,
        )
        return End(
            completed=self._completed,
            session=self._session,
            progress=self.progress,
            saves=self._saves,
            checkpoints=self._checkpoints,
            decisions=self.decisions,
            stops=self._stops,
            preempting=self._preempting,
            failing=self._failing,
            after=self._after,
        )

    def _begin_at(self, step: int) -> None:
        self.progress.begin_at(step)
        self._reached = self._stopped = False
        self._asking.begin()
        self.decisions.forget()
        self._saves.satisfied(step, 0)

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self.progress.step

    @property
    def last(self) -> Record | None:
        """The newest durable checkpoint of this line."""
        return self._checkpoints.last

    @property
    def preempted(self) -> Preemption | None:
        """How it ended, if it was asked to stop."""
        return self._preempting.facts

    def restore_from(self, reference: str | None) -> None:
        """Restores a named checkpoint, or the newest one of this line again, as a new timeline."""
        self._secure_the_end()
        self._end.rewound()
        self.restoring.restore_from(reference)

    def restore_parts(self, reference: str | None, only: tuple[str, ...]) -> list[str]:
        """Restores parts of a checkpoint, into the state as it is."""
        self._secure_the_end()
        return self.restoring.restore_parts(reference, only)

    def _secure_the_end(self) -> None:
        """Else the final checkpoint would have what is restored now, beside what is not."""
        self.settle()
        if self._completed():
            self._end.finish()

    def _resumed(self, record: Record, loaded: Loaded) -> None:
        """A whole state is loaded: everything else goes back with it."""
        self._begin_at(record.step)
        self._place.begin_at(loaded, moved=record.world != self._group.size)
        self._saves.satisfied(record.step, int((loaded.data or {}).get("epoch", 0)))
        self._checkpoints.resumed(record)
        self._left_out.begin_at(record.step, loaded.data)
        self._world = record.world
        self._care.resumed(record)
        if self._place.position is not None:
            self._find(self._place.position)
        say_resumed(record, rng.restore(loaded.rng or rng.capture()), self._group, self._after.note)

    def _go_back(self, address: RecordAddress, why: str) -> None:
        """In the middle of the loop, at a boundary."""
        self._end.rewound()
        self.restoring.go_back(address, why)
        self._place.go(fresh=True)
        self.turned = True

    def attach_loader(self, position: LoaderPosition, mismatch: Mismatch = Mismatch.RAISE) -> LoaderPosition:
        """Takes over the loader of the loop, at its place: that of the checkpoint, or where an earlier loop left it."""
        self.settle()
        known = self._place.position
        if known is not None and known.loader is position.loader:
            position = known
        elif self.progress.fresh and self.ended():
            self.begin_loop()  # nothing is drawn: what is saved has the stored position, not that of a fresh loader
            return position
        elif self.progress.fresh:
            self._find(position, mismatch)
        if known is not None and known is not position:
            known.close()
        self._place.position = position
        self._left_out.boundary(self.step, position)
        self.begin_loop()
        return position

    def begin_loop(self) -> None:
        """The next batch is drawn from here on."""
        self.settle()
        self._place.go(fresh=self.progress.fresh)

    def _find(self, position: LoaderPosition, mismatch: Mismatch = Mismatch.RAISE) -> None:
        if self._place.find(position, mismatch):
            self._left_out.found(position, self._place.stored or {}, self._world, self._group.size)
            self._left_out.boundary(self.step, position)
            self._saves.satisfied(self.step, position.epoch + (position.batch == position.length))

    def ended(self) -> bool:
        """Whether the total is reached, or a signal has asked to stop and this is the place to."""
        stop = self.decisions.stop is not None and (self.progress.clean or self._stopped)
        return stop or (self.total is not None and self.step >= self.total)

    def _completed(self) -> bool:
        reached = self._reached or (self.total is not None and self.step >= self.total)
        return reached and self._preempting.ailing is None

    def enter_loop(self) -> None:
        """A loop runs from now on."""
        self._saves.inside, self._reached = True, False  # that one before it has ended says nothing about this one
        self._end.trains_on()
        self.progress.counter.__enter__()
        if stop := self.decisions.stop:
            self._preempting.repeated(stop)
        else:
            self._preempting.forget()  # whoever pressed Ctrl-C wants another loop
        self._heed(self._care.enter_loop(self.step))
        self._end.watch.go()

    def leave_loop(self) -> None:
        """It runs no more, whatever has ended it."""
        self._saves.inside = False
        self._end.watch.halt()
        self._care.leave_loop()
        if not self.progress.in_body:
            self.progress.counter.__exit__(None, None, None)  # else what the program does behind a `break` counts

    def passes_over(self) -> bool:
        """Whether the batch that was just fetched is one that was left out by a rollback."""
        position = self._place.position
        self.beating.alive()
        return position is not None and self._left_out.passes_over(position)

    def enter(self) -> None:
        """The body begins."""
        self.turned = self._place.epoch_ended = False
        self.beating.alive()
        self.progress.enter()

    def leave(self, *, epoch_ended: bool) -> None:
        """The body has ended: count, save what is due, and notice a request to stop."""
        if self.progress.leave():
            self._asking.counted()
        if self.progress.clean or self.progress.overdue or self.decisions.pressed(self._preempting.lacks):
            self._boundary(epoch_ended)
        elif self.progress.stuck and self._care.sees_skips:
            self._heed(self._care.stuck(self.step, self._asking.logged()))
            self._go()

    def epoch_over(self) -> None:
        """The loader has come to its end; only where it does not know its length is this news."""
        position, clean = self._place.position, self.progress.clean
        if position is not None and position.length is None and clean:
            self._boundary(epoch_ended=True)

    def end_loop(self, reached: bool = False) -> bool:
        """The loop has come to its end by itself; whether it goes on, for what was found last has taken it back."""
        self._end.watch.halt()
        self.beating.rest()
        self.decisions.end()
        self.turned = False
        if self._group.size > 1 and self.progress.clean:
            self._heed(self._care.treat(self.step, self.decisions.ill))
        if self.turned and not self.ended():
            self._go()
            return True
        self._reached = self._reached or reached
        self._end.stopped()
        return False

    def broken(self, error: BaseException) -> bool:
        """What we do for the loop has raised; whether that is no failure, but pre-emption."""
        self._end.watch.halt()
        return self._end.broken(error)

    def settle(self) -> None:
        """If the body was left by `break`: counts its step if it was made, and makes the saves that waited for it.

        Not while the generator closes: nobody would see an error there, and an exception may be on its way.
        """
        if self._saves.inside:
            return
        if self.progress.left(told=self._place.told):
            self._asking.counted()
        self.progress.counter.__exit__(None, None, None)
        self._asking.serve()

    def _boundary(self, epoch_ended: bool) -> None:
        self._end.watch.halt()
        self.beating.leave()
        self._end.boundary()
        self._place.mark(epoch_ended=epoch_ended)
        self._checkpoints.listen()
        self._checkpoints.prepare(self._saves.snapshot)
        self._left_out.boundary(self.step, self._place.position)
        self._after.flush()
        looks = self.progress.clean or self.progress.overdue
        ill = looks and self._care.look(self.step, self._asking.logged(), last=epoch_ended or self._completed())
        reason = self.decisions.due(
            self._place.moment(self.step), self._saves.metrics, self._asking.called, self._preempting.lacks(), ill=ill
        )
        if looks:
            self._heed(self._care.treat(self.step, self.decisions.ill))
        else:
            self._care.waits(self.decisions.ill)
        if not self.turned:
            self._save_due(reason)
        self._go()

    def _go(self) -> None:
        self._care.go(self.step)
        self._end.watch.go()

    def _save_due(self, reason: str | None) -> None:
        if stop := self.decisions.stop:
            self._preempting.save(stop, self.decisions.lacks)
            self._stopped = True
        elif reason:
            self._saves.save(kind_of(reason), reason)
        self._asking.serve()
        self._saves.reserve(by_step=True if self._group.size > 1 else None)

    def _heed(self, outcome: Record | Stopped | None) -> None:
        """Ends the training here, if that is what the health checks want."""
        if isinstance(outcome, Stopped):
            self._preempting.ails(outcome.why, "the state is not worth saving" if outcome.broken else None)
            self.decisions.stop_all(f"health: {outcome.why}")
            self._stopped = self._stopped or self._group.size > 1  # all of them are here, and no clock may part them

    def log(self, metrics: Mapping[str, Any], reduce: str | None) -> None:
        """See `Checkpointer.log`."""
        self.settle()
        self.beating.alive()
        self._asking.log(metrics, reduce)

    def save_asked(self, tag: TagName | None, reason: str, *, durable: bool) -> Record | None:
        """See `Checkpointer.save`."""
        self.settle()
        return self._asking.save(tag, reason, durable=durable)

    def _at_boundary(self) -> bool:
        """Whether a checkpoint of the boundary can be made now: the state is its, and the position can be told."""
        return self.progress.untouched and (self._place.told or not self.progress.in_body)

    def finish(self) -> None:
        """The ``final`` checkpoint, if the total was reached; whatever is in flight is waited for.

        Raises:
            HoldfastError: the last save has failed, or was damaged when it was read back.
        """
        with self._end.blamed():
            self.settle()
            self._unlogged.over()
            self._end.stopped()
            self._end.finish()

    def interrupted(self, error: BaseException) -> bool:
        """The block was left by an exception: the checkpoint that is possible; whether it was pre-emption after all."""
        self._group.close()  # so that no other rank waits for this one
        return self._end.interrupted(error, self._asking.dropped)

    def survives(self, error: BaseException) -> bool:
        """Whether a step that has failed for want of memory can be left out: its batches are smaller from now on."""
        text = f"{type(error).__name__}: {error}"[:500]
        return self._failing.undone(error) and self._care.survived(self.step, text, self._failing.back)

    def close(self, error: BaseException | None = None) -> None:
        """Lets saver and loader go, and writes the journal; ``error`` is what kept it from beginning."""
        with ExitStack() as rest:  # all of it, also where Ctrl-C comes in between
            for last in (self._place.close, self._group.close, partial(self._end.close, error)):
                rest.callback(last)
            rest.enter_context(self._end.blamed())
            self._care.close(self._end.patience)
            self.progress.counter.__exit__(None, None, None)
