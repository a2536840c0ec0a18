"""Looks after a training: what the checks find, what is to be done about it, and which checkpoints have become good.

Several ranks look at themselves, each at its own loss, gradients and machine.
That somebody has found something rides the reduction of the boundary
(`holdfast.recovery.stopping.decisions`); at the next one the verdicts of all are
gathered, and every rank decides the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.health import (
    GoodMarks,
    Judgement,
    Looked,
    Noted,
    Observation,
    ShrinkBatch,
    Verdict,
    Watch,
    of_lacking_memory,
    of_machine,
    verdict_of,
)
from holdfast.records import MarkKind, Record, Target
from holdfast.recovery.caring.observing import Observing
from holdfast.recovery.ranks.group import Group
from holdfast.recovery.saving.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

Note = Callable[..., None]
"""Takes kind, text and data of a line of the journal."""


class Tending:
    """One per launch and rank. Belongs to the thread that trains.

    Args:
        group: all ranks.
        watch: rules, and what they have seen.
        good: checkpoints on their way to the mark.
        observing: gathers the facts.
        checkpoints: what is committed.
        note: the journal.
    """

    def __init__(
        self,
        group: Group,
        watch: Watch,
        good: GoodMarks,
        observing: Observing,
        checkpoints: Checkpoints,
        note: Note,
    ) -> None:
        self.watch, self.observing = watch, observing
        self._group, self._good, self._checkpoints, self._note = group, good, checkpoints, note
        self._targets: dict[int, Target] = {}
        self._marked: set[str] = set()
        """Ids of records that have the mark already."""
        self._looked: list[Looked] = []
        self._waiting: list[Looked] = []
        self._seconds = 0.0
        self._then = 0.0

    def resumed(self, record: Record | None) -> None:
        """The training begins, or goes on from a checkpoint: what was seen after it is void."""
        self.observing.forget()
        self._looked, self._waiting = [], []
        self._good.forget()
        self._targets = {}
        self.watch.forget(0 if record is None else record.step)
        if record is not None:
            self._committed(record)

    def first(self, step: int) -> Judgement | None:
        """Before the first step after ``step``: is there room for a checkpoint? Of the training nothing is known."""
        first = self.observing.first(step)
        self._looked, self._then, self._seconds = [self.watch.look(first, of_machine)], first.seconds, first.seconds
        if self._group.size > 1:
            self._waiting, self._looked = self._looked, []
        return self.decide(True)

    def out_of_memory(self, step: int, said: str) -> Judgement:
        """In the middle of a step of a training of one rank, after which nothing has changed.

        Nothing is due unless batches are to be made smaller: else the step fails, and that tells enough.
        """
        now = Observation(step=step, seconds=time.monotonic(), out_of_memory=said)
        judgement = self.watch.decide(self.watch.look(now, of_lacking_memory), now.seconds, only_with=ShrinkBatch)
        for event in judgement.events:
            self._tell(event)
        return judgement

    def look(self, step: int, metrics: Mapping[str, Any], *, last: bool = False) -> bool:
        """Looks at this boundary; whether this rank has found anything.

        Args:
            step: completed optimizer steps.
            metrics: what was logged since the boundary before.
            last: see `Observing.at`.
        """
        for record in self._checkpoints.committed():
            self._committed(record)
        self._dropped(self._checkpoints.deleted())
        observations = self.observing.at(step, metrics, last=last)
        self._looked = [self.watch.look(one) for one in observations]
        self._then, self._seconds = self._seconds, observations[-1].seconds if observations else self._seconds
        return any(one.verdicts for one in self._looked)

    def at_once(self, found: bool) -> bool:
        """Where no boundary is near: whether any rank has found anything by now, which `decide` is about then.

        Args:
            found: what `look` gave on this rank.
        """
        if self._group.size == 1:
            return found
        self._waiting, self._looked = [*self._waiting, *self._looked], []
        mine = any(one.verdicts for one in self._waiting)
        return self._group.everywhere(bytes([not mine]), "whether nobody has found anything") == b"\0"

    def decide(self, anybody: bool) -> Judgement | None:
        """What is to be done at this boundary; the same on all ranks.

        Args:
            anybody: of a single rank, whether it has just found anything; of several, whether any had at the boundary
                before.
        """
        if self._group.size == 1:
            return self._decided(self._looked, self._seconds, ())
        looked, self._waiting, self._looked = self._waiting, self._looked, []
        if not anybody:
            return self._decided(looked, self._then, ())
        mine = [verdict.data() for one in looked for verdict in one.verdicts]
        said = self._group.gathered(msgspec.json.encode([self._then, mine]), "what the health checks have found")
        heard = [msgspec.json.decode(one) for one in said]
        others = [
            verdict_of(data)
            for rank, (_, verdicts) in enumerate(heard)
            if rank != self._group.rank
            for data in verdicts
        ]
        return self._decided(looked, heard[0][0], others)

    def _decided(self, looked: Sequence[Looked], seconds: float, others: Sequence[Verdict]) -> Judgement | None:
        if not looked and not others:
            return None
        judgement = self.watch.decide(_together(looked, others), seconds, others)
        for event in judgement.events:
            self._tell(event)
        for step in self._good.observed(judgement):
            self._has_become_good(step)
        return judgement

    def _tell(self, event: Noted) -> None:
        if self._group.rank == 0 or event.kind == "check-failed":  # all others are the same on every rank
            self._note(event.kind, event.message, **event.data)
        level = logging.INFO if event.kind == "passed" else logging.WARNING
        logger.log(level if self._group.rank == 0 else logging.DEBUG, "%s", event.message)

    def _committed(self, record: Record) -> None:
        if record.id in self._marked:
            return
        self._targets[record.step] = Target.of(record.address)
        self._good.saved(record.step, finite=not record.has_nan)

    def _dropped(self, ids: Collection[str]) -> None:
        for step in [step for step, target in self._targets.items() if target.id in ids]:
            del self._targets[step]
            self._good.dropped(step)

    def _has_become_good(self, step: int) -> None:
        target = self._targets.pop(step, None)
        if target is not None:
            self._marked.add(target.id)
            self._checkpoints.add_mark(target, MarkKind.GOOD)


def _together(looked: Sequence[Looked], others: Sequence[Verdict]) -> Looked:
    """What was found at one boundary about one or two of them."""
    if not looked:
        return Looked(step=max(verdict.step for verdict in others))
    return Looked(
        step=looked[-1].step,
        verdicts=tuple(verdict for one in looked for verdict in one.verdicts),
        passed=frozenset().union(*(one.passed for one in looked)),
        tested=any(one.tested for one in looked),
        events=tuple(event for one in looked for event in one.events),
    )
