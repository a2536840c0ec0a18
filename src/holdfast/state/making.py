"""Tensors made anew, empty, as a tensor that the program has: on its device, in its order, sharded if that is."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.state import tensors
from holdfast.state.held import is_sharded, local
from holdfast.trees import TensorSpec


def made(pattern: Tensor, spec: TensorSpec, device: torch.device, *, sharded: bool) -> Tensor:
    """As an optimizer would have made it: like its parameter, sharded if that is, however it was stored.

    Args:
        pattern: the parameter, or whatever else it is to be like.
        spec: what is stored.
        device: where it shall be.
        sharded: whether it was a DTensor when it was stored.
    """
    if not is_sharded(pattern) or not (sharded or (spec.shape and tuple(pattern.shape) == spec.shape)):
        return _like(local(pattern), spec, device)
    if tuple(pattern.shape) != spec.shape:
        return _replicated(pattern, tensors.allocate(spec, device))
    here = torch.empty_like(tensors.plain(local(pattern)), dtype=tensors.dtype_of(spec.dtype), device=device)
    mesh, placements = pattern.device_mesh, pattern.placements  # type: ignore[attr-defined]
    return type(pattern.data).from_local(  # type: ignore[attr-defined,no-any-return]
        here, mesh, placements, run_check=False, shape=pattern.shape, stride=pattern.stride()
    )


def _replicated(pattern: Tensor, here: Tensor) -> Tensor:
    """A DTensor that all ranks of the pattern have whole: factors of moments are, which are smaller than it."""
    from torch.distributed.tensor import Replicate

    mesh = pattern.device_mesh  # type: ignore[attr-defined]
    return type(pattern.data).from_local(here, mesh, [Replicate()] * mesh.ndim, run_check=False)  # type: ignore[attr-defined,no-any-return]


def _like(pattern: Tensor, spec: TensorSpec, device: torch.device) -> Tensor:
    # As zeros_like would have made it, unless it had another order in memory when it was saved.
    if tuple(pattern.shape) == spec.shape and tensors.dim_order(pattern) == spec.dim_order:
        return torch.empty_like(tensors.plain(pattern), dtype=tensors.dtype_of(spec.dtype), device=device)
    return tensors.allocate(spec, device)
