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
    prefix: str = ""
    """Of the module, in the names that are looked up."""
    ignored: frozenset[str] = frozenset()
    """Names within it that the wrapper leaves to each rank."""

    def have(self, name: str) -> bool:
        """Whether they have the tensor of that name."""
        return name.removeprefix(self.prefix) not in self.ignored


def replicas_of(module: nn.Module, prefix: str) -> Replicas | None:
    """What the outermost wrapper of ``module``, found under ``prefix``, says; None: it is no wrapper of many ranks."""
    if is_a(module, "torch.nn.parallel.distributed", "DistributedDataParallel"):
        from torch.distributed import get_process_group_ranks

        group: Any = module.process_group
        ignored = frozenset(getattr(module, "parameters_to_ignore", ()))
        return _several(Replicas(tuple(get_process_group_ranks(group)), True, prefix, ignored))
    if is_a(module, "torch.distributed.fsdp", "FSDPModule"):
        return _sharded(module)
    if is_a(module, "torch._dynamo.eval_frame", "OptimizedModule"):
        return replicas_of(module._orig_mod, prefix)  # type: ignore[arg-type]
    return None


def _sharded(module: nn.Module) -> Replicas | None:
    """All ranks over which fully_shard has spread a module; what it leaves alone it says nothing about.

    A parameter that is tensor-parallel as well lies on a larger mesh; of that other dimension nothing is said here.
    """
    meshes = [p.device_mesh for p in module.parameters() if is_sharded(p)]  # type: ignore[attr-defined]
    mesh = _own_mesh(module) or min(meshes, key=lambda one: one.ndim, default=None)
    return None if mesh is None else _several(Replicas(tuple(mesh.mesh.flatten().tolist()), False))


def _own_mesh(module: Any) -> Any:
    """The mesh that fully_shard was given: torch has no public name for it."""
    try:
        return module._get_fsdp_state()._fsdp_param_group.mesh_info.mesh
    except AttributeError:
        return None


def _several(found: Replicas) -> Replicas | None:
    return found if len(found.ranks) > 1 else None
