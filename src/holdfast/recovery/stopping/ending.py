"""How a launch ends: completed, pre-empted, failed, or left; with the checkpoint that belongs to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from holdfast.catalog.journal.events import Ending
from holdfast.errors import Unhealthy
from holdfast.records import Kind
from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.launching.session import Session
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.saving.boundary_saves import BoundarySaves
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.recovery.steps.journalling import StepNotes
from holdfast.recovery.steps.progress import Progress
from holdfast.recovery.steps.stopwatch import Stopwatch
from holdfast.recovery.stopping.classifying import Cause, cause_of
from holdfast.recovery.stopping.decisions import Decisions
from holdfast.recovery.stopping.failing import Failing, traced
from holdfast.recovery.stopping.preempting import Preempting
from holdfast.recovery.stopping.standing import Standing

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 60.0
"""How long the end waits for the saver to end; it finishes by itself all the same."""

HURRIED = 0.1
"""How long it waits where nobody waits for it: after a second Ctrl-C, or when the time is over."""

LATE_SECONDS = 2.0
"""How much later than to a loader's worker a signal to the whole job may come to the training."""


class End:
    """One per launch. Not thread-safe.

    Args:
        completed: whether the total is reached.
        session: the launch.
        progress: the step.
        saves: of the boundary.
        checkpoints: what is durable.
        decisions: whether to stop.
        stops: what has asked.
        preempting: what is done then.
        failing: what is done after an exception.
        after: the journal.
    """

    def __init__(
        self,
        *,
        completed: Callable[[], bool],
        session: Session,
        progress: Progress,
        saves: BoundarySaves,
        checkpoints: Checkpoints,
        decisions: Decisions,
        stops: StopRequests,
        preempting: Preempting,
        failing: Failing,
        after: Afterwards,
    ) -> None:
        self._completed, self._session = completed, session
        self._alone, self._rank = session.group.size == 1, session.group.rank
        self._progress, self._saves, self._checkpoints = progress, saves, checkpoints
        self._decisions, self._stops = decisions, stops
        self._preempting, self._failing, self._after = preempting, failing, after
        self.watch = Stopwatch()
        self._notes = _notes_of(session, after)
        self._standing = Standing(session)
        self._hurried = False
        self._from_loop: BaseException | None = None
        self._error: BaseException | None = None
        self._how = Ending.LEFT

    def trains_on(self) -> None:
        """A loop begins: where that ends is the end."""
        self._standing.trains_on()
        self._how, self._error = Ending.LEFT, None

    @property
    def _over(self) -> bool:
        """Whether the training has reached its end, if only before something was restored."""
        return self._standing.end is not None or self._completed()

    def stopped(self) -> None:
        """The loop is over, or was left: if that was asked for, this is the pre-emption, once.

        Raises:
            HoldfastError: the checkpoint could not be made.
            Exception: what ``on_preempt`` raises.
        """
        stop = self._decisions.stop
        if stop is None or self._preempting.facts is not None or self._over:
            return
        if self._progress.untouched and not self._progress.fresh:
            self._preempting.save(stop, self._decisions.lacks if not self._alone else self._preempting.lacks())
        elif self._progress.moved:
            self._preempting.refuse("parameters have changed since the loop was left")
        self._preempting.conclude(stop, self._progress.step, first=self._rank == 0)

    def finish(self) -> None:
        """The ``final`` checkpoint, if the total was reached; whatever is in flight is waited for.

        Raises:
            HoldfastError: the last save has failed, or was damaged when it was read back.
            Unhealthy: the health checks have stopped the training.
        """
        with self.blamed():
            self._finish()
            if self._preempting.ailing is not None:
                raise self._unhealthy(self._preempting.ailing)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Within it, what is raised is how the launch ends."""
        try:
            yield
        except BaseException as error:
            self._blame(error)
            raise

    def _blame(self, error: BaseException) -> None:
        """The end has failed, whatever stood before: it is no training that was merely left."""
        self._hurried = self._hurried or isinstance(error, KeyboardInterrupt)
        if cause_of(error) is not Cause.ON_PURPOSE:
            self._how, self._error = Ending.FAILED, error
        elif (why := self._preempting.ailing) is not None:  # its exit code makes no good end of it
            self._how, self._error = Ending.FAILED, self._error or self._unhealthy(why)
        elif self._preempting.facts is not None and self._how is Ending.LEFT:
            self._how = Ending.PREEMPTED

    def _finish(self) -> None:
        if self._standing.end is None:
            self._save_final()
        if self._out_of_time:
            self._how = Ending.PREEMPTED  # it was said what stands
            return
        self._checkpoints.drain()
        if self._checkpoints.failure and self._saves.latest[2] == self._progress.step and self._alone:
            self._saves.again()  # once more, before the state is gone for good
            self._checkpoints.drain()
        self._how = Ending.COMPLETED if self._over else Ending.PREEMPTED if self._preempting.facts else Ending.LEFT
        self._error = None  # what the program has caught, and was made up for
        self._checkpoints.check()
        if self._completed():
            self._standing.reached(self._checkpoints.last)

    def _unhealthy(self, why: str) -> Unhealthy:
        """The health checks have stopped the training: that must not look like its end."""
        last = self._checkpoints.last
        stands = f"the last checkpoint is {last.address}" if last else "there is no checkpoint"
        return Unhealthy(f"the training was stopped at step {self._progress.step}: {why}; {stands}")

    @property
    def _out_of_time(self) -> bool:
        facts, left = self._preempting.facts, self._stops.left
        return facts is not None and not facts.durable and left is not None and left <= 0

    def _save_final(self) -> None:
        checkpoints = self._checkpoints
        if not self._completed():
            return
        if checkpoints.in_flight:
            checkpoints.drain()  # what it becomes decides whether there is anything left to do
        last = checkpoints.last
        if last is not None and last.step == self._progress.step and self._after.is_final(last):
            return
        if self._saves.here is not None and last is not None and not checkpoints.in_flight:
            self._after.finished(last)
        else:
            self._saves.save(Kind.FINAL, f"the end: {self._progress.step} steps")

    def broken(self, error: BaseException) -> bool:
        """What we do for the loop, fetching a batch for example, has raised; whether it is pre-emption, and ends it."""
        if cause_of(error) is Cause.WORKER_EXITED and self._stops.soon(LATE_SECONDS):
            self._worker_exited(error)
            return True
        self._from_loop = error
        return False

    def interrupted(self, error: BaseException, dropped: str) -> bool:
        """The block was left by an exception; whether that is no failure, but the end of a pre-empted training.

        Args:
            error: the exception.
            dropped: what was asked for and is not done because of it, for the log.
        """
        of_loop, cause = self._from_loop is error, cause_of(error)
        self._saves.inside = self._saves.inside or of_loop  # what a fetch has drawn before it failed is drawn again
        if cause is Cause.WORKER_EXITED and self._asked_lately():
            self._worker_exited(error)
            return True
        in_body = self._progress.in_body and self._progress.body.raised(error)
        self._blame(error)
        self._failing.failed(error, cause, inside=in_body or of_loop, dropped=dropped)
        return False

    def _asked_lately(self) -> bool:
        """Whether a signal has come to the job: to the worker first, perhaps, and to this process only now."""
        if self._stops.asked:
            return True
        with self._stops:
            return self._stops.soon(LATE_SECONDS) is not None

    def _worker_exited(self, error: BaseException) -> None:
        """A signal to the whole job has ended a loader's worker: no failure, and no batch comes any more."""
        stop = self._stops.asked or "a signal"
        self._decisions.stop_here(stop)  # another loop of the script would wait for its workers, and train on
        logger.warning("%s came to the loader's workers too (%s): the training ends here", stop, error)
        self._after.note("preempted", f"{stop} has ended a worker of the loader", traceback=traced(error))
        lacks = self._preempting.lacks()
        why = self._failing.back() or ("there is no time left for it" if lacks >= 0 else None)
        why = self._failing.together(why)
        if why is None and not self._progress.fresh and self._standing.end is None:
            self._preempting.save(stop, lacks)
        elif why is not None:
            self._preempting.refuse(why)
        self._preempting.conclude(stop, self._progress.step, first=self._rank == 0)
        self._how = Ending.PREEMPTED

    @property
    def _reached(self) -> Mapping[str, Any]:
        step = self._progress.step if self._standing.end is None else self._standing.end.step
        timeline = max(0, self._session.timeline)  # before the first restore there is none
        return {"timeline": timeline, "step": step, "step_seconds": self.watch.step_seconds}

    def boundary(self) -> None:
        """Notes how far the training is, now and then."""
        self._notes.reached(**self._reached)

    def rewound(self) -> None:
        """Notes how far this timeline has come: the training goes back."""
        self._notes.left(**self._reached)

    @property
    def patience(self) -> float:
        """For how many seconds the end may wait for others."""
        left = self._stops.left
        return HURRIED if self._hurried else CLOSE_SECONDS if left is None else max(HURRIED, min(CLOSE_SECONDS, left))

    def close(self, error: BaseException | None = None) -> None:
        """Lets the saver go, and writes how it ended into the journal; ``error`` is what kept it from beginning."""
        if error is not None:
            self._blame(error)
        self.watch.halt()
        try:
            self._checkpoints.close(self.patience)
        finally:  # whoever presses Ctrl-C once more does not wait, and it has ended all the same
            self._standing.note()
            self._notes.ended(str(self._how), **self._reached, error=self._error)
            self._after.close()


def not_opened(session: Session, after: Afterwards, error: BaseException) -> None:
    """Writes into the journal that a launch has failed before there was a training."""
    how = Ending.LEFT if cause_of(error) is Cause.ON_PURPOSE else Ending.FAILED
    notes = _notes_of(session, after)
    notes.ended(str(how), timeline=0, step=0, step_seconds=0.0, error=error if how is Ending.FAILED else None)
    after.close()


def _notes_of(session: Session, after: Afterwards) -> StepNotes:
    return StepNotes(
        lambda *line, **data: after.note(*line, **data),
        launch=session.launch.number,
        rank=session.group.rank,
        began=session.began,
    )
