"""Tensors that are made of tensors: sparse, quantised, wrapper subclasses; and NumPy arrays.

`split` takes one apart into plain tensors and a few plain values; `readers`
puts it together again. A wrapper subclass is filled part by part where it
lives: its class is never called into being from stored text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from holdfast import values
from holdfast.errors import Corrupt, StateError, UnsupportedTensor, UnsupportedValue
from holdfast.state.tensors import dtype_name, is_stock
from holdfast.values import Json

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
_LAYOUTS = {str(layout).removeprefix("torch."): layout for layout in _COMPRESSED}
_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32)
_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric)


class Split(NamedTuple):
    """A composite tensor, taken apart."""

    facts: dict[str, Json]
    """With the tag."""
    parts: dict[str, Tensor]


def split(tensor: Tensor, path: str) -> Split | None:
    """The parts of a composite tensor; None for a plain one.

    Raises:
        UnsupportedTensor: a quantisation or a sharding that cannot be stored.
    """
    # As a plain bool: the type guard of torch contradicts Tensor, and what follows would count as unreachable.
    if not is_stock(tensor) and bool(is_traceable_wrapper_subclass(tensor)):
        return _split_subclass(tensor)
    if tensor.layout == torch.sparse_coo:
        facts: dict[str, Json] = {"$": "sparse_coo", "shape": list(tensor.shape), "coalesced": tensor.is_coalesced()}
        return Split(facts, {"indices": tensor._indices(), "values": tensor._values()})
    if tensor.layout in _COMPRESSED:
        return _split_compressed(tensor)
    return _split_quantized(tensor, path) if tensor.is_quantized else None


def class_name(value: object) -> str:
    """``module:qualname`` of the class of ``value``."""
    return f"{type(value).__module__}:{type(value).__qualname__}"


def subclass_parts(tensor: Tensor) -> dict[str, Tensor]:
    """The inner tensors of a wrapper subclass, by attribute; they share its memory."""
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return {name: getattr(tensor, name) for name in names}


def shared_array(array: np.ndarray[Any, Any], path: str) -> Tensor:
    """A tensor over the memory of ``array`` (over a copy, where torch cannot share it).

    Raises:
        UnsupportedValue: object, structured, text, time and extended arrays, and foreign byte order.
    """
    if array.dtype.kind not in "buifc" or array.dtype.itemsize > 16 or not array.dtype.isnative:
        raise UnsupportedValue(f"{path} is a NumPy array of dtype {array.dtype}, which cannot be stored; convert it")
    if array.dtype in (np.longdouble, np.clongdouble):
        raise UnsupportedValue(f"{path} is a NumPy array of {array.dtype}, which differs by machine; convert it")
    if not array.flags.writeable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def readers(tensors: Mapping[str, Tensor]) -> dict[str, values.Reader]:
    """Readers for `values.decode` that take plain tensors from ``tensors`` by name."""

    def part(data: dict[str, Any]) -> Tensor:
        return tensors[data["name"]]

    def tensor(data: dict[str, Any]) -> Tensor:
        found = part(data)
        if data.get("parameter"):
            return torch.nn.Parameter(found, requires_grad=bool(data.get("grad")))
        return found.requires_grad_() if data.get("grad") else found

    builders: dict[str, Callable[..., object]] = {
        "ndarray": _ndarray,
        "sparse_coo": _sparse_coo,
        "sparse_compressed": _sparse_compressed,
        "quantized": _quantized,
        "subclass": _refuse_subclass,
    }
    found: dict[str, values.Reader] = {"tensor": tensor}
    return found | {tag: partial(build, part=part) for tag, build in builders.items()}


Part = Callable[[dict[str, Any]], Tensor]


def _split_subclass(tensor: Tensor) -> Split:
    _, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    try:
        described = values.encode(context)
    except UnsupportedValue:
        described = None
    facts = {"$": "subclass", "class": class_name(tensor), "context": described, "shape": list(tensor.shape)}
    return Split(facts, subclass_parts(tensor))


def _split_compressed(tensor: Tensor) -> Split:
    compressed, plain = _COMPRESSED[tensor.layout]
    layout = str(tensor.layout).removeprefix("torch.")
    parts = {"compressed": getattr(tensor, compressed)(), "plain": getattr(tensor, plain)(), "values": tensor.values()}
    return Split({"$": "sparse_compressed", "layout": layout, "shape": list(tensor.shape)}, parts)


def _split_quantized(tensor: Tensor, path: str) -> Split:
    scheme = tensor.qscheme()
    facts: dict[str, Json] = {"$": "quantized", "dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape)}
    if tensor.dtype in _QUANTIZED and scheme in _PER_TENSOR:
        facts |= {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
        return Split(facts, {"data": tensor.int_repr()})
    if tensor.dtype in _QUANTIZED and scheme in _PER_CHANNEL:
        parts = {"scales": tensor.q_per_channel_scales(), "zero_points": tensor.q_per_channel_zero_points()}
        return Split(facts | {"axis": tensor.q_per_channel_axis()}, {"data": tensor.int_repr()} | parts)
    raise UnsupportedTensor(f"{path} is quantised as {tensor.dtype}, {scheme}, which cannot be stored")


def _ndarray(data: dict[str, Any], part: Part) -> object:
    return part(data["data"]).numpy()


def _sparse_coo(data: dict[str, Any], part: Part) -> Tensor:
    indices, content = part(data["parts"]["indices"]), part(data["parts"]["values"])
    # check_invariants: the indices come from a file, and a bad one would write outside of memory later.
    coalesced = bool(data["coalesced"])
    with _checked(data):
        return torch.sparse_coo_tensor(
            indices, content, tuple(data["shape"]), is_coalesced=coalesced, check_invariants=True
        )


def _sparse_compressed(data: dict[str, Any], part: Part) -> Tensor:
    inner = data["parts"]
    compressed, plain, content = (part(inner[name]) for name in ("compressed", "plain", "values"))
    layout = _LAYOUTS[data["layout"]]
    with _checked(data):
        return torch.sparse_compressed_tensor(
            compressed, plain, content, tuple(data["shape"]), layout=layout, check_invariants=True
        )


@contextmanager
def _checked(data: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, IndexError) as error:
        raise Corrupt(f"a stored {data['$']} tensor is malformed: {str(error).splitlines()[0]}") from error


def _quantized(data: dict[str, Any], part: Part) -> Tensor:
    inner = data["parts"]
    content = part(inner["data"])
    if "axis" not in data:
        return torch._make_per_tensor_quantized_tensor(content, data["scale"], data["zero_point"])
    scales, zero_points = part(inner["scales"]), part(inner["zero_points"])
    return torch._make_per_channel_quantized_tensor(content, scales, zero_points, data["axis"])


def _refuse_subclass(data: dict[str, Any], part: Part) -> Tensor:
    raise StateError(
        f"a stored tensor is a {data['class']}, which is filled only where one exists already; "
        "create it in the program before the restore (for an optimizer: its own load_state_dict)"
    )
