"""Does what the health checks ask for: tells somebody, frees space, saves, shrinks batches, goes back, stops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from holdfast.errors import InvalidInput, NotFound, UnknownReference
from holdfast.health import (
    Due,
    FreeSpace,
    Judgement,
    Notify,
    Rollback,
    SaveNow,
    Severity,
    ShrinkBatch,
    Skip,
    Stop,
    Verdict,
    Watch,
    skipped,
    suspects,
)
from holdfast.ids import RecordAddress
from holdfast.records import Kind, Record
from holdfast.recovery.caring.ailments import Ailments, Gone
from holdfast.recovery.caring.telling import ANSWER_SECONDS, Telling
from holdfast.recovery.launching.session import Session
from holdfast.recovery.restoring.left_out import LeavingOut, LeftOut, Spot, stretches_of
from holdfast.recovery.restoring.positions import spot_of
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.saving.boundary_saves import BoundarySaves
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.state.rates import free_rates, scale_rates, set_back

logger = logging.getLogger(__name__)

LATER = 2
"""Steps after which scaled rates are looked at again: by then whoever sets them at each step has done so."""


class Stopped(NamedTuple):
    """The training is to end at this boundary."""

    why: str
    broken: bool
    """Whether the state is not worth saving."""


class _Scaling(NamedTuple):
    """Rates were scaled."""

    before: list[float]
    factor: float
    look_at: int
    """The step at which they are looked at again."""


@dataclass(slots=True, kw_only=True)
class Remedying:
    """One per launch and rank; all ranks do the same. Belongs to the thread that trains."""

    session: Session
    watch: Watch
    ailments: Ailments
    saves: BoundarySaves
    checkpoints: Checkpoints
    left_out: LeavingOut
    after: Afterwards
    telling: Telling
    objects: Iterable[object]
    good_after: int
    go_back: Callable[[RecordAddress, str], None]
    """Restores a record, for a reason."""
    _scaling: _Scaling | None = None

    def do(self, judgement: Judgement, step: int) -> Record | Stopped | None:
        """Everything that is due.

        Args:
            judgement: of this boundary.
            step: completed optimizer steps.

        Returns:
            The record that the training has gone back to, or that it is to end, or neither.

        Raises:
            HoldfastError: a save or a restore has failed.
            Exception: what a function of the user's raises that shrinks batches.
        """
        for due in judgement.actions:
            match due.action:
                case Notify():
                    self._note("notify", due, step)
                    self._notify(due)
                case FreeSpace():
                    self._note("remedy", due, step)
                    self._free_space()
                case SaveNow():
                    self._note("remedy", due, step)
                    self.saves.save(Kind.REGULAR, f"health: {due.verdict}")
                case ShrinkBatch():
                    self._note("remedy", due, step)
                    due.action.callback(due.verdict)
                case Rollback():
                    return self._roll_back(due, due.action, judgement, step)
                case Stop():
                    return self._stop(due, judgement)
        return None

    def resumed(self, record: Record) -> None:
        """The training goes on from a record: what rollbacks to it have changed is no part of it, and changed again."""
        self._scaling = None
        self._change(self.ailments.to(record.id), self.ailments.scale_to(record.id), record)

    def look(self, step: int) -> None:
        """At a boundary: says so if scaled rates have been set back; looked at once, for one on a device is waited for.

        Args:
            step: completed optimizer steps.
        """
        scaling = self._scaling
        if scaling is None or step < scaling.look_at:
            return
        self._scaling = None
        now = free_rates(self.objects)
        if set_back(scaling.before, now, scaling.factor):
            self._say("rate-set-back", _set_back(scaling.factor, now), step=step)

    def close(self, seconds: float = ANSWER_SECONDS) -> None:
        """Waits a moment for those that are being told."""
        self.telling.close(seconds)

    def _change(self, rollbacks: Iterable[Gone], factor: float, record: Record) -> None:
        for gone in rollbacks:
            self.left_out.leave_out(stretches_of(gone.left_out, gone.unit))
        if factor != 1.0:
            self._scaling = _Scaling(free_rates(self.objects), factor, record.step + LATER)
            rates = scale_rates(self.objects, factor)
            logger.warning("learning rates are scaled by %g after rollbacks to %s: %s", factor, record.address, rates)

    def _notify(self, due: Due) -> None:
        assert isinstance(due.action, Notify)
        if self.session.group.rank == 0:
            self.telling.tell(due.action, due.verdict)

    def _free_space(self) -> None:
        if self.session.group.rank == 0:
            self.checkpoints.free_space()

    def _stop(self, due: Due, judgement: Judgement) -> Stopped:
        why = f"{due.verdict}" + (f" ({due.why})" if due.why else "")
        return Stopped(why, judgement.severity is Severity.BROKEN)

    def _roll_back(self, due: Due, action: Rollback, judgement: Judgement, step: int) -> Record | Stopped:
        broken = judgement.severity is Severity.BROKEN
        try:
            target = self._target(action.to, step, suspects(due.verdict, judgement.verdicts))
        except (NotFound, InvalidInput) as error:
            return Stopped(f"{due.verdict}; there is nothing to go back to: {error}", broken)
        if (refused := self.watch.landing(target.id)) is not None:
            return Stopped(f"{due.verdict}; {refused}", broken)
        stretch = self._stretch(action, due.verdict, judgement, target)
        self._note_rollback(due, action, target, stretch, step)
        self.go_back(target.address, f"rolled back from step {step}: {due.verdict}")
        landed = self.session.resumed
        return target if landed is None or landed.id == target.id else self._landed_elsewhere(target, landed)

    def _landed_elsewhere(self, target: Record, landed: Record) -> Record:
        """The target was damaged: what was to be left out and scaled from there is so from an older one on."""
        gone = msgspec.structs.replace(self.ailments.newest, target=landed.id)
        self.ailments.add(gone)
        text = f"{target.address} cannot be read, so it is {landed.address} that the training has gone back to"
        self._say("rollback", text, spent=self.watch.spent, to_step=landed.step, **msgspec.structs.asdict(gone))
        # What earlier rollbacks to it have changed was changed by going there.
        self._change([gone], 1.0 if gone.scale_lr is None else gone.scale_lr, landed)
        return landed

    def _target(self, to: str, step: int, why: Iterable[Verdict]) -> Record:
        """The newest one, whether its marks are in the store by now or not.

        Raises:
            NotFound: there is none.
        """
        self.checkpoints.drain()
        try:
            return self._last(why) if to == "last" else self._named(to, step)
        except UnknownReference:
            if to != "good":
                raise
            raise NotFound(self._none_good(why)) from None

    def _last(self, why: Iterable[Verdict]) -> Record:
        """The newest one from before what was found: known a boundary or more later, it may be in a save by then."""
        found = min(verdict.last + (verdict.severity is Severity.WARNING) for verdict in why)
        last = self.session.newest_of(lambda one: one.step < found and not one.has_nan)
        if last is None:
            raise NotFound(f"there is no checkpoint without NaN from before step {found}")
        return last

    def _none_good(self, why: Iterable[Verdict]) -> str:
        needed = f"no checkpoint is good yet (good_after={self.good_after} steps without a doubt after it are needed)"
        try:
            return f'{needed}; rollback(to="last") would go back to {self._last(why).address}'
        except NotFound:
            return f'{needed}, and there is none that rollback(to="last") could go back to'

    def _named(self, to: str, step: int) -> Record:
        target = self.session.named(f"@{to}")
        if target.has_nan:
            raise NotFound(f"{target.address} has NaN in it; name another one in rollback(to=)")
        if target.step > step:
            raise NotFound(f"{target.address} is ahead of step {step}")
        return target

    def _stretch(self, action: Rollback, asking: Verdict, judgement: Judgement, target: Record) -> Skip | None:
        if not action.skip_data:
            return None
        return skipped(target.step, suspects(asking, judgement.verdicts), self.watch.landings(target.id))

    def _note_rollback(self, due: Due, action: Rollback, target: Record, stretch: Skip | None, step: int) -> None:
        """Before anything is changed, and durable: who is killed in the middle of it goes on as if it were done."""
        found = None if stretch is None else self._batches_of(stretch, target)
        gone = Gone(
            target=target.id,
            left_out=[] if found is None else [found.plain()],
            unit=self.left_out.unit,
            scale_lr=action.scale_lr,
        )
        self.ailments.add(gone)
        left = f"without the data of steps {stretch.first} to {stretch.last}" if stretch and found else "with all data"
        text = f"from step {step} back to {target.address}, {left}: {due.verdict}"
        more = {"to_step": target.step, **msgspec.structs.asdict(gone)}
        self._say("rollback", text, step=step, spent=self.watch.spent, **more)

    def _batches_of(self, stretch: Skip, target: Record) -> LeftOut | None:
        if not self.left_out.knows(target.step):  # an earlier process was there
            unit, store = self.left_out.unit, self.session.store
            spot = self.session.group.told(lambda: spot_of(store, target, unit), "where it lies", Spot | None)
            if spot is not None:
                self.left_out.remember(target.step, spot)
        return self.left_out.batches_of(stretch, target.step)

    def _note(self, kind: str, due: Due, step: int) -> None:
        self._say(kind, f"{due.shown} at step {step}: {due.verdict}", step=step, spent=self.watch.spent)

    def _say(self, kind: str, text: str, **data: Any) -> None:
        logger.log(logging.WARNING if self.session.group.rank == 0 else logging.DEBUG, "%s: %s", kind, text)
        if self.session.group.rank == 0:
            self.after.note(kind, text, **data)
            self.after.close()  # it is in the journal before it is done


def _set_back(factor: float, now: list[float]) -> str:
    return (
        f"the learning rates were scaled by {factor:g} after a rollback, and {LATER} steps later they are {now}: the "
        "program sets them, or a scheduler that is not in state= or none of torch's; what sets them has to scale them"
    )
