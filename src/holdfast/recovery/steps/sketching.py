"""Enough of the user's values to notice, in every step, that the body has changed them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from weakref import ref

import numpy as np
import torch

MOST = 256
"""Elements that are looked at in all; a few microseconds' worth. Beyond them identity has to do, length and ends."""
SMALL = 4096
"""Bytes up to which an array is looked at."""

_BUILT_IN = (Mapping, list, tuple, deque, set, frozenset)


def sketch(values: Mapping[str, Any]) -> object:
    """Something that is equal as long as the values are: by content, as far as there is not too much of it.

    Tensors by their version, which writes in place move on. It keeps none of them in memory.

    Example:
        >>> meters = {"seen": {"samples": 8}}
        >>> before = sketch(meters)
        >>> meters["seen"]["samples"] += 8
        >>> sketch(meters) == before
        False
    """
    return Sketching().of(values)


class Sketching:
    """One sketch in the making, of at most so many elements."""

    def __init__(self, most: int = MOST) -> None:
        self._left = most
        self.whole = True
        """Whether everything was looked at that could be."""

    def of(self, value: Any) -> Any:
        """The sketch of one value."""
        self._left -= 1
        if value is None or isinstance(value, (bool, int, str, bytes)):
            return value
        if isinstance(value, float):
            return repr(value)  # a NaN is not equal to itself
        if isinstance(value, torch.Tensor):
            return Same(value), 0 if value.is_inference() else value._version
        if isinstance(value, (np.ndarray, np.generic)):
            return self._array(value)
        return self._container(value) if isinstance(value, _BUILT_IN) else self._other(value)

    def _array(self, value: Any) -> Any:
        if value.dtype.hasobject or value.nbytes > SMALL:
            self.whole = False
            return Same(value)
        alike = value.dtype if isinstance(value, np.generic) else Same(value)  # numbers are replaced, arrays written to
        return alike, value.tobytes()

    def _container(self, value: Any) -> Any:
        if len(value) > self._left:
            return self._cut(value)
        if isinstance(value, Mapping):
            return [(key, self.of(one)) for key, one in value.items()]
        if isinstance(value, (list, tuple, deque)):
            return [self.of(one) for one in value]
        return frozenset(value)

    def _cut(self, value: Any) -> Any:
        """Of too much: its ends too, for a full deque has the same length for ever."""
        self.whole = False
        ends = (Same(value[0]), Same(value[-1])) if value and isinstance(value, (list, tuple, deque)) else ()
        return Same(value), len(value), ends

    def _other(self, value: Any) -> Any:
        return Same(value)


class Same:
    """Equal to another one of the same object, as long as that lives: an address is given out again."""

    __slots__ = ("_object",)

    def __init__(self, value: object) -> None:
        try:
            self._object: Callable[[], object] = ref(value)
        except TypeError:  # of lists, dictionaries and small things there are no weak references
            self._object = lambda: value

    def __eq__(self, other: object) -> bool:
        mine = self._object()
        return isinstance(other, Same) and mine is not None and mine is other._object()

    __hash__ = None  # type: ignore[assignment]  # it is compared only
