"""What the program asks for in a body: metrics go with the boundary that they belong to, and saves wait for theirs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from holdfast.errors import StateError
from holdfast.ids import TagName
from holdfast.policy import kind_of
from holdfast.records import Kind, Record, Target
from holdfast.recovery.handover.beating import Beating
from holdfast.recovery.ranks.group import Group
from holdfast.recovery.ranks.reducing import reduced
from holdfast.recovery.saving.boundary_saves import BoundarySaves
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.recovery.saving.place import Place
from holdfast.recovery.steps.measuring import plain, taken
from holdfast.recovery.steps.progress import Progress
from holdfast.recovery.steps.stopwatch import Stopwatch
from holdfast.recovery.steps.unlogged import Unlogged
from holdfast.recovery.stopping.decisions import Decisions

logger = logging.getLogger(__name__)


class Asking:
    """One per launch. Not thread-safe.

    Args:
        group: all ranks.
        progress: the step.
        place: in the data.
        saves: of the boundary.
        checkpoints: what is durable.
        decisions: whether a save is due.
        watch: stands still while a save is made.
        beating: the training is not watched meanwhile.
        at_boundary: whether a checkpoint of the boundary can be made now.
        unlogged: metrics that somebody waits for.
    """

    def __init__(
        self,
        group: Group,
        *,
        progress: Progress,
        place: Place,
        saves: BoundarySaves,
        checkpoints: Checkpoints,
        decisions: Decisions,
        watch: Stopwatch,
        beating: Beating,
        at_boundary: Callable[[], bool],
        unlogged: Unlogged,
    ) -> None:
        self._group, self._progress, self._place = group, progress, place
        self._saves, self._checkpoints, self._decisions = saves, checkpoints, decisions
        self._watch, self._beating, self._at_boundary, self._unlogged = watch, beating, at_boundary, unlogged
        self.called = 0
        """How many saves the program has asked for."""
        self._asked: list[tuple[TagName | None, str]] = []
        self.begin()

    def begin(self) -> None:
        """The training goes on from another checkpoint: what was measured and wished for is void."""
        self._saves.metrics = {}
        self._coming: dict[str, Any] = {}  # metrics of the step at hand
        self._logged: dict[str, Any] = {}
        if self._asked:
            logger.warning("the training has gone back%s: that state was left", self.dropped)
        self._asked.clear()

    def counted(self) -> None:
        """The step at hand is complete: its metrics are those of the boundary."""
        self._saves.metrics, self._coming = self._coming, {}
        self._unlogged.stepped()

    def logged(self) -> dict[str, Any]:
        """What was logged since the last call, whichever boundary it belongs to."""
        found, self._logged = self._logged, {}
        return found

    @property
    def dropped(self) -> str:
        """For the log: what was asked for, and will not be."""
        return f"; a save that was asked for ({self._asked[0][1]}) was not made" if self._asked else ""

    def log(self, metrics: Mapping[str, Any], reduce: str | None) -> None:
        """See `Checkpointer.log`."""
        found = taken(metrics) if reduce is None else reduced(self._group, taken(metrics), reduce)
        self._logged |= found
        self._unlogged.logged(found)
        if not self._progress.before_step:
            self._coming |= found
        elif here := self._saves.here:
            self._checkpoints.add_metrics(here, plain(found))
        else:
            self._saves.metrics |= found
            self._save_best(found)

    def _save_best(self, logged: Mapping[str, Any]) -> None:
        step = self._progress.step
        reason = self._decisions.measured(self._place.moment(step), self._saves.metrics, logged)
        if reason and self._at_boundary():
            with self._aside():
                self._saves.save(kind_of(reason), reason)
        elif reason:
            logger.warning("%s at step %d, but the body has gone on: log it before the forward pass", reason, step)

    def save(self, tag: TagName | None, reason: str, *, durable: bool) -> Record | None:
        """See `Checkpointer.save`."""
        self.called += 1
        self._asked.append((tag, reason))
        if self._progress.in_body and not self._at_boundary():
            return None
        target = self.serve()
        if target is not None and durable:
            with self._aside():
                return self._checkpoints.await_durable(target)
        last = self._checkpoints.last
        return last if last is not None and target == Target.of(last.address) else None

    def serve(self) -> Target | None:
        """Makes the saves that were asked for; all of one boundary are one checkpoint."""
        target = None
        if self._asked and self._progress.torn:
            self._asked.clear()
            raise StateError(
                f"nothing is saved of step {self._progress.step}: an optimizer was left in the middle of its step, so "
                "the state is that of no moment; restore() goes back to the last checkpoint"
            )
        while self._asked:
            tag, reason = self._asked.pop(0)
            with self._aside():
                target = self._saves.save(Kind.MANUAL, reason)
                if tag is not None:
                    self._group.told(partial(self._checkpoints.check_tag, tag), "whether the tag is free")
                    self._checkpoints.add_tag(target, tag)
        return target

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Within it storage, the saver or other ranks are waited for, which is neither training nor a hang."""
        running = self._watch.halt()
        with self._beating.paused():
            yield
        if running:
            self._watch.go()
