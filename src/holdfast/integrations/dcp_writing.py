"""One save through DCP: announced by rank 0, written by all ranks, published by rank 0 at the end."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from holdfast.catalog.marks import add_mark
from holdfast.catalog.parts import Part
from holdfast.catalog.saves import SaveAttempt
from holdfast.errors import BeingDeleted, Conflict, Damaged, InvalidInput, SaveFailed, StorageError
from holdfast.integrations.dcp_items import contents, described
from holdfast.integrations.dcp_lines import Line, Ticket
from holdfast.policy import Policy
from holdfast.records import Kind, MarkKind, Record
from holdfast.recovery.environment.launcher import environment_facts
from holdfast.saver import SaveRequest
from holdfast.saver.following import Following
from holdfast.saver.publishing import Made
from holdfast.saver.readback import quarantine, read_back
from holdfast.saver.together import Handed, handed
from holdfast.values import part as name_of

logger = logging.getLogger(__name__)


class Wishes(NamedTuple):
    """What the user says of a save beside the state."""

    metrics: Mapping[str, Any]
    reason: str
    began: float
    """`time.monotonic` when it was asked for."""


class Turn(NamedTuple):
    """A save in flight, as one rank sees it."""

    line: Line
    ticket: Ticket
    wishes: Wishes

    def tell(self, plans: Sequence[SavePlan]) -> list[SavePlan]:
        """The plans with what each rank has to know."""
        tickets = (msgspec.structs.replace(self.ticket, rank=rank) for rank in range(len(plans)))
        pairs = zip(plans, tickets, strict=True)
        return [dataclasses.replace(plan, storage_data=ticket.encode()) for plan, ticket in pairs]

    def write(self, plan: SavePlan, planner: SavePlanner) -> Made:
        """Writes what this rank's plan says; if that fails, nothing of it is left."""
        attempt = self._announced if self.ticket.rank == 0 else self.line.begin(self.ticket)
        try:
            shape, content = contents(plan, planner)
            made = self.line.saving.write(self._request(), shape, content, attempt)
        except BaseException:
            self.line.clear()
            raise
        if self.ticket.rank:
            attempt.leave()
        return made

    def publish(self, made: Made, metadata: Metadata, others: Sequence[Handed]) -> Record:
        """Commits what all ranks have written; if that fails, nothing is visible."""
        attempt, parent = self._announced, self.ticket.parent.address if self.ticket.parent else None
        try:
            record = self.line.saving.commit(described(made, metadata), attempt, parent, others)
        except BaseException:
            self.line.clear()
            raise
        self.line.committed(record)
        return record

    def retain(self, record: Record, keep: Policy) -> None:
        """Reads the checkpoint back and removes what the policy does not keep; a failure is said, the save stands."""
        store = self.line.store
        try:
            if problems := read_back(store, record, record.packs):
                logger.error("%s: read back after the save, %s", record.address, problems[0].message)
                self.line.saving.damaged |= quarantine(store, record, problems)
                return
            add_mark(store, record.address, MarkKind.VERIFIED, by="saver")
            Following(run=self.line.launch.run, keep=keep).retain()
        except (StorageError, BeingDeleted, Damaged, Conflict) as error:
            logger.warning("after the save of %s: %s", record.address, error)

    @property
    def _announced(self) -> SaveAttempt:
        """Of rank 0.

        Raises:
            SaveFailed: another save of this process has begun since.
        """
        attempt = self.line.unfinished
        if attempt is None or attempt.nonce != self.ticket.attempt:
            raise SaveFailed(
                f"the save of {self.ticket.target.address} is over: another save of this run was begun before it ended"
            )
        return attempt

    def _request(self) -> SaveRequest:
        ticket, wishes = self.ticket, self.wishes
        return SaveRequest(
            timeline=ticket.target.timeline,
            step=ticket.target.step,
            epoch=None,
            parent=ticket.parent,
            kind=Kind.REGULAR,
            reason=wishes.reason,
            metrics=dict(wishes.metrics),
            environment=environment_facts(),
            rank=ticket.rank,
            world=ticket.world,
            attempt=ticket.attempt,
            began=wishes.began,
        )


def results_of(plan: SavePlan, made: Made, line: Line) -> list[WriteResult]:
    """What DCP brings to rank 0: a result for each item, and one more with the part of this rank."""
    sizes = {spec.name: spec.held for spec in made.shape.skeleton.tensors}
    results = [WriteResult(item.index, sizes.get(name_of(item.index.fqn), 0), None) for item in plan.items]
    part, documents = handed(made, line.store)
    return [*results, WriteResult(MetadataIndex(""), 0, msgspec.msgpack.encode((part, documents)))]


def others_of(results: Sequence[Sequence[WriteResult]]) -> list[Handed]:
    """The parts of all ranks but the first, in order.

    Raises:
        InvalidInput: somebody has changed what the ranks have handed over.
    """
    try:
        found = [msgspec.msgpack.decode(one[-1].storage_data, type=tuple[Part, list[bytes]]) for one in results]
    except (IndexError, TypeError, msgspec.MsgspecError) as error:
        raise InvalidInput(f"the results of the ranks are not what they have written: {error}") from error
    parts = sorted((Handed(*one) for one in found), key=lambda one: one.part.rank)
    return parts[1:]


def refuse_old_plans(plans: Sequence[SavePlan]) -> None:
    """Raises `InvalidInput` where a rank wants an old plan used again: that would not say where the save goes."""
    if not all(getattr(plan, "usable", True) for plan in plans):
        raise InvalidInput(OLD_PLAN)


OLD_PLAN = (
    "the planner reuses the plans of an earlier save, and with them where that one went; "
    "make it without enable_plan_caching"
)


def now() -> float:
    """As `SaveRequest.began` wants it."""
    return time.monotonic()
