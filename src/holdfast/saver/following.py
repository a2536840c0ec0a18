"""What follows a committed save, and never comes before it: read back, mark verified, retention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from holdfast.catalog.deleting.protections import read_retention_facts
from holdfast.catalog.deleting.retention import plan_retention
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.marks import add_mark
from holdfast.catalog.runs import Run
from holdfast.errors import Damaged
from holdfast.ids import ObjectName, RecordId
from holdfast.packs.parallel import Pace
from holdfast.packs.verify import Problem
from holdfast.policy import Policy
from holdfast.records import MarkKind, Record
from holdfast.saver.readback import quarantine, read_back

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What was done after a save."""

    problem: str | None = None
    """What is damaged in what was just written; None: it is verified."""
    damaged: frozenset[ObjectName] = frozenset()
    """The packs that must not be reused."""
    deleted: list[RecordId] = field(default_factory=list)
    """What retention has removed."""


@dataclass(slots=True, kw_only=True)
class Following:
    """For the saves of one run; not thread-safe."""

    run: Run
    keep: Policy
    rank: int = 0
    """Of several that save together, each reads back what it has written; the first one alone removes old ones."""
    pace: Pace | None = None
    progress: Callable[[int], None] | None = None
    """Told of bytes as they are read back."""

    def follow(self, record: Record, packs: Collection[str] | None, *, retain: bool = True) -> Followed:
        """Everything that follows a save.

        Args:
            record: of the checkpoint.
            packs: those with what this rank has contributed; None: nobody knows, for its saver has died.
            retain: whether the policy may remove older ones now.

        Raises:
            StorageError, BeingDeleted, Damaged: not all of it was done; the checkpoint is not concerned.
        """
        mine = record.packs if record.world == 1 else packs
        if mine is not None:
            if problems := read_back(self.run.store, record, mine, self.progress, self.pace):
                return self._quarantine(record, problems)
            share = {} if record.world == 1 else {"part": self.rank, "of": record.world}
            add_mark(self.run.store, record.address, MarkKind.VERIFIED, by="saver", data=share)
        return Followed(deleted=self.retain() if retain and self.rank == 0 else [])

    def retain(self) -> list[RecordId]:
        """Removes what the policy does not keep; gives the ids of what is gone."""
        plan = plan_retention(self.keep.kept, read_retention_facts(self.run), self.keep.limit)
        if not plan.delete:
            return []
        store = self.run.store
        try:
            done = execute(store, plan_sweep(store, self.run, plan.delete), run=self.run)
        except Damaged as error:
            logger.warning("retention of %s has deleted nothing: %s", self.run.number, error)
            return []
        return [address.id for address in done.records]

    def _quarantine(self, record: Record, problems: Sequence[Problem]) -> Followed:
        text = f"{record.address}: read back after the save, {problems[0].message}"
        logger.error("%s; the next save writes it again", text)
        return Followed(problem=text, damaged=frozenset(quarantine(self.run.store, record, problems)))
