"""Holdfast beneath ``torch.distributed.checkpoint``: `StorageWriter` and `StorageReader`.

For programs that call DCP themselves. Planning and resharding stay DCP's; what
is written is a checkpoint like any other: ``holdfast ls``, ``show`` and
``verify`` know it, unchanged bytes are not written again, every byte is
verified when it is read, and it is there as a whole or not at all. Objects that
are no tensors are stored as tagged JSON: nothing is pickled or unpickled.

Example:
    >>> import tempfile, torch, warnings
    >>> import torch.distributed.checkpoint as dcp
    >>> from holdfast.integrations.dcp import StorageReader, StorageWriter
    >>> warnings.simplefilter("ignore")  # DCP says that this is a single process
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state = {"weight": torch.ones(3), "step": 500}
    ...     _ = dcp.save(state, storage_writer=StorageWriter(folder, run="toy", step=500), no_dist=True)
    ...     state = {"weight": torch.zeros(3), "step": 0}
    ...     dcp.load(state, storage_reader=StorageReader(folder, "toy@500"), no_dist=True)
    ...     print(state)
    {'weight': tensor([1., 1., 1.]), 'step': 500}
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from holdfast.errors import InvalidInput
from holdfast.integrations import dcp_writing as writing
from holdfast.integrations.dcp_lines import Ticket, absolute, joined_line, own_line
from holdfast.integrations.dcp_reading import Checkpoint, opened
from holdfast.packs.codec import Codec, check_available
from holdfast.policy import Policy, for_keeping
from holdfast.records import Record
from holdfast.recovery.launching.choice import wanted
from holdfast.saver.publishing import Made

__all__ = ["StorageReader", "StorageWriter"]

_STEP = re.compile(r"(?:.*\D)?(\d{1,18})")


class StorageWriter(storage.StorageWriter):
    """Saves of ``dcp.save`` and ``dcp.async_save`` go into a holdfast store.

    Make one for each save, or one for all and set `step` before each, or give DCP a ``checkpoint_id`` that ends in the
    step, such as ``step-500``. A process begins one launch for each run, with its first save; a run that a
    `Checkpointer` trains is not for this. Saving a step again that the run has, or going back, opens a new timeline:
    nothing is overwritten. One save of a run at a time; may be pickled.

    A save that fails on any rank fails on all and leaves nothing visible. What the ranks had written is removed by
    the next save, or by ``holdfast gc``.

    Args:
        store: a folder that all ranks see; made if it is not there.
        run: a name (its newest run is continued) or a number.
        step: completed optimizer steps.
        metrics: for the record.
        keep: what retention keeps, as for `Checkpointer`; each checkpoint is then read back first. By default nothing
            is ever deleted.
        codec: "raw" or one of the others of `Checkpointer`, but not "auto".

    Raises:
        InvalidInput: an argument that cannot be right.
    """

    step: int | None
    """Of the next save; None after one, so that none is saved under the step of another by mistake."""

    def __init__(
        self,
        store: str | Path = "checkpoints",
        *,
        run: str | int,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        keep: Policy | None = None,
        codec: str = "raw",
    ) -> None:
        if codec not in tuple(Codec):
            raise InvalidInput(f"codec={codec!r}: there is {', '.join(Codec)}")
        check_available(Codec(codec))
        wanted(run)
        self._url, self._run, self._codec = absolute(store), run, Codec(codec)
        self._keep = None if keep is None else for_keeping(keep)
        self.step, self.metrics = step, dict(metrics or {})
        self._began = 0.0
        self._turn: writing.Turn | None = None
        self._made: Made | None = None
        self._record: Record | None = None

    @property
    def record(self) -> Record | None:
        """What was committed last, on the coordinator, unless DCP has saved in a process of its own."""
        return self._record

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """See DCP: the number at the end of ``checkpoint_id`` is the step."""
        if checkpoint_id is not None:
            self.step = _step_of(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it ends in a step."""
        return _STEP.fullmatch(str(checkpoint_id)) is not None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """See DCP; ``use_collectives=False`` is refused, for without them nobody knows whether all have written."""
        if not kwargs.get("use_collectives", True):
            raise InvalidInput("use_collectives=False cannot commit at once what all ranks have; leave it out")
        if self.step is None:
            raise InvalidInput(
                "the step is not known: set step before each save, or give a checkpoint_id with it at the end"
            )
        self._began, self._turn, self._made = writing.now(), None, None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """See DCP; nothing is changed."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """See DCP: announces the save, and tells all ranks where it goes."""
        writing.refuse_old_plans(plans)
        assert self.step is not None  # looked at by set_up_storage_writer
        line = own_line(self._url, self._run, self._codec)
        ticket = line.issue(self.step, len(plans))
        line.begin(ticket)
        self._turn = writing.Turn(line, ticket, self._wishes)
        return self._turn.tell(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """See DCP: what this rank has written is durable when this returns."""
        turn = self._turn = self._turn_of(plan)
        made = self._made = turn.write(plan, planner)
        done: Future[list[WriteResult]] = Future()
        done.set_result(writing.results_of(plan, made, turn.line))
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """See DCP: publishes; the checkpoint exists when this returns.

        Raises:
            Conflict, SaveFailed, StorageError: it does not exist.
        """
        turn, made = self._turn, self._made
        assert turn is not None
        assert made is not None  # DCP has called write_data before
        self._turn, self._made = None, None
        self._record, self.step = turn.publish(made, metadata, writing.others_of(results)), None
        if self._keep is not None:
            turn.retain(self._record, self._keep)

    @property
    def _wishes(self) -> writing.Wishes:
        return writing.Wishes(self.metrics, "torch.distributed.checkpoint", self._began)

    def _turn_of(self, plan: SavePlan) -> writing.Turn:
        ticket = Ticket.decode(plan.storage_data)
        if self._turn is not None:
            line = self._turn.line
            stale = ticket.attempt != self._turn.ticket.attempt
        else:
            line = joined_line(self._url, ticket, self._codec)
            stale = ticket.attempt == line.seen
        if stale:
            line.clear()
            raise InvalidInput(writing.OLD_PLAN)
        return writing.Turn(line, ticket, self._wishes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_turn": None, "_made": None, "_record": None}


class StorageReader(storage.StorageReader):
    """``dcp.load`` reads a checkpoint that was made through `StorageWriter`, at any number of ranks.

    Every byte is verified before it counts; a damaged one is an error that names the pack, or is taken from another
    copy if there is one.

    Args:
        store: a folder that all ranks see.
        reference: such as ``toy@500``, ``toy`` (its newest), a tag or an id. A ``checkpoint_id`` that DCP is given is
            another reference, or ends in a step of this one's run.
    """

    def __init__(self, store: str | Path = "checkpoints", reference: str = "@last") -> None:
        self._url, self._reference = absolute(store), reference
        self._checkpoint: Checkpoint | None = None

    @property
    def record(self) -> Record | None:
        """What was read last."""
        return None if self._checkpoint is None else self._checkpoint.record

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """See DCP."""
        self._checkpoint = None
        if checkpoint_id is not None:
            text = str(checkpoint_id)
            match = None if "@" in text else _STEP.fullmatch(text)
            self._reference = f"{self._reference.partition('@')[0]}@{int(match[1])}" if match else text

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it could be a reference."""
        return bool(str(checkpoint_id))

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See DCP.

        Raises:
            UnknownReference, AmbiguousReference: no checkpoint is meant.
            StateMismatch: it was not made through DCP.
            Damaged, StorageError: it cannot be read.
        """
        self._checkpoint = opened(self._url, self._reference)
        return self._checkpoint.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """See DCP; all that is needed was read with the metadata."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """See DCP: says which checkpoint this rank has found."""
        return dataclasses.replace(plan, storage_data=str(self._opened.record.address))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """See DCP: what is the newest may change while one rank after the other looks.

        Raises:
            InvalidInput: not all ranks have found the same checkpoint.
        """
        found = sorted({str(plan.storage_data) for plan in plans})
        if len(found) > 1:
            raise InvalidInput(f"the ranks have found different checkpoints, {' and '.join(found)}; name a step")
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """See DCP.

        Raises:
            Damaged, StorageError: some of it cannot be read; the state then holds anything.
        """
        self._opened.read(plan.items, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @property
    def _opened(self) -> Checkpoint:
        assert self._checkpoint is not None  # DCP has read the metadata before
        return self._checkpoint

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checkpoint": None}


def _step_of(checkpoint_id: str | os.PathLike[str]) -> int:
    match = _STEP.fullmatch(str(checkpoint_id))
    if match is None:
        raise InvalidInput(f"checkpoint_id={str(checkpoint_id)!r} does not end in a step, such as 'step-500'")
    return int(match[1])
