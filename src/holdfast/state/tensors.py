"""Tensors as bytes: row-major, little-endian as the machine has them, one tensor at a time.

A plain tensor is one with bytes of its own: strided, of a dtype that
`holdfast.trees.item_bytes` knows. Everything else is either taken apart into
plain ones (state/composites.py) or refused with its path.
"""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from holdfast.errors import UnknownFormat, UnsupportedTensor
from holdfast.trees import TensorSpec, item_bytes

_STOCK = (Tensor, torch.nn.Parameter)


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without ``torch.``.

    Example:
        >>> dtype_name(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        UnknownFormat: this torch has no such dtype.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise UnknownFormat(f"torch {torch.__version__} has no dtype {name!r}; load with the torch that saved it")
    return found


def check_bytes(tensor: Tensor, path: str) -> None:
    """Refuses what has no bytes at all: meta, fake, functional, uninitialised, nested.

    Raises:
        UnsupportedTensor: with ``path`` and the way out.
    """
    if reason := _no_bytes(tensor):
        raise UnsupportedTensor(f"{path} {reason}")


def check_plain(tensor: Tensor, path: str) -> None:
    """Refuses layouts and dtypes that have bytes, but none that this format knows.

    Raises:
        UnsupportedTensor: with ``path``.
    """
    if tensor.layout != torch.strided:
        raise UnsupportedTensor(f"{path} has the layout {tensor.layout}, which cannot be stored; convert it to strided")
    try:
        item_bytes(dtype_name(tensor.dtype))
    except UnknownFormat:
        raise UnsupportedTensor(f"{path} has the dtype {tensor.dtype}, which cannot be stored; convert it") from None


def check_memory(tensor: Tensor, path: str) -> None:
    """Refuses a plain tensor whose storage was resized, as sharding wrappers do: there is nothing to be read.

    Raises:
        UnsupportedTensor: with ``path``.
    """
    if not tensor.numel():
        return
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    length = tensor.numel() if tensor.is_contiguous() else 1 + sum((n - 1) * step for n, step in strides)
    if tensor.untyped_storage().nbytes() < (tensor.storage_offset() + length) * tensor.element_size():
        raise UnsupportedTensor(
            f"{path} has no memory behind it (its storage was resized); save outside of the resharded region"
        )


def is_stock(tensor: Tensor) -> bool:
    """Whether it is of torch's own two classes: what only subclasses can be need not be asked of most tensors."""
    return type(tensor) in _STOCK


def plain(tensor: Tensor) -> Tensor:
    """The same memory without autograd and without a subclass around it."""
    found = tensor.detach()
    return found if type(found) is Tensor else found.as_subclass(Tensor)


def row_major(tensor: Tensor) -> Tensor:
    """``tensor`` on the CPU, row-major, conjugation and sign resolved: the same memory if it is that already."""
    # A copy exists for one tensor at a time, so the peak is one tensor, not one state.
    return plain(tensor).cpu().resolve_conj().resolve_neg().contiguous()


def row_bytes(tensor: Tensor) -> memoryview:
    """The row-major bytes of a plain tensor; no copy for contiguous CPU tensors. Keeps what it views alive."""
    return _view(row_major(tensor))


def live_bytes(tensor: Tensor) -> memoryview | None:
    """The writable memory of ``tensor`` if that is its row-major bytes; None where a copy has to be made."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    return _view(plain(tensor))


def flat_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as one-dimensional ``uint8``, the same memory; on any device."""
    # A 0-dimensional tensor has no last dimension that view(dtype) could stretch.
    return plain(tensor).reshape(-1).view(torch.uint8)


def dim_order(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions from slowest to fastest if the memory is dense but not row-major (channels last), else empty."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return ()
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.ndim), key=lambda d: (-strides[d], -tensor.shape[d])))
    return order if tensor.permute(order).is_contiguous() else ()


def allocate(spec: TensorSpec, device: torch.device) -> Tensor:
    """An unfilled tensor of the dtype, shape and memory order of ``spec``."""
    order = spec.dim_order or tuple(range(len(spec.shape)))
    strides, step = [0] * len(order), 1
    for d in reversed(order):
        strides[d] = step
        step *= max(spec.shape[d], 1)
    return torch.empty_strided(spec.shape, strides, dtype=dtype_of(spec.dtype), device=device)


def is_a(value: object, module: str, name: str) -> bool:
    """Whether ``value`` is an instance of a class that may not even be imported; decided by type, never by text."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(value, cls)


def put(target: Tensor, source: Tensor) -> None:
    """Copies ``source`` into the memory of ``target``, which may be expanded, permuted or on a device."""
    target = plain(target)
    for d in range(target.ndim):
        # Elements of an expanded dimension are one in memory; copy_ refuses to write it more than once.
        if target.stride(d) == 0 and target.shape[d] > 1:
            target, source = target.narrow(d, 0, 1), source.narrow(d, 0, 1)
    target.copy_(source)


def _view(tensor: Tensor) -> memoryview:
    if tensor.numel() == 0:
        return memoryview(bytearray())
    return flat_bytes(tensor).numpy().data.cast("B")


def _no_bytes(tensor: Tensor) -> str | None:
    if not is_stock(tensor):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            return "is lazy and has no shape yet; run one forward pass before the first save or restore"
        if is_a(tensor, "torch._subclasses.fake_tensor", "FakeTensor"):
            return "is a fake tensor without data; save outside of FakeTensorMode"
    if torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "is inside a functorch or functionalization transform; save outside of it"
    if tensor.is_meta:
        return "is on the meta device and has no data; materialise it with to_empty() and initialise it"
    if tensor.is_nested:
        return "is a nested tensor, which cannot be stored; store values and offsets apart"
    return None
