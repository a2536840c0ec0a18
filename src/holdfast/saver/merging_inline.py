"""Small tensors of all parts, put together: whole, whoever held them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from holdfast.boxes import Box
from holdfast.errors import SaveFailed
from holdfast.trees import Skeleton, TensorSpec, item_bytes


class InlineForm(NamedTuple):
    """What is in the page of one part, back to back: boxes of small tensors."""

    tensors: tuple[tuple[str, tuple[Box, ...]], ...]


def join_inline(skeleton: Skeleton, forms: Sequence[InlineForm], pages: Sequence[bytes]) -> bytes:
    """The inline page of a checkpoint.

    Args:
        skeleton: of all parts together.
        forms: per part, what is in its page; equal ones are one object.
        pages: per part.

    Raises:
        SaveFailed: two ranks have other bytes at the same place, or nobody has any there.
    """
    small = {spec.name: _Joined(spec) for spec in skeleton.tensors if spec.inline}
    met: set[tuple[int, bytes]] = set()
    for rank, (form, page) in enumerate(zip(forms, pages, strict=True)):
        if (id(form), page) not in met:
            met.add((id(form), page))
            _take(small, form, page, rank)
    return b"".join(one.finish() for one in small.values())


def _take(small: Mapping[str, _Joined], form: InlineForm, page: bytes, rank: int) -> None:
    at = 0
    for name, boxes in form.tensors:
        for box in boxes:
            length = box.elements * small[name].item
            small[name].add(box, page[at : at + length], rank)
            at += length


class _Joined:
    """One tensor, as far as it is there."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec, self.item = spec, item_bytes(spec.dtype)
        self._bytes = bytearray(spec.nbytes)
        self._from: list[int | None] = [None] * (spec.nbytes // self.item)
        """Per element, the rank that it is from."""

    def add(self, box: Box, data: bytes, rank: int) -> None:
        at = 0
        for first, count in self._runs(box):
            piece = data[at : at + count * self.item]
            self._put(first, count, piece, rank)
            at += len(piece)

    def _put(self, first: int, count: int, piece: bytes, rank: int) -> None:
        place = slice(first * self.item, (first + count) * self.item)
        known = {other for other in self._from[first : first + count] if other is not None}
        if known and (None in self._from[first : first + count] or self._bytes[place] != piece):
            raise SaveFailed(differing(self.spec.name, [min(known)], [rank]))
        self._bytes[place] = piece
        self._from[first : first + count] = [rank] * count

    def _runs(self, box: Box) -> Iterator[tuple[int, int]]:
        """Elements that lie one behind the other, as the first and how many."""
        if not box.elements:
            return
        if box.sizes == self.spec.shape:
            yield 0, box.elements
            return
        *outer, last = range(len(box.sizes))
        for index in product(*(range(box.offsets[d], box.offsets[d] + box.sizes[d]) for d in outer)):
            first = 0
            for d, i in zip(outer, index, strict=True):
                first = first * self.spec.shape[d] + i
            yield first * self.spec.shape[last] + box.offsets[last], box.sizes[last]

    def finish(self) -> bytes:
        if None in self._from:
            raise SaveFailed(f"{self.spec.name} cannot be put together: of some of it no rank has anything")
        return bytes(self._bytes)


def differing(name: str, these: Sequence[int], those: Sequence[int]) -> str:
    """What to say where ranks have other bytes under one name."""
    first, second = (", ".join(map(str, ranks)) for ranks in (these, those))
    return (
        f"{name} is not the same on rank {first} and on rank {second}, and nothing says that it should be; if it "
        "belongs to each rank, wrap its object in holdfast.per_rank(); if they are parts of one model, give each rank "
        "names of its own with prefix="
    )
