"""Where things lie in staging memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.boxes import SEGMENT_BYTES
from holdfast.catalog.manifests import manifest_of
from holdfast.ids import Digest
from holdfast.packs.format import ALIGNED_FROM, BLOCK
from holdfast.saver.arena import Layout, StagedContent, gaps, kept_digests, placed
from holdfast.saver.memory import Slab
from holdfast.trees import Lifetime, Skeleton, TensorSpec


def manifest(specs, digests):
    return manifest_of(Skeleton(tuple(specs)), b"{}", b"", digests)


TRAINED, FROZEN = Lifetime.PARAMETER, Lifetime.FROZEN
MIB = 1 << 20

shapes = st.one_of(
    st.tuples(st.integers(1025, 3 * BLOCK)),
    st.tuples(st.integers(ALIGNED_FROM - 10, ALIGNED_FROM + 10)),
    st.tuples(st.sampled_from([SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES + 5])),
    # Rows that are cut at odd places: 6,000,002 bytes a segment.
    st.tuples(st.integers(1, 5), st.just(3_000_001)),
)
specs = st.lists(st.tuples(shapes, st.sampled_from([TRAINED, FROZEN])), max_size=9).map(
    lambda found: tuple(TensorSpec(f"t{n}", "uint8", shape, life) for n, (shape, life) in enumerate(found))
)


@given(specs)
def test_nothing_overlaps_and_everything_is_inside(tensors):
    layout = Layout(tensors)
    pieces = [
        (piece.offset, piece.offset + piece.span.length)
        for spec, offset in zip(tensors, layout.offsets, strict=True)
        for piece in placed(spec, offset)
    ]
    for (_, end), (begin, _) in zip(sorted(pieces), sorted(pieces)[1:], strict=False):
        assert end <= begin
    assert all(0 <= begin < end <= layout.length for begin, end in pieces)
    assert layout.length % BLOCK == 0


@given(specs)
def test_segments_of_64_kib_begin_on_blocks_and_have_the_rest_of_the_last_one_for_themselves(tensors):
    layout = Layout(tensors)
    taken = []
    for spec, offset, end in zip(tensors, layout.offsets, layout.ends, strict=True):
        assert offset % BLOCK == 0
        for piece in placed(spec, offset):
            if piece.span.length >= ALIGNED_FROM:
                assert piece.offset % BLOCK == 0
            taken.append((piece.offset, piece.offset + piece.span.length))
        for gap in gaps(spec, offset):
            assert gap.stop % BLOCK == 0
            assert gap.stop <= end
            taken.append((gap.start, gap.stop))
    for (_, end), (begin, _) in zip(sorted(taken), sorted(taken)[1:], strict=False):
        assert end <= begin


@given(specs)
def test_what_is_staged_each_time_comes_first_and_frozen_tensors_lie_apart(tensors):
    layout = Layout(tensors)
    for spec, offset, end in zip(tensors, layout.offsets, layout.ends, strict=True):
        if spec.lifetime is FROZEN:
            assert layout.frozen_from <= offset < end <= layout.length
        else:
            assert offset < end <= layout.trained
    assert layout.trained <= layout.frozen_from <= layout.length
    if any(spec.lifetime is FROZEN for spec in tensors):
        assert layout.frozen_from % (64 * MIB) == 0
    else:
        assert layout.trained == layout.frozen_from == layout.length


def test_a_slab_has_room_for_twice_as_much_and_for_the_document():
    assert Layout(()).slab_bytes() >= 16 * MIB
    one = Layout((TensorSpec("a", "uint8", (5 * MIB,), TRAINED),))
    assert one.slab_bytes() >= 2 * one.length + 16 * MIB


# What a saver sees of it


@pytest.fixture
def slab():
    made = Slab.make(4 * MIB)
    yield made
    made.close()


def filled(slab, tensors):
    layout = Layout(tensors)
    for number, (spec, offset) in enumerate(zip(tensors, layout.offsets, strict=True)):
        for piece in placed(spec, offset):
            slab.memory[piece.offset : piece.offset + piece.span.length] = bytes([number + 1]) * piece.span.length
    return layout


def test_a_saver_sees_the_bytes_of_one_lifetime_in_order_and_whole_blocks_where_they_are(slab):
    tensors = tuple(TensorSpec(f"t{n}", "uint8", (size,), TRAINED) for n, size in enumerate((2000, 70_000, 100_001)))
    layout = filled(slab, tensors)
    content = StagedContent(slab, tensors, layout.offsets, {})
    found = list(content.segments(TRAINED))
    assert [bytes(one.data) for one in found] == [bytes([n + 1]) * spec.nbytes for n, spec in enumerate(tensors)]
    for one in found:
        assert one.padded is not None
        assert len(one.padded) % BLOCK == 0
        assert bytes(one.padded[len(one.data) :]) == bytes(len(one.padded) - len(one.data))
    assert list(content.segments(FROZEN)) == []


def test_what_is_not_staged_is_not_seen(slab):
    tensors = tuple(TensorSpec(f"t{n}", "uint8", (2000,), TRAINED) for n in range(3))
    layout = filled(slab, tensors)
    offsets = [layout.offsets[0], -1, layout.offsets[2]]
    content = StagedContent(slab, tensors, offsets, {1: Digest.of(b"x")})
    assert [bytes(one.data[:1]) for one in content.segments(TRAINED)] == [b"\x01", b"\x03"]
    assert content.kept() == {1: Digest.of(b"x")}


# What another checkpoint has


def digest(number):
    return Digest.of(bytes([number]))


def test_kept_tensors_are_found_by_name_wherever_they_lie_in_the_other_state():
    mine = [TensorSpec(name, "uint8", (size,), FROZEN) for name, size in (("a", 2000), ("b", SEGMENT_BYTES + 1))]
    theirs = [TensorSpec("new", "uint8", (2000,), TRAINED), mine[1], mine[0]]
    digests = [digest(n) for n in range(4)]
    assert kept_digests(mine, [0, 1], manifest(theirs, digests)) == {0: digest(3), 1: digest(1), 2: digest(2)}
    assert kept_digests(mine, [1], manifest(theirs, digests)) == {1: digest(1), 2: digest(2)}


@pytest.mark.parametrize(
    "other", [("b", "uint8", (2000,)), ("a", "int8", (2000,)), ("a", "uint8", (2001,)), ("a", "uint8", (1000, 2))]
)
def test_a_tensor_of_another_kind_is_not_the_same(other):
    name, dtype, shape = other
    mine = [TensorSpec("a", "uint8", (2000,), FROZEN)]
    assert kept_digests(mine, [0], manifest([TensorSpec(name, dtype, shape, FROZEN)], [digest(1)])) is None
