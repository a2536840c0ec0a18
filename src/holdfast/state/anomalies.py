"""What looks wrong in a state that is about to be saved. Pure: nothing is refused here, it is written down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from holdfast.ids import Digest
from holdfast.trees import Skeleton, TensorSpec

_CHUNK = 1 << 22
# Elements looked at in one go; dtypes without a minimum of their own are converted chunk by chunk.

_DIRECT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 5


def nan_inside(tensors: Iterable[tuple[TensorSpec, Tensor]]) -> list[str]:
    """Names of floating-point tensors that hold a NaN; one pass over the memory, no copies of its size."""
    return [spec.name for spec, tensor in tensors if _has_nan(tensor)]


def keys_lost(skeleton: Skeleton, parent: Skeleton) -> list[str]:
    """Names, aliases included, that the parent has and this state has not, in the parent's order."""
    present = set(_paths(skeleton))
    return [path for path in _paths(parent) if path not in present]


def identical(digests: Sequence[Digest], inline: bytes, parent: Sequence[Digest], parent_inline: bytes) -> bool:
    """Whether two states hold the same bytes in every tensor: training did not change anything in between."""
    return bool(digests or inline) and list(digests) == list(parent) and inline == parent_inline


def describe(what: str, names: Sequence[str]) -> list[str]:
    """One line for a record, or none: ``what`` with the first names and the number of others.

    Example:
        >>> describe("NaN inside", ["model/a", "model/b"]), describe("keys lost", [])
        (['NaN inside: model/a, model/b'], [])
    """
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what}: {', '.join(names[:_SHOWN])}{more}"]


def _has_nan(tensor: Tensor) -> bool:
    tensor = tensor.detach()
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dtype == torch.float4_e2m1fn_x2:
        return False
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    # The minimum of numbers with a NaN among them is NaN: no mask as large as the tensor is needed.
    return any(bool(chunk.amin().isnan()) for chunk in _chunks(tensor))


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.numel() and not tensor.is_contiguous():
        # Reshaping would copy all of it; leading rows are views.
        pieces = torch.split(tensor, max(1, _CHUNK * tensor.shape[0] // tensor.numel()))
    else:
        pieces = torch.split(tensor.reshape(-1), _CHUNK) if tensor.numel() else ()
    return (piece if piece.dtype in _DIRECT else piece.float() for piece in pieces)


def _paths(skeleton: Skeleton) -> Iterator[str]:
    return (path for spec in skeleton.tensors for path in (spec.name, *spec.aliases))
