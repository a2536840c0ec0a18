"""From live objects to a snapshot: tagged values, small tensors as bytes, large ones by reference."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from holdfast.errors import InvalidInput
from holdfast.packs.segment import Segment
from holdfast.state import rng as rng_state
from holdfast.state import tensors
from holdfast.state.loading import Tree
from holdfast.state.objects import Adapter, adapters
from holdfast.state.tree import Collector
from holdfast.trees import Lifetime, Skeleton, TensorSpec, segments
from holdfast.values import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A state at one instant, as long as nobody changes the tensors: large ones are held by reference."""

    skeleton: Skeleton
    values_bytes: bytes
    """Tagged JSON, a copy."""
    inline: bytes
    """Tensors of at most 1 KiB back to back, a copy."""
    tensors: tuple[tuple[TensorSpec, Tensor], ...]
    """The others, in skeleton order: the live tensors."""
    anomalies: tuple[str, ...] = ()
    """What was noticed, for the record."""

    @property
    def logical_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.skeleton.tensors)

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Tied tensors: the other paths by name."""
        return {spec.name: spec.aliases for spec in self.skeleton.tensors if spec.aliases}

    def segments(self, lifetime: Lifetime | None = None) -> Iterator[Segment]:
        """The bytes of the large tensors (of one lifetime), cut at segment boundaries, in skeleton order.

        A view keeps what it looks at alive. Tensors that are not row-major on
        the CPU are copied one at a time, when their turn comes.
        """
        for spec, tensor in self.tensors:
            if lifetime not in (None, spec.lifetime):
                continue
            view = tensors.row_bytes(tensor)
            for span in segments(spec):
                yield Segment(view[span.start : span.start + span.length], spec.dtype)


@dataclass(frozen=True, slots=True)
class Collected:
    """A capture without any bytes: enough to compare structures."""

    adapters: dict[str, Adapter]
    data: dict[str, Json]
    """Per object."""
    tensors: list[tuple[TensorSpec, Tensor]]
    notes: list[str]

    @property
    def specs(self) -> list[TensorSpec]:
        """Of all tensors."""
        return [spec for spec, _ in self.tensors]

    def tree(self, name: str) -> Tree:
        """One object."""
        by_name = {spec.name: spec for spec in self.specs}
        return Tree(self.data[name], by_name.__getitem__)


def collect(
    objects: Mapping[str, object], values: Mapping[str, Any] | None = None, *, only: Collection[str] | None = None
) -> Collected:
    """The structure of ``objects``, under their names, and of ``values``, under ``values``; copies nothing.

    With ``only``, the other objects merely give parameters their names.

    Raises:
        InvalidInput: an object that cannot be put back, or a name that is reserved.
        UnsupportedValue, UnsupportedTensor: with the path of what cannot be stored.
        StateError: an optimizer with parameters that belong to no captured module.
    """
    collector, found = Collector(), adapters(objects)
    if only is not None:
        _check_known(only, objects)
        found = {name: adapter for name, adapter in found.items() if name in only}
    # In the user's order, so that a skeleton does not depend on how loads are ordered.
    data = {name: found[name].capture(collector) for name in objects if name in found}
    if values is not None:
        data["values"] = collector.encode(dict(values), "values")
    specs, notes = collector.finish()
    return Collected(found, data, specs, notes)


def capture(objects: Mapping[str, object], values: Mapping[str, Any] | None = None, *, rng: bool = True) -> Snapshot:
    """A snapshot of ``objects``, of plain ``values`` and of the global random generators.

    Values and small tensors are copied before it returns; large tensors are
    referenced, so whoever calls must copy or write them before anything may
    change them. Changes nothing, not even the random generators.

    Raises:
        InvalidInput, StateError: as `collect`.
    """
    found = collect(objects, values or {})
    kinds = {name: adapter.kind for name, adapter in found.adapters.items()}
    document = {
        "objects": {name: {"kind": kinds[name], "data": found.data[name]} for name in objects},
        "values": found.data["values"],
        "rng": Collector().encode(rng_state.capture(), "rng") if rng else None,
    }
    return Snapshot(
        skeleton=Skeleton(tuple(spec for spec, _ in found.tensors)),
        values_bytes=json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(),
        inline=b"".join(tensors.row_bytes(tensor) for spec, tensor in found.tensors if spec.inline),
        tensors=tuple((spec, tensor) for spec, tensor in found.tensors if not spec.inline),
        anomalies=tuple(found.notes),
    )


def _check_known(only: Collection[str], objects: Mapping[str, object]) -> None:
    if unknown := sorted(set(only) - objects.keys()):
        raise InvalidInput(f"no object is registered as {', '.join(unknown)}; there are {', '.join(objects)}")
