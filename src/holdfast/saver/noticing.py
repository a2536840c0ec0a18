"""What looks wrong in a state that is being saved. Nothing is refused for it; it is written down.

Looked at where the bytes are at hand anyway: NaN in the threads that hash, the
rest by comparing manifests. Segments that are stored already were looked at
when they were new.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from holdfast.trees import Manifest, Skeleton, TensorSpec, segment_count

try:
    import numpy
except ImportError:  # programs that train have it; without it nobody looks for NaN
    np: Any = None
else:
    np = numpy

_SHOWN = 5
_OURS = "$own/"
"""How names of random states and places in the data begin."""

_BITS = {
    # dtype: integers of its width, bits without the sign, the largest pattern that is a number or an infinity
    "float16": ("uint16", 0x7FFF, 0x7C00),
    "bfloat16": ("uint16", 0x7FFF, 0x7F80),
    "complex32": ("uint16", 0x7FFF, 0x7C00),
    "float8_e5m2": ("uint8", 0x7F, 0x7C),
    "float8_e4m3fn": ("uint8", 0x7F, 0x7E),
    "float8_e8m0fnu": ("uint8", 0xFF, 0xFE),
}
_MINUS_ZERO = ("float8_e4m3fnuz", "float8_e5m2fnuz")
"""What would be a negative zero is their only NaN."""
_NUMBERS = {"float32": "float32", "float64": "float64", "complex64": "float32", "complex128": "float64"}
_LITTLE = 1 << 16
"""Elements looked at at once: they stay in the cache between two passes."""


def has_nan(data: memoryview, dtype: str) -> bool:
    """Whether raw bytes of a dtype (torch's name) hold a NaN; False for dtypes that have none, or without NumPy.

    Example:
        >>> import struct
        >>> has_nan(memoryview(struct.pack("<3f", 1.0, float("inf"), float("nan"))), "float32")
        True
    """
    if np is None:
        return False
    if dtype in _NUMBERS:
        # The minimum of numbers with a NaN among them is NaN: one pass, and no memory of its own.
        return bool(np.isnan(np.min(np.frombuffer(data, dtype=_NUMBERS[dtype]))))
    if dtype in _BITS:
        kind, magnitude, last = _BITS[dtype]
        return any(bool((part & magnitude).max() > last) for part in _parts(data, kind))
    if dtype in _MINUS_ZERO:
        return any(bool((part == 0x80).any()) for part in _parts(data, "uint8"))
    return False


def _parts(data: memoryview, kind: str) -> Iterator[Any]:
    bits: Any = np.frombuffer(data, dtype=kind)
    return (bits[at : at + _LITTLE] for at in range(0, len(bits), _LITTLE))


class Notices:
    """Which tensors of a save hold a NaN. Thread-safe.

    Args:
        places: by lifetime-ordered number of a segment, the tensor that it belongs to.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._lock = threading.Lock()
        self._nan: set[int] = set()

    def inspector(self, tensors: Sequence[int]) -> Any:
        """What to call for the segments of one lifetime; ``tensors`` says, by number, whose each is."""

        def inspect(number: int, data: memoryview, dtype: str) -> None:
            if has_nan(data, dtype):
                with self._lock:
                    self._nan.add(tensors[number])

        return inspect

    @property
    def nan_inside(self) -> list[str]:
        """Names of the tensors that hold a NaN."""
        return [self._specs[place].name for place in sorted(self._nan)]


def noticed(state: Manifest, parent: Manifest | None, *, trained: bool) -> list[str]:
    """One sentence for each thing that looks wrong beside the save before.

    Args:
        state: what is saved, of all ranks.
        parent: what was saved before on this line, if anything.
        trained: whether a step was made since the parent.
    """
    if parent is None:
        return []
    found = describe("keys lost", keys_lost(state.skeleton, parent.skeleton))
    if trained and identical(state, parent):
        found.append("bit-identical to the checkpoint before, although steps were made in between")
    return found


def keys_lost(skeleton: Skeleton, parent: Skeleton) -> list[str]:
    """Names, aliases included, that the parent has and this state has not, in the parent's order.

    What is not the program's is passed over: a place in the data has another shape when an epoch has ended.
    """
    if skeleton == parent:
        return []
    present = set(_paths(skeleton))
    return [path for path in _paths(parent) if path not in present and not path.startswith(_OURS)]


def identical(state: Manifest, parent: Manifest) -> bool:
    """Whether two states hold the same bytes in every tensor: training did not change anything in between."""
    return bool(state.digests or state.inline) and state.digests == parent.digests and state.inline == parent.inline


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


def tensors_of_segments(specs: Sequence[TensorSpec]) -> list[int]:
    """For each segment of ``specs`` in order, the position of its tensor among them."""
    return [place for place, spec in enumerate(specs) for _ in range(segment_count(spec))]


def nan_inline(state: Manifest) -> Iterator[str]:
    """Names of the small tensors that hold a NaN."""
    at = 0
    for spec in state.skeleton.tensors:
        if spec.inline:
            data = memoryview(state.inline)[at : at + spec.held]
            at += spec.held
            if data and has_nan(data, spec.dtype):
                yield spec.name


def _paths(skeleton: Skeleton) -> Iterator[str]:
    return (path for spec in skeleton.tensors for path in (spec.name, *spec.aliases))
