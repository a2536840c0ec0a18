"""Objects that DCP would pickle, as tagged JSON, and back: nothing that is stored is ever unpickled."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import values
from holdfast.errors import UnsupportedValue
from holdfast.state import tensors
from holdfast.values import Json

LONGEST = 1024 * 1024
"""Bytes of a tensor or an array within a value; longer ones belong into the state dict itself."""


def encode(value: object, fqn: str) -> Json:
    """The tagged JSON of a value, small tensors and arrays in it included.

    Raises:
        UnsupportedValue: it cannot be written without pickle; the message has the path.
    """
    return values.encode(value, values.part(fqn), leaf=_leaf)


def decode(data: Json) -> Any:
    """The inverse of `encode`.

    Raises:
        Damaged, StateError: as `holdfast.values.decode`.
    """
    return values.decode(data, readers={"dcp.tensor": _tensor, "dcp.array": _array})


def _leaf(value: object, path: str) -> Json:
    if isinstance(value, Tensor):
        tensors.check_bytes(value, path)
        tensors.check_plain(value, path)
        if not tensors.is_stock(value):
            raise UnsupportedValue(
                f"{path} is a {type(value).__name__} within a value; put it into the state dict itself"
            )
        return _packed("dcp.tensor", tensors.dtype_name(value.dtype), value.shape, tensors.row_bytes(value), path)
    if type(value) is np.ndarray and value.dtype.kind in "biufc":
        return _packed("dcp.array", value.dtype.str, value.shape, memoryview(value.tobytes()), path)
    return None


def _packed(tag: str, dtype: str, shape: tuple[int, ...], data: memoryview, path: str) -> Json:
    if data.nbytes > LONGEST:
        raise UnsupportedValue(
            f"{path} has {data.nbytes} bytes within a value; put it into the state dict itself, as a tensor"
        )
    return {"$": tag, "dtype": dtype, "shape": list(shape), "v": base64.b64encode(data).decode()}


def _tensor(data: dict[str, Any]) -> Tensor:
    raw = bytearray(base64.b64decode(data["v"], validate=True))
    dtype, shape = tensors.dtype_of(data["dtype"]), tuple(data["shape"])
    return torch.frombuffer(raw, dtype=dtype).reshape(shape) if math.prod(shape) else torch.empty(shape, dtype=dtype)


def _array(data: dict[str, Any]) -> Any:
    raw = base64.b64decode(data["v"], validate=True)
    return np.frombuffer(raw, dtype=data["dtype"]).reshape(data["shape"]).copy()
