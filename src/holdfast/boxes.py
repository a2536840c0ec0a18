"""Rectangles of tensors: how they are cut into segments, who writes what several ranks hold, and whether all is there.

Everything here is a pure function of global shapes and boxes, so that every
rank comes to the same answer by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import msgspec

SEGMENT_BYTES = 8 * 1024 * 1024
"""No segment is longer."""


class Box(msgspec.Struct, frozen=True, array_like=True):
    """A rectangle of a global tensor: per dimension, where it begins and how far it goes.

    Example:
        >>> Box((2, 0), (3, 4)).elements
        12
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements are in it."""
        return math.prod(self.sizes)

    def __contains__(self, other: Box) -> bool:
        """Whether another box of the same tensor lies inside."""
        return len(other.sizes) == len(other.offsets) == len(self.sizes) and all(
            a <= b and m >= 0 and b + m <= a + n
            for a, n, b, m in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        )

    def overlap(self, other: Box) -> Box | None:
        """What is in both; None: nothing.

        Example:
            >>> Box((0, 0), (4, 4)).overlap(Box((3, 1), (4, 2)))
            Box(offsets=(3, 1), sizes=(1, 2))
        """
        begin = tuple(map(max, self.offsets, other.offsets))
        end = [
            min(a + n, b + m) for a, n, b, m in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        ]
        sizes = tuple(last - first for first, last in zip(begin, end, strict=True))
        return Box(begin, sizes) if min(sizes, default=1) > 0 else None

    def rows(self, first: int, last: int) -> Box:
        """Those with global positions ``first`` up to ``last`` of dimension 0."""
        return Box((first, *self.offsets[1:]), (last - first, *self.sizes[1:]))


class Span(NamedTuple):
    """A run of bytes in the row-major bytes of a box."""

    start: int
    length: int


def whole(shape: Sequence[int]) -> Box:
    """All of a tensor."""
    return Box((0,) * len(shape), tuple(shape))


def cuts(box: Box, item: int) -> Iterator[Span]:
    """Where a box is cut into segments: at global rows that are a multiple of as many as fit; a longer row within.

    Boxes that differ in dimension 0 alone are cut at the same rows wherever both have them, so another number of ranks
    makes most of its segments anew, bit for bit. Empty boxes have none.

    Args:
        box: of a tensor.
        item: bytes per element.

    Example:
        >>> [span.length for span in cuts(Box((3,), (5_000_000,)), 4)]
        [8388596, 8388608, 3222796]
    """
    if not box.elements:
        return
    row = row_bytes(box, item)
    for first, last in _row_ranges(box, row):
        for start in range(first * row, last * row, SEGMENT_BYTES):
            yield Span(start, min(SEGMENT_BYTES, last * row - start))


def cut_count(box: Box, item: int) -> int:
    """How many `cuts` there are, without making them: a damaged shape may ask for more than there is time."""
    if not box.elements:
        return 0
    row = row_bytes(box, item)
    if row > SEGMENT_BYTES:
        return _row_count(box) * -(-row // SEGMENT_BYTES)
    begin, step = _first_row(box), SEGMENT_BYTES // row
    return (begin + _row_count(box) - 1) // step - begin // step + 1


def shares(held: Sequence[tuple[Box, int]], holders: int, me: int) -> list[Box | None]:
    """What one of several holders of the same boxes writes: an equal stretch of all their bytes, cut between segments.

    The stretches of all holders cover every box exactly once.

    Args:
        held: boxes with bytes per element, in an order that all holders know.
        holders: how many hold them.
        me: which of these is asked for, from 0.

    Returns:
        For each box the rows that are mine, or None.

    Example:
        >>> shares([(Box((0,), (100,)), 4), (Box((0,), (300,)), 4)], 2, 1)
        [None, Box(offsets=(0,), sizes=(300,))]
    """
    total = sum(box.elements * item for box, item in held)
    found: list[Box | None] = []
    at = 0
    for box, item in held:
        found.append(_share(box, item, at, total, holders, me))
        at += box.elements * item
    return found


def _share(box: Box, item: int, at: int, total: int, holders: int, me: int) -> Box | None:
    if not box.elements:
        return box if me == 0 else None
    row, begin = row_bytes(box, item), _first_row(box)
    # Whoever has the middle of a stretch of rows has all of it.
    mine = [
        (first, last)
        for first, last in _row_ranges(box, row)
        if (2 * at + (first + last) * row) * holders // (2 * total) == me
    ]
    if not mine:
        return None
    return box.rows(begin + mine[0][0], begin + mine[-1][1]) if box.sizes else box


def _row_ranges(box: Box, row: int) -> Iterator[tuple[int, int]]:
    """The rows of a box, counted from its own first one, in pieces of at most a segment; longer rows one by one."""
    begin, count = _first_row(box), _row_count(box)
    step = max(1, SEGMENT_BYTES // row)
    at = begin
    while at < begin + count:
        to = min((at // step + 1) * step, begin + count)
        yield at - begin, to - begin
        at = to


def row_bytes(box: Box, item: int) -> int:
    """Bytes of one row."""
    return item * math.prod(box.sizes[1:])


def _first_row(box: Box) -> int:
    return box.offsets[0] if box.offsets else 0


def _row_count(box: Box) -> int:
    return box.sizes[0] if box.sizes else 1


def places(boxes: Sequence[Box]) -> list[tuple[int, ...]]:
    """Where boxes begin in the tensor that has just them; they are all combinations of ranges of the dimensions.

    Example:
        >>> places([Box((0,), (2,)), Box((6,), (3,))])
        [(0,), (2,)]
    """
    begins = [
        _packed({(box.offsets[d], box.sizes[d]) for box in boxes}) for d in range(len(boxes[0].sizes) if boxes else 0)
    ]
    return [tuple(begin[at] for begin, at in zip(begins, box.offsets, strict=True)) for box in boxes]


def _packed(ranges: set[tuple[int, int]]) -> dict[int, int]:
    """By where ranges begin: where they do if they are pushed together."""
    ordered = sorted(ranges)
    return dict(
        zip((begin for begin, _ in ordered), accumulate((size for _, size in ordered), initial=0), strict=False)
    )


def outer_rows(box: Box, item: int, first: int, last: int) -> tuple[int, int]:
    """The fewest whole segments that have the rows ``first`` up to ``last``, as rows."""
    step, begin, end = _step(box, item), box.offsets[0], box.offsets[0] + box.sizes[0]
    return max(begin, first // step * step), min(end, -(-last // step) * step)


def inner_rows(box: Box, item: int, first: int, last: int) -> tuple[int, int]:
    """The most whole segments within the rows ``first`` up to ``last``, as rows; there are none if these are none."""
    step, begin, end = _step(box, item), box.offsets[0], box.offsets[0] + box.sizes[0]
    return first if first == begin else -(-first // step) * step, last if last == end else last // step * step


def _step(box: Box, item: int) -> int:
    return max(1, SEGMENT_BYTES // row_bytes(box, item))


def uncovered(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Why boxes do not cover a tensor exactly once; None: they do. Empty boxes do not count.

    Example:
        >>> uncovered((4, 2), [Box((0, 0), (3, 2))]), uncovered((4,), [Box((0,), (3,)), Box((2,), (2,))])
        ('nobody has [3:4, :]', '2 have [2:3]')
    """
    full = [box for box in boxes if box.elements]
    if odd := [box for box in full if box not in whole(shape)]:
        return f"{odd[0]} is not inside of {list(shape)}"
    return _uncovered(tuple(shape), full, 0, []) if math.prod(shape) else None


def _uncovered(shape: tuple[int, ...], boxes: Sequence[Box], dim: int, where: list[str]) -> str | None:
    """Goes through the dimensions, one after the other; boxes are those that all have the rows of ``where``."""
    if not boxes:
        return f"nobody has {_shown(shape, where)}"
    if dim == len(shape):
        return None if len(boxes) == 1 else f"{len(boxes)} have {_shown(shape, where)}"
    for first, last, there in _slabs(shape[dim], boxes, dim):
        if found := _uncovered(shape, there, dim + 1, [*where, f"{first}:{last}"]):
            return found
    return None


def _slabs(size: int, boxes: Sequence[Box], dim: int) -> Iterator[tuple[int, int, list[Box]]]:
    """Between two neighbouring edges of one dimension, the boxes that are there."""
    begins: dict[int, list[Box]] = {}
    for box in boxes:
        begins.setdefault(box.offsets[dim], []).append(box)
    edges = sorted({0, size, *begins, *(box.offsets[dim] + box.sizes[dim] for box in boxes)})
    there: list[Box] = []
    for first, last in pairwise(edges):
        there = [box for box in there if box.offsets[dim] + box.sizes[dim] > first] + begins.get(first, [])
        yield first, last, there


def _shown(shape: tuple[int, ...], where: list[str]) -> str:
    return f"[{', '.join([*where, *(':' for _ in shape[len(where) :])])}]"
