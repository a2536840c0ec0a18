"""Which ranks have the same module, by the wrappers around it: the evidence for tensors that carry none themselves.

Of parameters all replicas are the same bytes, or something is wrong. Buffers
may differ: each rank's batches have left their traces in them, and what counts
is what the first rank has, as in DistributedDataParallel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from holdfast.state.held import is_sharded
from holdfast.state.tensors import is_a


class Replicas(NamedTuple):
    """The ranks that have the same module."""

    ranks: tuple[int, ...]
    """Global ranks, in an order that all of them know."""
    parameters: bool
    """Whether its plain parameters are the same on all of them, not just its purpose."""


def replicas_of(module: nn.Module) -> Replicas | None:
    """What the outermost wrapper of ``module`` says; None: it is no wrapper of many ranks."""
    if is_a(module, "torch.nn.parallel.distributed", "DistributedDataParallel"):
        from torch.distributed import get_process_group_ranks

        group: Any = module.process_group
        return _several(get_process_group_ranks(group), parameters=True)
    if is_a(module, "torch.distributed.fsdp", "FSDPModule"):
        return _sharded(module)
    if is_a(module, "torch._dynamo.eval_frame", "OptimizedModule"):
        return replicas_of(module._orig_mod)  # type: ignore[arg-type]
    return None


def _sharded(module: nn.Module) -> Replicas | None:
    """All ranks over which fully_shard has spread a module; what it leaves alone it says nothing about."""
    mesh = next((p.device_mesh for p in module.parameters() if is_sharded(p)), None)  # type: ignore[attr-defined]
    return None if mesh is None else _several(mesh.mesh.flatten().tolist(), parameters=False)


def _several(ranks: list[int], *, parameters: bool) -> Replicas | None:
    return Replicas(tuple(ranks), parameters) if len(ranks) > 1 else None
