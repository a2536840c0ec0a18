"""Which boxes of a global tensor this process holds, and which ranks hold the same, by what a DTensor says of itself.

Everything follows from mesh and placements: nothing is sent, nothing is waited
for, and every rank comes to the same answer. What placements mean was read
from torch 2.13, ``torch/distributed``:

- ``Shard`` splits like ``torch.chunk`` (``tensor/placement_types.py``).
- Several placements that shard one dimension follow each other from left to
  right, or as the ``shard_order`` of the tensor says (``tensor/_dtensor_spec.py``).
- ``_StridedShard`` stands for one of two things. Where its split factor is the
  product of the first few splits of the mesh dimensions to its right, it is
  the ``Shard`` that comes after those, as in a sharding by fully_shard over
  tensor parallelism: ``DTensorSpec._maybe_convert_StridedShard_to_shard_order``,
  and ``fsdp/_fully_shard/_fsdp_param.py``, which chunks what tensor parallelism
  left. Otherwise, or where the tensor says so (it came out of a view), the
  dimension is cut in as many chunks as the split factor says, and each of
  these is split: ``_StridedShard._split_tensor``.

`distribute_tensor` always does the latter. Where the two differ, the length on
some rank differs as well, and that rank refuses the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from holdfast.boxes import Box
from holdfast.errors import UnsupportedTensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Run = tuple[int, int]
"""Neighbouring indices of one dimension: the first, and the one after the last."""

Orders = dict[int, list[int]]
"""For each tensor dimension that is sharded, the mesh dimensions that shard it, in the order in which they do."""


class Piece(NamedTuple):
    """A box that is held in one piece."""

    box: Box
    """In the global tensor."""
    at: tuple[int, ...]
    """Where it begins in the local tensor."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What this process holds of a tensor, and who else has just that."""

    shape: tuple[int, ...]
    """Of the global tensor."""
    pieces: tuple[Piece, ...]
    """In the row-major order of the local tensor; none if that is empty."""
    holders: tuple[int, ...]
    """The global ranks that have these pieces, this one too, by position in the mesh; none for a rank outside of it."""


class Split(NamedTuple):
    """One dimension is split among several, and one of the parts is taken."""

    dim: int
    among: int
    mine: int
    factor: int = 1
    """Not the dimension, but each of so many chunks of it."""


def of_dtensor(tensor: Tensor, path: str) -> Holding:
    """What this process holds of a DTensor. Does not communicate; equal answers are one object.

    Args:
        tensor: a DTensor.
        path: of it, for messages.

    Raises:
        UnsupportedTensor: with ``path``: partial values, placements that are not known, a local tensor of another
            shape than they make.
    """
    # The public to_local would wait for a collective, and costs as much as all of this.
    spec, local = tensor._spec, tensor._local_tensor.shape  # type: ignore[attr-defined]
    at = spec.mesh.get_coordinate()
    if at is None:
        return Holding(tuple(tensor.shape), (), ())
    found = _held(_facts(spec, tuple(at), tensor.shape, local))
    if isinstance(found, str):
        raise UnsupportedTensor(f"{path} {found}")
    return found


def runs(shape: Sequence[int], splits: Iterable[Split]) -> list[list[Run]]:
    """The indices that are left of each dimension after all splits, in the order of the local tensor.

    Example:
        >>> runs((10, 3), [Split(dim=0, among=2, mine=1)])
        [[(5, 10)], [(0, 3)]]
        >>> runs((10,), [Split(dim=0, among=2, mine=1, factor=3)])
        [[(2, 4), (6, 8), (9, 10)]]
    """
    found = [[(0, size)] if size else [] for size in shape]
    for dim, among, mine, factor in splits:
        chunks = [_chunk(found[dim], factor, i) for i in range(factor)]
        found[dim] = _joined(run for chunk in chunks for run in _chunk(chunk, among, mine))
    return found


def pieces(held: Sequence[Sequence[Run]]) -> tuple[Piece, ...]:
    """The pieces that runs of all dimensions make together.

    Example:
        >>> [(piece.box.offsets, piece.at) for piece in pieces([[(0, 2), (4, 6)], [(5, 9)]])]
        [((0, 5), (0, 0)), ((4, 5), (2, 0))]
    """
    return tuple(_piece(chosen) for chosen in product(*map(_placed, held)))


def _chunk(held: Sequence[Run], count: int, mine: int) -> list[Run]:
    """What ``torch.chunk`` makes of all indices of the runs; empty where it makes fewer chunks."""
    size = -(-_length(held) // count)
    first, last = mine * size, (mine + 1) * size
    taken = [(begin + max(first - at, 0), min(end, begin + last - at)) for at, (begin, end) in _placed(held)]
    return [run for run in taken if run[0] < run[1]]


def _joined(held: Iterable[Run]) -> list[Run]:
    found: list[Run] = []
    for begin, end in held:
        if found and found[-1][1] == begin:
            begin = found.pop()[0]
        found.append((begin, end))
    return found


def _length(held: Iterable[Run]) -> int:
    return sum(end - begin for begin, end in held)


def _placed(held: Iterable[Run]) -> Iterator[tuple[int, Run]]:
    """Each run, after where it begins in the local tensor."""
    at = 0
    for begin, end in held:
        yield at, (begin, end)
        at += end - begin


def _piece(chosen: Sequence[tuple[int, Run]]) -> Piece:
    box = Box(tuple(begin for _, (begin, _) in chosen), tuple(end - begin for _, (begin, end) in chosen))
    return Piece(box, tuple(at for at, _ in chosen))


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """The ranks of a mesh, row-major. Equal meshes have the same one, so that it is hashed by identity."""

    sizes: tuple[int, ...]
    ranks: tuple[int, ...]

    def rank(self, position: Sequence[int]) -> int:
        at = 0
        for size, i in zip(self.sizes, position, strict=True):
            at = at * size + i
        return self.ranks[at]


# Weak: whoever keeps a mesh keeps its process groups, beyond the end of the process.
_GRIDS: WeakKeyDictionary[DeviceMesh, _Grid] = WeakKeyDictionary()


def _grid(mesh: DeviceMesh) -> _Grid:
    found = _GRIDS.get(mesh)
    if found is None:
        found = _GRIDS[mesh] = _Grid(tuple(mesh.mesh.shape), tuple(mesh.mesh.flatten().tolist()))
    return found


class _Facts(NamedTuple):
    """All that a holding depends on."""

    grid: _Grid
    at: tuple[int, ...]
    shape: tuple[int, ...]
    local: tuple[int, ...]
    kinds: tuple[type, ...]
    """A placement equals one of a derived class, which may mean something else."""
    placements: tuple[Any, ...]
    order: tuple[Any, ...] | None
    decodes: bool
    """Whether strided placements may stand for an order."""


def _facts(spec: Any, at: tuple[int, ...], shape: tuple[int, ...], local: tuple[int, ...]) -> _Facts:
    # The last two came with later versions; before them, strided placements were made by fully_shard alone.
    order = getattr(spec, "shard_order", None)
    decodes = getattr(spec, "use_strided_shard_as_shard_order", True)
    kinds = tuple(map(type, spec.placements))
    return _Facts(_grid(spec.mesh), at, shape, local, kinds, spec.placements, order, decodes)


@lru_cache(maxsize=4096)
def _held(facts: _Facts) -> Holding | str:
    """The holding, or why there is none."""
    if reason := _refusal(facts):
        return reason
    held = runs(facts.shape, _splits(facts))
    if (made := tuple(map(_length, held))) != tuple(facts.local):
        return (
            f"has the local shape {list(facts.local)}, but {facts.placements} make {list(made)} of {list(facts.shape)} "
            f"at {facts.at} of a mesh of {facts.grid.sizes}; give DTensor.from_local the true shape, or redistribute it"
        )
    return Holding(tuple(facts.shape), pieces(held), _holders(facts))


def _refusal(facts: _Facts) -> str | None:
    from torch.distributed.tensor import Partial, Replicate

    for placement in facts.placements:
        if isinstance(placement, Partial):
            return f"has values that are not yet reduced ({placement!r}); redistribute it to Replicate or Shard first"
        if type(placement) is not Replicate and not _shards(placement, len(facts.shape)):
            return f"has the placement {placement!r}, which is not known; redistribute it to Replicate or Shard first"
    return None


def _shards(placement: Any, ndim: int) -> bool:
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    # By the very class: what others derive from these may split in its own way.
    return type(placement) in (Shard, _StridedShard) and 0 <= placement.dim < ndim


def _holders(facts: _Facts) -> tuple[int, ...]:
    """The ranks that differ from this one in replicated dimensions alone."""
    sizes = facts.grid.sizes
    free = [range(n) if p.is_replicate() else (i,) for n, i, p in zip(sizes, facts.at, facts.placements, strict=True)]
    return tuple(facts.grid.rank(position) for position in product(*free))


def _splits(facts: _Facts) -> Iterator[Split]:
    strided = any(hasattr(placement, "split_factor") for placement in facts.placements)
    decoded = _decoded(facts) if strided and facts.decodes else None
    for dim, mesh_dims in (decoded or _stated(facts)).items():
        for i in mesh_dims:
            factor = 1 if decoded else _factor(facts.placements[i])
            yield Split(dim, facts.grid.sizes[i], facts.at[i], factor)


def _factor(placement: Any) -> int:
    return getattr(placement, "split_factor", 1)


def _stated(facts: _Facts) -> Orders:
    """From left to right, unless the tensor has another order."""
    if facts.order is not None:
        return {dim: list(mesh_dims) for dim, mesh_dims in facts.order}
    found: Orders = {}
    for i, placement in enumerate(facts.placements):
        if not placement.is_replicate():
            found.setdefault(placement.dim, []).append(i)
    return found


def _decoded(facts: _Facts) -> Orders | None:
    """The orders that strided placements stand for; None where some of them stand for none."""
    found: Orders = {}
    for i, placement in reversed(list(enumerate(facts.placements))):
        if placement.is_replicate():
            continue
        order = found.setdefault(placement.dim, [])
        sizes = [facts.grid.sizes[j] for j in order]
        before = [math.prod(sizes[:n]) for n in range(len(sizes) + 1)]
        if _factor(placement) not in before:
            return None
        order.insert(before.index(_factor(placement)), i)
    return found
