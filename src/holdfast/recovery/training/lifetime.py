"""From the first call of a `Checkpointer` to its end: it opens a training once, and lets go of it once."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from weakref import finalize

from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import InvalidInput, Unusable
from holdfast.recovery.environment.launcher import launcher_facts
from holdfast.recovery.environment.process import claim_run, refuse_worker, release_run
from holdfast.recovery.training.looping import Loop
from holdfast.recovery.training.opening import Opening, say_findings
from holdfast.recovery.training.training import Training

logger = logging.getLogger(__name__)


class Lifetime:
    """What a Checkpointer is in the middle of. Not thread-safe; belongs to the process that made it.

    Args:
        opening: how to begin.
        namespace: the names that the training script can see, for the audit.
    """

    def __init__(self, opening: Opening, namespace: dict[str, object]) -> None:
        self.training: Training | None = None
        self.loop: Loop | None = None
        """The one that runs."""
        self.namespace = namespace
        self._opening, self._pid = opening, os.getpid()
        self._closed = self._broken = self._superseded = False
        self._run = ""
        self._reminder: finalize[..., Lifetime] | None = None

    @property
    def looping(self) -> bool:
        """Whether a loop runs."""
        return self.loop is not None

    def begun(self, total: int | None, loader: object = None) -> Training:
        """The training, for a loop: with one more look at what is not registered.

        Raises:
            InvalidInput: a loop runs already.
            HoldfastError: as in `opened`.
        """
        if self.looping:
            raise InvalidInput("this Checkpointer is in a loop already; leave it first")
        say_findings(self._opening.objects, loader, self.namespace)
        self.namespace = {}
        training = self.opened(total)
        training.total = total  # that of an earlier loop has ended with it
        if loader is None:
            training.decisions.without_epochs()
        return training

    def opened(self, total: int | None = None, *, resume: bool = True) -> Training:
        """The training, which the first call opens, and restores unless ``resume`` says no.

        Raises:
            Unusable: it is over, or half restored.
            HoldfastError: the run cannot be opened, or there is no state to go on from.
        """
        refuse_worker(self._pid)
        if self._closed or self._torn:
            raise Unusable(f"this Checkpointer {self._over}; make a new one, and new objects for it")
        if self.training is None:
            self.training = self._open(total, resume)
        return self.training

    @property
    def _torn(self) -> bool:
        """Whether a restore has failed in the middle, one inside of the loop perhaps."""
        return self._broken or (self.training is not None and self.training.restoring.torn)

    @property
    def _over(self) -> str:
        if self._superseded:
            return "is closed, for a second one was made for the same run in this process"
        return "is closed" if self._closed else "holds half-restored state after a failed restore"

    def _open(self, total: int | None, resume: bool) -> Training:
        try:
            training = self._opening.open(launcher_facts(), total, self._claim)
        except BaseException:
            release_run(self)
            raise
        if resume:
            self._resume(training)
        # Nobody holds it any more, or the program ends: without `with` nothing else would tell.
        self._reminder = finalize(self, _never_closed, self._run, os.getpid())
        return training

    def _claim(self, store: Store, run: Run) -> None:
        claim_run(store, run, self)
        self._run = str(run.number)

    def _resume(self, training: Training) -> None:
        try:
            training.restoring.resume()
        except BaseException as error:
            training.close(error)
            release_run(self)
            raise
        finally:
            self._broken = training.restoring.torn

    def not_restored(self, training: Training, error: BaseException) -> None:
        """A restore has failed: what it leaves is of use or not, and a training that was not begun is let go."""
        self._broken = training.restoring.torn
        if training.restoring.unbegun:
            self._forget_reminder()
            training.close(error)
            self.training = None
            release_run(self)

    def looped(self, training: Training) -> Loop:
        """A context for one loop."""
        stops = self._opening.stops
        return Loop(self, training, stops, self._opening.stopping.lookout(stops))

    def finish(self) -> None:
        """As `Checkpointer.close`."""
        if self._closed:
            return
        try:
            if self.loop:
                self.loop.leave()  # something still holds the generator, as a progress bar does
            if self.training and not self._torn:
                self.training.finish()
        finally:
            self.release()

    def interrupted(self, error: BaseException) -> bool:
        """The block was left by an exception; whether that is no failure, but the end of a pre-empted training."""
        if self._closed:
            return False  # its end was told before
        try:
            return self.training is not None and self.training.interrupted(error)
        finally:
            self.release()

    def supersede(self) -> None:
        """Another Checkpointer of this process has taken over the run."""
        self._superseded = True
        self.release()

    def release(self) -> None:
        """Lets everything go, once: what has the numbers of its descriptors afterwards is somebody else's."""
        if self._closed:
            return
        self._closed = True
        self._forget_reminder()
        with ExitStack() as rest:  # all of it, also where Ctrl-C comes in between
            rest.callback(release_run, self)
            if self.training:
                rest.callback(self.training.close)
            if self.loop:
                rest.callback(self.loop.leave)

    def _forget_reminder(self) -> None:
        if self._reminder:
            self._reminder.detach()


def _never_closed(run: str, process: int) -> None:
    if process == os.getpid():  # a forked child has none of its own to close
        logger.error(
            "the Checkpointer of %s was never closed, so its end is not saved: use it in a with block, or call close()",
            run,
        )
