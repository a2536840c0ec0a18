"""A checkpoint of DCP as its planners want it: metadata out of the skeleton, and verified bytes into tensors."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from holdfast.boxes import Box
from holdfast.catalog.manifests import OpenManifest
from holdfast.catalog.naming.references import resolve
from holdfast.catalog.readers import reading
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store, open_store
from holdfast.errors import Corrupt, StateMismatch
from holdfast.integrations import dcp_values
from holdfast.integrations.dcp_items import KEY
from holdfast.records import Record
from holdfast.recovery.restoring.loading import PackReader
from holdfast.state import tensors
from holdfast.state.held import Region
from holdfast.state.reading import Filling, parts_of
from holdfast.storage.blocks import drop_buffers
from holdfast.trees import TensorSpec
from holdfast.values import part

CAST_BYTES = 256 * 1024 * 1024
"""Most of what is kept at one time of tensors that are wanted in another dtype than they are stored in."""


class _Put(NamedTuple):
    """A tensor that was asked for."""

    item: ReadItem
    target: Tensor
    region: Region
    """Where it is read to: the target, or memory of the stored dtype."""

    @property
    def cast(self) -> int:
        """Bytes of memory beside the target."""
        return 0 if self.region.tensor is self.target else self.region.tensor.nbytes


class Checkpoint:
    """One checkpoint, opened. Not thread-safe.

    Args:
        store: where it is.
        record: of it.

    Raises:
        StateMismatch: it was not made through DCP.
        Damaged, BeingDeleted, StorageError: it cannot be read.
    """

    def __init__(self, store: Store, record: Record) -> None:
        self.store, self.record = store, record
        self._run = Run.by_number(store, record.run)
        with reading(store, [record.address]):
            self._manifest = OpenManifest(self._run, record.manifest_digest)
            self._document: dict[str, Any] = json.loads(self._manifest.values)
        if KEY not in self._document:
            raise StateMismatch(
                f"{record.address} was made by a Checkpointer, not through torch.distributed.checkpoint; "
                "load it with holdfast.Checkpointer(...).restore()"
            )

    def metadata(self) -> Metadata:
        """What DCP's planners ask for, in the order in which it was saved."""
        known = self._document[KEY]
        try:
            found = {fqn: self._metadata_of(fqn) for fqn in known["names"]}
        except KeyError as error:
            raise Corrupt(f"{self.record.address} lacks {error}, which its own list names") from error
        return Metadata(state_dict_metadata=found, planner_data=dcp_values.decode(known["planner"]))

    def read(self, items: Sequence[ReadItem], planner: LoadPlanner) -> None:
        """Gives the planner what it has asked for, every byte verified.

        Raises:
            Damaged, StorageError: some of it cannot be read; the tensors then hold anything.
            StateMismatch: the planner wants another size than it has asked for.
        """
        with reading(self.store, [self.record.address]):
            try:
                self._read_tensors([item for item in items if item.type is LoadItemType.TENSOR], planner)
            finally:
                drop_buffers()
        for item in items:
            if item.type is LoadItemType.BYTE_IO:
                fqn = item.storage_index.fqn
                _hand_over(planner, item, dcp_values.decode(self._document["values"][fqn]))

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self._manifest.skeleton.tensors}

    def _metadata_of(self, fqn: str) -> TensorStorageMetadata | BytesStorageMetadata:
        if fqn in self._document["values"]:
            return BytesStorageMetadata()
        spec = self._specs[part(fqn)]
        chunks = [ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in spec.boxes]
        return TensorStorageMetadata(TensorProperties(tensors.dtype_of(spec.dtype)), torch.Size(spec.shape), chunks)

    def _read_tensors(self, items: Sequence[ReadItem], planner: LoadPlanner) -> None:
        reader = PackReader(self._run, self.record, self._manifest)
        stored = reader.stored(0)
        stored.check()
        for batch in self._batches(items, planner):
            filling = Filling(stored)
            reader.need({n for put in batch for n in parts_of(self._spec(put.item), [put.region.box])})
            for put in batch:
                filling.put(part(put.item.storage_index.fqn), put.region)
            filling.run()
            for put in batch:
                if put.cast:
                    put.target.copy_(put.region.tensor)
                planner.commit_tensor(put.item, put.target)

    def _batches(self, items: Sequence[ReadItem], planner: LoadPlanner) -> Iterator[list[_Put]]:
        batch: list[_Put] = []
        for item in items:
            batch.append(self._put(item, planner))
            if sum(put.cast for put in batch) > CAST_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _put(self, item: ReadItem, planner: LoadPlanner) -> _Put:
        spec, target = self._spec(item), planner.resolve_tensor(item).detach()
        if target.shape != item.lengths:
            raise StateMismatch(
                f"{item.dest_index.fqn}: {list(item.lengths)} was asked for, and there is room for {list(target.shape)}"
            )
        begins = item.storage_index.offset or (0,) * len(spec.shape)
        offsets = tuple(a + b for a, b in zip(begins, item.storage_offsets, strict=True))
        dtype = tensors.dtype_of(spec.dtype)
        room = target if target.dtype == dtype else torch.empty(item.lengths, dtype=dtype)
        return _Put(item, target, Region(Box(offsets, tuple(item.lengths)), room))

    def _spec(self, item: ReadItem) -> TensorSpec:
        return self._specs[part(item.storage_index.fqn)]


def opened(url: str, reference: str) -> Checkpoint:
    """The checkpoint that a reference means; errors as of `resolve` and `Checkpoint`."""
    store = open_store(url)
    return Checkpoint(store, resolve(store, reference))


def _hand_over(planner: LoadPlanner, item: ReadItem, value: object) -> None:
    """Puts a value where the planner would put what it unpickles."""
    fqn = item.dest_index.fqn
    if not isinstance(planner, DefaultLoadPlanner) or type(planner).load_bytes is not DefaultLoadPlanner.load_bytes:
        planner.load_bytes(item, _as_planners_want_it(value))
    elif planner.flatten_state_dict:
        set_element(planner.original_state_dict, planner.mappings[fqn], value)
    else:
        planner.state_dict[fqn] = value


def _as_planners_want_it(value: object) -> io.BytesIO:
    # A planner with a load_bytes of its own expects what torch.save makes. It is made here, of what was read without
    # pickle: nothing that comes from the store is in it but values.
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream
