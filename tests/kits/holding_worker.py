"""Sharded tensors of real process groups: each rank writes what `of_dtensor` says of its own, and what is really there.

Run as ``python holding_worker.py <folder>``. Each world is forked from one
process, so that torch is imported once.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import torch
from torch import nn

from holdfast.errors import UnsupportedTensor
from holdfast.state.holding import of_dtensor

SECONDS = 90
"""All of it takes a tenth of that; who hangs is ended by the system."""

CASES: dict[int, dict[str, Callable]] = {1: {}, 2: {}, 4: {}, 6: {}, 8: {}}
"""By world and name: makes a DTensor whose global values are 0, 1, 2, ... by the means of torch."""


def case(*worlds: int) -> Callable[[Callable], Callable]:
    def keep(make: Callable) -> Callable:
        for world in worlds:
            CASES[world][make.__name__] = make
        return make

    return keep


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


def mesh_of(*sizes: int):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", sizes, mesh_dim_names=("replicate", "dp", "tp")[-len(sizes) :])


def distributed(shape: tuple[int, ...], mesh, *placements):
    from torch.distributed.tensor import distribute_tensor

    # None: every rank has the values; torch cannot scatter strided shards that are uneven.
    return distribute_tensor(numbers(*shape), mesh, placements, src_data_rank=None)


def shard(dim: int):
    from torch.distributed.tensor import Shard

    return Shard(dim)


def strided(dim: int, factor: int):
    from torch.distributed.tensor.placement_types import _StridedShard

    return _StridedShard(dim, split_factor=factor)


def replicate():
    from torch.distributed.tensor import Replicate

    return Replicate()


@case(1, 2, 4)
def rows(world):
    return distributed((8, 3), mesh_of(world), shard(0))


@case(1, 2, 4)
def columns(world):
    return distributed((3, 8), mesh_of(world), shard(1))


@case(1, 2, 4)
def uneven_rows(world):
    return distributed((7, 2), mesh_of(world), shard(0))


@case(1, 2, 4)
def uneven_columns_between_others(world):
    return distributed((2, 5, 2), mesh_of(world), shard(1))


@case(2, 4)
def fewer_rows_than_ranks(world):
    return distributed((world - 1, 3), mesh_of(world), shard(0))


@case(1, 2, 4)
def no_rows(world):
    return distributed((0, 3), mesh_of(world), shard(0))


@case(1, 2, 4)
def replicated(world):
    return distributed((4, 3), mesh_of(world), replicate())


@case(1, 2, 4)
def replicated_scalar(world):
    return distributed((), mesh_of(world), replicate())


@case(1, 2, 4)
def strided_by_hand(world):
    return distributed((12, 2), mesh_of(world), strided(0, 3))


@case(1, 2, 4)
def strided_uneven_with_empty_chunks(world):
    return distributed((2, 11), mesh_of(world), strided(1, 4))


@case(2, 4)
def strided_by_a_view(world):
    return distributed((3, 8), mesh_of(world), shard(1)).view(-1)


@case(1, 2, 4)
def fully_sharded(world):
    return fully(nn.Linear(3, 7), mesh_of(world)).weight


@case(2, 4)
def partial(world):
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(numbers(2, 2), mesh_of(world), [Partial()])


@case(2, 4)
def local_of_another_shape(world):
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(numbers(2, 3), mesh_of(world), [shard(0)], shape=torch.Size((3, 3)), stride=(3, 1))


@case(2)
def derived_placement(world):
    """Equal to a Shard, but who knows what it does."""
    from torch.distributed.tensor import DTensor, Shard

    class Other(Shard):
        pass

    mesh = mesh_of(world)
    of_dtensor(DTensor.from_local(numbers(2, 3), mesh, [shard(0)]), "the one that is known comes first")
    return DTensor.from_local(numbers(2, 3), mesh, [Other(0)])


@case(4)
def rows_of_groups_replicated(world):
    return distributed((7, 3), mesh_of(2, 2), shard(0), replicate())


@case(4)
def replicas_of_rows(world):
    return distributed((7, 3), mesh_of(2, 2), replicate(), shard(0))


@case(4)
def rows_and_columns(world):
    return distributed((5, 3), mesh_of(2, 2), shard(0), shard(1))


@case(4)
def columns_and_rows(world):
    return distributed((5, 3), mesh_of(2, 2), shard(1), shard(0))


@case(4)
def rows_twice(world):
    return distributed((5, 2), mesh_of(2, 2), shard(0), shard(0))


@case(4)
def rows_twice_with_empty_ones(world):
    return distributed((2, 2), mesh_of(2, 2), shard(0), shard(0))


@case(4)
def strided_and_rows(world):
    return distributed((8, 2), mesh_of(2, 2), strided(0, 2), shard(0))


@case(4)
def strided_before_rows_as_chunks(world):
    """The factor is the size of nothing, so this stands for no order."""
    return distributed((13, 2), mesh_of(2, 2), strided(0, 3), shard(0))


@case(4)
def strided_twice_and_columns(world):
    return distributed((12, 6), mesh_of(2, 2), strided(0, 3), strided(0, 5))


@case(4)
def mesh_in_another_order(world):
    from torch.distributed.device_mesh import DeviceMesh

    return distributed((5, 2), DeviceMesh("cpu", [[3, 1], [2, 0]]), shard(0), replicate())


@case(4)
def mesh_of_some_ranks(world):
    from torch.distributed.device_mesh import DeviceMesh

    return distributed((4, 2), DeviceMesh("cpu", [3, 1]), replicate())


@case(4)
def order_of_its_own(world):
    """Plain shards, the right one first: redistributed by torch."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry, TensorMeta
    from torch.distributed.tensor._redistribute import redistribute_local_tensor

    whole, mesh = numbers(7, 2), mesh_of(2, 2)
    meta = TensorMeta(whole.shape, whole.stride(), whole.dtype)
    before = DTensorSpec(mesh, (replicate(), replicate()), meta)
    after = DTensorSpec(mesh, (shard(0), shard(0)), meta, shard_order=(ShardOrderEntry(0, (1, 0)),))
    return DTensor(redistribute_local_tensor(whole, before, after), after, requires_grad=False)


def fully(module: nn.Module, mesh) -> nn.Module:
    """Sharded by fully_shard, after its values became known."""
    from torch.distributed.fsdp import fully_shard

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(numbers(*parameter.shape))
    return fully_shard(module, mesh=mesh)


def parallel(module: nn.Module, style: str, mesh, dp) -> nn.Module:
    """Tensor parallelism first, then fully_shard over it."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import parallel as styles

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(numbers(*parameter.shape))
    plan = getattr(styles, style)()
    return fully_shard(styles.parallelize_module(module, mesh["tp"], plan), mesh=mesh[dp])


@case(4)
def colwise_and_fully_sharded(world):
    return parallel(nn.Linear(3, 8), "ColwiseParallel", mesh_of(2, 2), "dp").weight


@case(4)
def colwise_and_fully_sharded_uneven(world):
    return parallel(nn.Linear(3, 7), "ColwiseParallel", mesh_of(2, 2), "dp").weight


@case(4)
def colwise_bias_with_empty_shards(world):
    return parallel(nn.Linear(3, 3), "ColwiseParallel", mesh_of(2, 2), "dp").bias


@case(4)
def rowwise_and_fully_sharded_uneven(world):
    return parallel(nn.Linear(5, 7), "RowwiseParallel", mesh_of(2, 2), "dp").weight


@case(4)
def rowwise_bias(world):
    return parallel(nn.Linear(4, 7), "RowwiseParallel", mesh_of(2, 2), "dp").bias


@case(4)
def momentum_of_colwise_and_fully_sharded(world):
    """What an optimizer keeps has the placements of its parameter; this one is the parameter, copied by DTensor."""
    return torch.zeros_like(colwise_and_fully_sharded_uneven(world)).add_(colwise_and_fully_sharded_uneven(world))


@case(6)
def colwise_and_fully_sharded_over_three(world):
    """The two meanings of a strided shard differ here: 4 rows are chunked 2, 2, 0."""
    return parallel(nn.Linear(3, 7), "ColwiseParallel", mesh_of(3, 2), "dp").weight


@case(6)
def strided_and_rows_where_the_meanings_differ(world):
    return distributed((7, 3), mesh_of(3, 2), strided(0, 2), shard(0))


@case(8)
def hybrid_colwise(world):
    return parallel(nn.Linear(3, 7), "ColwiseParallel", mesh_of(2, 2, 2), ("replicate", "dp")).weight


@case(8)
def hybrid_rowwise_bias(world):
    return parallel(nn.Linear(4, 5), "RowwiseParallel", mesh_of(2, 2, 2), ("replicate", "dp")).bias


def ordered(*order: int) -> Callable:
    """Rows split by the three dimensions of a mesh in that order, as by parallelism over parallelism."""

    def make(world):
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry

        mesh, whole = mesh_of(2, 2, 2), numbers(19, 2)
        mine = whole
        for i in order:
            mine = mine.chunk(2)[mesh.get_coordinate()[i]]
        entries = (ShardOrderEntry(0, order),)
        placements = DTensorSpec._convert_shard_order_to_StridedShard(entries, (shard(0),) * 3, mesh)
        return DTensor.from_local(mine, mesh, placements, shape=whole.shape, stride=whole.stride())

    return make


CASES[8] |= {f"rows_by_{''.join(map(str, order))}": ordered(*order) for order in permutations(range(3))}


def said(make: Callable, world: int, path: str) -> dict:
    """What `of_dtensor` says, and what is there, as JSON."""
    tensor, like = make(world), make(world)
    local = tensor.to_local().detach()
    there = {"local": local.tolist(), "local_shape": list(local.shape)}
    try:
        held = of_dtensor(tensor, path)
    except UnsupportedTensor as error:
        return there | {"refused": str(error)}
    pieces = [[piece.box.offsets, piece.box.sizes, piece.at] for piece in held.pieces]
    again = of_dtensor(like, path) is held
    return there | {"shape": held.shape, "pieces": pieces, "holders": held.holders, "again": again}


def run_rank(folder: Path, world: int, rank: int) -> None:
    import torch.distributed as dist

    faulthandler.dump_traceback_later(SECONDS, exit=True)
    torch.set_num_threads(1)
    place = f"file://{folder}/store-{world}"
    dist.init_process_group("gloo", place, rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS))
    found = {name: said(make, world, name) for name, make in CASES[world].items()}
    (folder / f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def forked(folder: Path, world: int, rank: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        run_rank(folder, world, rank)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def all_end_well(children: set[int]) -> bool:
    """False, and no more of them, as soon as one does not: the others would wait for it."""
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            return False
    return True


def main(folder: Path) -> int:
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel  # noqa: F401 - before the fork, once for all ranks

    signal.alarm(SECONDS + 10)
    for world in CASES:
        if not all_end_well({forked(folder, world, rank) for rank in range(world)}):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
