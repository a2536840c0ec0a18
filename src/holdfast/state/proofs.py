"""Which live memory needs no second look after a load: it was hashed where it lies, and nothing wrote to it since."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from holdfast.packs.buffers import address


class _Range(NamedTuple):
    begin: int
    end: int
    entry: int | None
    """The stored tensor that was verified here; None: something was only written here."""


class Proofs:
    """What one load has verified in place. Not thread-safe.

    The memory is kept alive until it is forgotten, so that an address always means what it meant.
    """

    def __init__(self) -> None:
        self._verified: list[tuple[int, memoryview]] = []
        self._written: list[_Range] = []

    def verified(self, entry: int, memory: memoryview) -> None:
        """All bytes of a stored tensor were hashed in ``memory``, after the last write to it."""
        self._verified.append((entry, memory))

    def written(self, tensor: Tensor) -> None:
        """Something was written, somewhere in the storage of ``tensor``."""
        storage = tensor.untyped_storage()
        if storage.device.type == "cpu":
            self._written.append(_Range(storage.data_ptr(), storage.data_ptr() + storage.nbytes(), None))

    def forget(self) -> None:
        """Code ran that may have written anywhere."""
        self._verified, self._written = [], []

    def standing(self) -> set[tuple[int, int, int]]:
        """Entry, address and length of what still stands: nothing else was verified or written in its memory.

        What was verified in neighbouring pieces is one.
        """
        found = [_Range(begin := address(m), begin + m.nbytes, entry) for entry, m in self._verified]
        groups = _touching(sorted([*found, *self._written], key=lambda r: (r.begin, r.end)))
        alone = [one for one, *others in groups if one.entry is not None and not others]
        return {(one.entry, one.begin, one.end - one.begin) for one in _joined(alone) if one.entry is not None}


def _joined(ranges: list[_Range]) -> list[_Range]:
    found: list[_Range] = []
    for one in ranges:
        if found and (found[-1].entry, found[-1].end) == (one.entry, one.begin):
            one = _Range(found.pop().begin, one.end, one.entry)
        found.append(one)
    return found


def _touching(ranges: list[_Range]) -> Iterator[list[_Range]]:
    """Groups of ranges that share bytes, directly or through others."""
    group: list[_Range] = []
    end = 0
    for one in ranges:
        if group and one.begin >= end:
            yield group
            group = []
        group.append(one)
        end = max(end, one.end)
    if group:
        yield group
