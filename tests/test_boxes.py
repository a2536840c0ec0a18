"""Boxes against models that count every element."""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import boxes
from holdfast.boxes import SEGMENT_BYTES, Box, cut_count, cuts, shares, uncovered, whole

MIB = 1 << 20


@contextmanager
def small():
    """Segments of 64 bytes, so that a model can look at each element."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(boxes, "SEGMENT_BYTES", 64)
        yield


def cells(box: Box) -> set[tuple[int, ...]]:
    return set(product(*(range(a, a + n) for a, n in zip(box.offsets, box.sizes, strict=True))))


shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)


@st.composite
def boxes_in(draw, shape: tuple[int, ...]):
    begins = [draw(st.integers(0, n)) for n in shape]
    return Box(tuple(begins), tuple(draw(st.integers(0, n - a)) for a, n in zip(begins, shape, strict=True)))


@given(st.data())
def test_an_overlap_is_what_both_have(data):
    shape = data.draw(shapes)
    one, other = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    found = one.overlap(other)
    assert (cells(found) if found else set()) == cells(one) & cells(other)


@given(shape=shapes, item=st.sampled_from([1, 4, 16]), data=st.data())
@settings(max_examples=300)
def test_cuts_are_a_boxs_bytes_in_order_none_too_long_and_counted_without_making_them(shape, item, data):
    box = data.draw(boxes_in(shape))
    with small():
        made, count = list(cuts(box, item)), cut_count(box, item)
    assert [span.start for span in made] == [sum(span.length for span in made[:i]) for i in range(len(made))]
    assert sum(span.length for span in made) == box.elements * item
    assert all(0 < span.length <= 64 for span in made)
    assert count == len(made)


def test_another_number_of_ranks_makes_the_same_segments_but_for_those_at_the_edges():
    rows, row = 10_000, 4096
    everything = {(span.start, span.length) for span in cuts(whole((rows, row)), 4)}
    for ranks in (2, 3, 7):
        size = -(-rows // ranks)
        edges = 0
        for begin in range(0, rows, size):
            box = Box((begin, 0), (min(size, rows - begin), row))
            made = [(begin * row * 4 + span.start, span.length) for span in cuts(box, 4)]
            edges += len([one for one in made if one not in everything])
        assert edges <= 2 * ranks


def test_a_row_longer_than_a_segment_is_cut_within_and_never_across():
    box = Box((5, 0), (2, 3 * MIB))
    lengths = [span.length for span in cuts(box, 4)]
    assert lengths == [8 * MIB, 4 * MIB] * 2
    assert [span.length for span in cuts(Box((), ()), 8)] == [8]


@given(st.data())
@settings(max_examples=300)
def test_the_shares_of_all_holders_are_every_box_once_and_are_balanced_up_to_a_segment(data):
    held = []
    for _ in range(data.draw(st.integers(1, 5))):
        held.append((data.draw(boxes_in(data.draw(shapes))), data.draw(st.sampled_from([1, 4]))))
    holders = data.draw(st.integers(1, 6))
    with small():
        all_of = [shares(held, holders, me) for me in range(holders)]
    for place, (box, _) in enumerate(held):
        parts = [one[place] for one in all_of if one[place] is not None]
        assert sorted(cell for part in parts for cell in cells(part)) == sorted(cells(box))
    longest = max([64, *(item * math.prod(box.sizes[1:]) for box, item in held)])
    total = sum(box.elements * item for box, item in held)
    for mine in all_of:
        size = sum(part.elements * item for part, (_, item) in zip(mine, held, strict=True) if part)
        assert abs(size - total / holders) <= 2 * longest


def test_one_large_table_is_shared_by_all_who_hold_it():
    """Whoever gives whole tensors away leaves all but one holder idle here."""
    held = [(whole((256_000, 1024)), 2), (whole((1024,)), 2)]
    sizes = [sum(part.elements for part in shares(held, 8, me) if part) for me in range(8)]
    assert max(sizes) - min(sizes) <= SEGMENT_BYTES


def test_a_share_of_a_scalar_and_of_nothing_goes_to_one_holder():
    for box in (whole(()), whole((0, 4))):
        owners = [me for me in range(3) if shares([(box, 4)], 3, me)[0] is not None]
        assert len(owners) == 1


def tiling(rng: random.Random, box: Box) -> list[Box]:
    """A box, cut at random into others that cover it."""
    able = [d for d, n in enumerate(box.sizes) if n > 1]
    if not able or rng.random() < 0.3:
        return [box]
    d = rng.choice(able)
    at = rng.randrange(1, box.sizes[d])
    left = Box(box.offsets, tuple(at if i == d else n for i, n in enumerate(box.sizes)))
    begin = tuple(a + at if i == d else a for i, a in enumerate(box.offsets))
    right = Box(begin, tuple(n - at if i == d else n for i, n in enumerate(box.sizes)))
    return tiling(rng, left) + tiling(rng, right)


@given(shape=st.lists(st.integers(1, 6), max_size=3).map(tuple), seed=st.integers(0, 1 << 32))
@settings(max_examples=300)
def test_what_covers_a_tensor_once_is_told_from_what_does_not(shape, seed):
    rng = random.Random(seed)
    parts = tiling(rng, whole(shape))
    rng.shuffle(parts)
    empty = Box((0,) * len(shape), (0,) * len(shape)) if shape else whole(())
    assert uncovered(shape, [*parts, empty] if shape else parts) is None
    assert "nobody has" in str(uncovered(shape, parts[1:]))
    assert "2 have" in str(uncovered(shape, [*parts, parts[0]]))


def test_boxes_outside_of_a_tensor_are_named():
    assert "is not inside of [4]" in str(uncovered((4,), [Box((2,), (3,))]))
    assert "is not inside of [4]" in str(uncovered((4,), [Box((0, 0), (4, 1))]))
    assert uncovered((0, 3), []) is None


def test_four_thousand_ranks_are_looked_through_at_once():
    mesh = [Box((64 * i, 32 * j), (64, 32)) for i in range(64) for j in range(64)]
    assert uncovered((4096, 2048), mesh) is None
    rows = [Box((3 * i, 0), (3, 8)) for i in range(4096)]
    assert uncovered((3 * 4096, 8), rows) is None
    assert uncovered((3 * 4096, 8), rows[:-1]) == "nobody has [12285:12288, :]"
