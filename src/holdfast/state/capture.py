"""From live objects to a snapshot: tagged values, small tensors as bytes, large ones by reference."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from holdfast.catalog.parts import Prints
from holdfast.errors import InvalidInput, StateError
from holdfast.packs.segment import Segment
from holdfast.state import rng as rng_state
from holdfast.state import tensors
from holdfast.state.division import Division, Replicated
from holdfast.state.held import Sharing
from holdfast.state.loading import Tree
from holdfast.state.objects import Adapter, adapters
from holdfast.state.tree import Collector, leaves
from holdfast.trees import Lifetime, Skeleton, TensorSpec, segments
from holdfast.values import Json


class Replicas(NamedTuple):
    """Tensors that the same ranks hold, bit for bit."""

    ranks: tuple[int, ...]
    places: tuple[int, ...]
    """Positions in the skeleton."""
    tensors: tuple[Tensor, ...]
    """What is held of them: live memory."""


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
    own: bytes = b"{}"
    """Tagged JSON of what belongs to this rank alone, a copy."""
    replicas: tuple[Replicas, ...] = ()
    """What other ranks hold as well, bit for bit: the live tensors."""
    division: Division | None = None
    """Who writes what, for the next snapshot."""
    prints: tuple[Prints, ...] = ()
    """Fingerprints of the replicas."""

    def with_prints(self, prints: tuple[Prints, ...]) -> Snapshot:
        """The same with fingerprints."""
        return replace(self, prints=prints)

    @property
    def logical_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.held for spec in self.skeleton.tensors)

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
    """Per object, and under names that no object can have what is saved beside them."""
    tensors: list[tuple[TensorSpec, Tensor]]
    """With the boxes that this process holds, and its memory of them."""
    sharings: list[Sharing | None]
    """Per tensor, who else holds the same."""
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
    objects: Mapping[str, object],
    values: Mapping[str, Any] | None = None,
    *,
    own: tuple[int, Mapping[str, Any]] | None = None,
    only: Collection[str] | None = None,
) -> Collected:
    """The structure of ``objects``, under their names, of ``values``, and of a rank's ``own``; copies nothing.

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
        _check_whole(data["values"])
    if own is not None:
        data["$own"] = collector.encode(dict(own[1]), f"$own/{own[0]}")  # tensors among them are no other rank's
    specs, notes = collector.finish()
    return Collected(found, data, specs, collector.sharings(), notes)


def capture(
    objects: Mapping[str, object],
    values: Mapping[str, Any] | None = None,
    *,
    own: Mapping[str, Any] | None = None,
    rank: int = 0,
    known: Division | None = None,
) -> Snapshot:
    """A snapshot of ``objects``, of plain ``values``, and of what belongs to this rank alone.

    Values and small tensors are copied before it returns; large tensors are
    referenced, so whoever calls must copy or write them before anything may
    change them. Changes nothing, not even the random generators.

    Args:
        objects: by name.
        values: the same on all ranks.
        own: this rank's; by default the states of the global random generators, as ``rng``.
        rank: this one.
        known: how an earlier snapshot was divided among ranks, which is looked at first.

    Raises:
        InvalidInput, StateError: as `collect`.
    """
    mine = {"rng": rng_state.capture()} if own is None else own
    found = collect(objects, values or {}, own=(rank, mine))
    kinds = {name: adapter.kind for name, adapter in found.adapters.items()}
    document = {
        "objects": {name: {"kind": kinds[name], "data": found.data[name]} for name in objects},
        "values": found.data["values"],
    }
    specs = found.specs
    division = known if known is not None and known.fits(specs, found.sharings) else None
    division = division or Division(specs, found.sharings, rank)
    written = [(spec, division.tensor(i, found.tensors[i][1])) for i, spec in enumerate(division.written)]
    return Snapshot(
        skeleton=Skeleton(tuple(division.written)),
        values_bytes=_text(document),
        own=_text(found.data["$own"]),
        inline=b"".join(tensors.row_bytes(tensor) for spec, tensor in written if spec.inline),
        tensors=tuple((spec, tensor) for spec, tensor in written if not spec.inline),
        anomalies=tuple(found.notes),
        replicas=tuple(_replicas(one, found) for one in division.replicated),
        division=division,
    )


def _replicas(one: Replicated, found: Collected) -> Replicas:
    return Replicas(one.ranks, one.places, tuple(found.tensors[place][1] for place in one.places))


def _text(document: Json) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _check_whole(data: Json) -> None:
    if (found := next((leaf["name"] for leaf in leaves(data) if leaf.get("sharded")), None)) is not None:
        raise StateError(
            f"{found} is a DTensor among plain values, which would come back plain; keep what full_tensor() gives, or "
            "register an object whose state_dict() has it"
        )


def _check_known(only: Collection[str], objects: Mapping[str, object]) -> None:
    if unknown := sorted(set(only) - objects.keys()):
        raise InvalidInput(f"no object is registered as {', '.join(unknown)}; there are {', '.join(objects)}")
