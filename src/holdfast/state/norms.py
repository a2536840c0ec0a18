"""Tensors reduced to one number each: as much of them as can be looked at, on the device where they lie."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.state.held import local
from holdfast.state.tensors import is_stock

_PACKED = {dtype for name in ("float4_e2m1fn_x2",) if (dtype := getattr(torch, name, None)) is not None}
"""They have no NaN and no infinity."""


def is_plain_sum(gradient: Tensor) -> bool:
    """Whether the squares of its stored numbers add up to its norm: the same row may be there more than once."""
    return gradient.layout is not torch.sparse_coo or gradient.is_coalesced()


def local_numbers(tensor: Tensor) -> Tensor | None:
    """What of a tensor can be looked at on this rank as a plain tensor of numbers; None: nothing.

    Of a DTensor it is the local shard, of a sparse one its values. Integers and what is empty are finite; subclasses
    that torch does not bring itself may give out anything, and tensors without data nothing.
    """
    tensor = local(tensor)
    if tensor.layout is torch.sparse_coo:
        tensor = tensor._values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr, torch.sparse_csc, torch.sparse_bsc):
        tensor = tensor.values()
    if not is_stock(tensor) or tensor.device.type == "meta" or tensor.layout is not torch.strided:
        return None
    if not tensor.numel() or tensor.dtype in _PACKED or not tensor.untyped_storage().nbytes():
        return None  # no memory: given back for the time being, as FSDP does with what it has gathered
    if tensor.is_complex():
        return torch.view_as_real(tensor.detach().resolve_conj())
    return tensor.detach() if tensor.is_floating_point() else None


def norms(tensors: Sequence[Tensor], order: float) -> Tensor:
    """The norm of each tensor, together in one tensor; all on one device, none of them empty."""
    wide = [tensor if tensor.element_size() > 1 else tensor.float() for tensor in tensors]
    by_dtype: dict[torch.dtype, list[int]] = defaultdict(list)
    for place, tensor in enumerate(wide):
        by_dtype[tensor.dtype].append(place)
    found: list[Any] = [None] * len(wide)
    for dtype, places in by_dtype.items():
        better = torch.promote_types(dtype, torch.float32)
        some = torch._foreach_norm([wide[place] for place in places], order, dtype=better)
        for place, norm in zip(places, some, strict=True):
            found[place] = norm
    # Converted one by one only where they differ, for that is a kernel each.
    if len({norm.dtype for norm in found}) > 1:
        found = [norm.double() for norm in found]
    return torch.stack(found)


def host_norms(tensors: Sequence[Tensor], *, exact: bool) -> Tensor:
    """2-norms of tensors on the host; with ``exact``, where one is no number, the infinity norm in its place.

    There the 2-norm is several times as fast, and where it is finite the tensor is.
    """
    found = norms(tensors, 2.0)
    doubtful = [place for place, norm in enumerate(found.tolist()) if not math.isfinite(norm)]
    if exact and doubtful:
        found[doubtful] = norms([tensors[place] for place in doubtful], math.inf).to(found.dtype)
    return found
