from __future__ import annotations

import pytest
from packs_kit import FOLDER, Heap, write

from holdfast.errors import Corrupt, Missing
from holdfast.ids import Digest, ObjectName
from holdfast.packs.index import Footers, SegmentIndex, read_footer

GONE = ObjectName(f"{FOLDER}{'0' * 32}.pack")


def names(written):
    return [pack.name for pack in written.packs]


def test_every_segment_is_found_where_the_footer_says(storage, rng):
    written = write(storage, [rng.randbytes(rng.randrange(1, 100_000)) for _ in range(50)], cap=1 << 20)
    index = SegmentIndex.of(storage, names(written))
    assert set(index) == set(written.digests)
    assert len(index) == 50
    for name in names(written):
        for entry in read_footer(storage, name):
            assert index.get(entry.digest) == (name, entry)
    assert index.get(Digest.of(b"other")) is None
    assert Digest.of(b"other") not in index


def test_the_footers_that_were_just_written_need_no_reading(heap, rng):
    written = write(heap, [rng.randbytes(1000) for _ in range(20)])
    read = [read_footer(heap, name) for name in names(written)]
    assert [list(footer) for footer in written.footers] == [list(footer) for footer in read]
    assert [(f.name, f.size, f.end, f.length) for f in written.footers] == [
        (f.name, f.size, f.end, f.length) for f in read
    ]


def test_merging_keeps_all_and_the_later_wins(heap, rng):
    shared = rng.randbytes(100)
    one, two = write(heap, [shared, rng.randbytes(10)]), write(heap, [rng.randbytes(20), shared])
    first, second = SegmentIndex.of(heap, names(one)), SegmentIndex.of(heap, names(two))
    merged = first.merged(second)
    assert set(merged) == {*one.digests, *two.digests}
    assert merged.get(Digest.of(shared)).pack == names(two)[0]
    assert second.merged(first).get(Digest.of(shared)).pack == names(one)[0]
    assert merged.packs == names(one) + names(two)
    assert len(first) == 2


def test_rotten_segments_can_be_left_out(heap, rng):
    """hazards 3: a quarantined segment is never a source."""
    written = write(heap, [rng.randbytes(100) for _ in range(3)])
    index = SegmentIndex.of(heap, names(written))
    rest = index.without(written.digests[:1])
    assert set(rest) == set(written.digests[1:])
    assert set(index) == set(written.digests)
    assert set(SegmentIndex().merged(rest)) == set(written.digests[1:])


def test_a_footer_is_read_once(heap, rng):
    written = write(heap, [rng.randbytes(100)])
    footers = Footers(heap)
    SegmentIndex.of(footers, names(written))
    count = len(heap.reads)
    SegmentIndex.of(footers, names(written))
    assert len(heap.reads) == count
    footers.forget(names(written))
    SegmentIndex.of(footers, names(written))
    assert len(heap.reads) > count


def test_a_short_footer_costs_one_read_and_a_long_one_two(heap, rng):
    short = write(heap, [rng.randbytes(70_000) for _ in range(50)])
    heap.reads.clear()
    read_footer(heap, names(short)[0])
    assert len(heap.reads) == 1
    long = write(heap, (number.to_bytes(4, "big") for number in range(3000)))
    heap.reads.clear()
    assert len(read_footer(heap, names(long)[0])) == 3000
    assert len(heap.reads) == 2


def test_a_pack_that_is_not_there_is_missing(storage):
    with pytest.raises(Missing, match=GONE):
        read_footer(storage, GONE)


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(10_000)])
def test_something_else_under_the_name_is_corrupt(content):
    heap = Heap()
    heap.objects[GONE] = bytearray(content)
    with pytest.raises(Corrupt, match=GONE):
        read_footer(heap, GONE)
