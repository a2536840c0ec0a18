"""Enough of the user's values to notice, in every step, that the body has changed them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

MOST = 256
"""Elements that are looked at in all; a few microseconds' worth. Beyond them identity has to do, and length."""
SMALL = 4096
"""Bytes up to which an array is looked at."""


def sketch(values: Mapping[str, Any]) -> object:
    """Something that is equal as long as the values are: by content, as far as there is not too much of it.

    Tensors by their version, which writes in place move on.

    Example:
        >>> meters = {"seen": {"samples": 8}}
        >>> before = sketch(meters)
        >>> meters["seen"]["samples"] += 8
        >>> sketch(meters) == before
        False
    """
    return _Sketch().of(values)


class _Sketch:
    def __init__(self) -> None:
        self._left = MOST

    def of(self, value: Any) -> Any:
        self._left -= 1
        if value is None or isinstance(value, (bool, int, str, bytes)):
            return value
        if isinstance(value, float):
            return repr(value)  # a NaN is not equal to itself
        if isinstance(value, torch.Tensor):
            return id(value), 0 if value.is_inference() else value._version
        if isinstance(value, np.ndarray):
            return id(value), value.tobytes() if value.nbytes <= SMALL and not value.dtype.hasobject else b""
        return self._container(value)

    def _container(self, value: Any) -> Any:
        length = _length(value)
        if length > self._left:
            return id(value), length
        if isinstance(value, Mapping):
            return [(key, self.of(one)) for key, one in value.items()]
        if isinstance(value, (list, tuple, deque)):
            return [self.of(one) for one in value]
        if isinstance(value, (set, frozenset)):
            return frozenset(value)
        return id(value), length


def _length(value: Any) -> int:
    try:
        return len(value)
    except TypeError:  # it has none, or is an array without dimensions
        return 0
