from __future__ import annotations

import mmap
import threading

import pytest
from packs_kit import CODECS, Heap, read_back, weights, write

from holdfast.errors import Corrupt, InvalidInput, Missing, ObjectMissing
from holdfast.ids import Digest
from holdfast.packs.codec import Codec
from holdfast.packs.footer import Entry
from holdfast.packs.format import HEADER_BYTES
from holdfast.packs.index import Location, SegmentIndex, read_footer
from holdfast.packs.plan import Wanted, read_plan
from holdfast.packs.reader import read_segments
from holdfast.packs.segment import Segment

MIB = 1 << 20


def index_of(storage, written):
    return SegmentIndex.of(storage, [pack.name for pack in written.packs])


def test_any_order_and_repetition_is_served(storage, rng):
    segments = [rng.randbytes(rng.randrange(1, 200_000)) for _ in range(60)]
    written = write(storage, segments, cap=2 * MIB, codec=Codec.ZSTD)
    picks = [rng.randrange(60) for _ in range(100)]
    targets = [bytearray(len(segments[pick])) for pick in picks]
    wanted = [(written.digests[pick], memoryview(target)) for pick, target in zip(picks, targets, strict=True)]
    read_segments(storage, index_of(storage, written).get, wanted)
    assert targets == [segments[pick] for pick in picks]


@pytest.mark.parametrize("shift", [0, 16])
def test_a_target_is_filled_whatever_its_alignment(storage, shift, rng):
    """hazards 41: straight into place where it can be, through a buffer where not."""
    raw = rng.randbytes(8 * MIB)
    written = write(storage, [raw])
    memory = mmap.mmap(-1, 8 * MIB + shift)
    read_segments(storage, index_of(storage, written).get, [(written.digests[0], memoryview(memory)[shift:])])
    assert memory[shift:] == raw


def test_an_aligned_target_is_read_into_directly(rng):
    """One read of exactly the segment."""
    heap = Heap(alignment=4096)
    written = write(heap, [rng.randbytes(MIB), rng.randbytes(MIB)], threads=1)
    entry = read_footer(heap, written.packs[0].name)[1]
    heap.reads.clear()
    index = index_of(heap, written)
    heap.reads.clear()
    read_segments(heap, index.get, [(entry.digest, memoryview(mmap.mmap(-1, MIB)))])
    assert heap.reads == [(entry.offset, MIB)]


def test_typed_targets_are_filled(heap, rng):
    raw = rng.randbytes(8000)
    written = write(heap, [raw])
    target = memoryview(bytearray(8000)).cast("d", [10, 100])
    read_segments(heap, index_of(heap, written).get, [(written.digests[0], target)])
    assert target.cast("B") == raw


def test_a_target_with_holes_is_refused(heap, rng):
    written = write(heap, [rng.randbytes(100)])
    with pytest.raises(InvalidInput, match="contiguous"):
        read_segments(heap, index_of(heap, written).get, [(written.digests[0], memoryview(bytearray(200))[::2])])


def test_nothing_wanted_reads_nothing(heap):
    read_segments(heap, lambda _: None, [])
    assert heap.reads == []


def test_small_neighbours_share_a_read(heap, rng):
    segments = [rng.randbytes(1500) for _ in range(2000)]
    written = write(heap, segments)
    heap.reads.clear()
    assert read_back(heap, written, map(len, segments)) == segments
    assert len(heap.reads) <= 8, "two for the footer, and 3 MB in reads of at most 8 MiB"


def test_reads_go_through_each_pack_in_order(heap, rng):
    segments = [rng.randbytes(MIB) for _ in range(40)]
    written = write(heap, segments, threads=3)
    index = index_of(heap, written)
    heap.reads.clear()
    wanted = [(digest, memoryview(bytearray(MIB))) for digest in written.digests]
    rng.shuffle(wanted)
    read_segments(heap, index.get, wanted, threads=1)
    assert heap.reads == sorted(heap.reads)


def test_packs_are_closed_whether_it_ends_well_or_not(heap, rng):
    written = write(heap, [rng.randbytes(MIB) for _ in range(10)], cap=3 * MIB)
    read_back(heap, written, [MIB] * 10)
    assert heap.opened == 0
    heap.objects[written.packs[0].name][8192] ^= 1
    with pytest.raises(Corrupt):
        read_back(heap, written, [MIB] * 10)
    assert heap.opened == 0


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [5000, 3 * MIB])
def test_a_flipped_bit_is_corrupt_and_named(codec, size, rng):
    """users-ask 5, I3: pack, offset and digest are in the message."""
    heap = Heap()
    soft = Segment(memoryview(weights(rng, size // 4)), "float32") if codec is Codec.OPENZL else b"ab" * (size // 2)
    written = write(heap, [soft, rng.randbytes(100)], codec=codec)
    name = written.packs[0].name
    index = index_of(heap, written)
    entry = index.get(written.digests[0]).entry
    assert entry.codec is codec
    heap.objects[name][entry.offset + rng.randrange(entry.stored)] ^= 1 << rng.randrange(8)
    with pytest.raises(Corrupt, match=rf"(?s){entry.digest}.* {entry.offset} .*{name}"):
        read_back(heap, written, [size, 100])


def test_a_shortened_pack_is_corrupt(heap, rng):
    written = write(heap, [rng.randbytes(5000)])
    index = index_of(heap, written)
    del heap.objects[written.packs[0].name][HEADER_BYTES:]
    with pytest.raises(Corrupt):
        read_segments(heap, index.get, [(written.digests[0], memoryview(bytearray(5000)))])


def test_a_pack_that_went_away_is_missing(storage, rng):
    written = write(storage, [rng.randbytes(5000)])
    index = index_of(storage, written)
    storage.delete([written.packs[0].name])
    with pytest.raises(Missing, match=written.packs[0].name):
        read_segments(storage, index.get, [(written.digests[0], memoryview(bytearray(5000)))])


def test_a_pack_that_goes_away_while_it_is_read_is_missing_by_name(heap, rng):
    """As after a repack: there is another copy, and whoever reads has to know of which segment it is wanted."""
    data = rng.randbytes(100_000)
    written = write(heap, [data])
    source = type(heap.source(written.footers[0].name))

    def gone(self, offset, into):
        raise ObjectMissing("it was opened anew, and is not there")

    with pytest.MonkeyPatch.context() as patched:
        index = index_of(heap, written)
        patched.setattr(source, "read_into", gone)
        with pytest.raises(Missing) as caught:
            read_segments(heap, index.get, [(Digest.of(data), memoryview(bytearray(len(data))))])
    assert (caught.value.pack, caught.value.digest) == (written.footers[0].name, Digest.of(data))


def test_a_digest_that_nobody_holds_is_missing(heap):
    unknown = Digest.of(b"never written")
    with pytest.raises(Missing, match=str(unknown)):
        read_segments(heap, SegmentIndex().get, [(unknown, memoryview(bytearray(1)))])


@pytest.mark.parametrize("length", [99, 101])
def test_a_target_of_another_length_is_refused(heap, length, rng):
    """hazards 49: a manifest and a footer that disagree are not both right."""
    written = write(heap, [rng.randbytes(100)])
    with pytest.raises(Corrupt, match="100 bytes"):
        read_back(heap, written, [length])


def test_progress_adds_up_and_is_called_by_one_thread_at_a_time(heap, rng):
    written = write(heap, [rng.randbytes(MIB) for _ in range(30)], codec=Codec.ZSTD)
    lock, done = threading.Lock(), []

    def progress(count):
        assert lock.acquire(blocking=False)
        done.append(count)
        lock.release()

    read_back(heap, written, [MIB] * 30, threads=4, progress=progress)
    assert sum(done) == 30 * MIB


def test_the_plan_reads_whole_blocks_of_at_most_8_mib_and_every_part_lies_inside(rng):
    entries, end = [], 4096
    for _ in range(500):
        stored = rng.choice([rng.randrange(1, 3000), rng.randrange(65_536, 2 * MIB), 8 * MIB])
        step = 4096 if stored >= 65_536 else 64
        offset = -(-end // step) * step
        entries.append(Entry(Digest.of(offset.to_bytes(8, "big")), offset, stored, stored, Codec.RAW, b""))
        end = offset + stored
    picked = rng.sample(entries, 300)
    plan = read_plan(Wanted(Location("a.pack", entry), memoryview(b"")) for entry in picked)
    parts = [(piece, entry) for piece in plan for entry, _ in piece.parts]
    assert sorted(entry.offset for _, entry in parts) == sorted(entry.offset for entry in picked)
    assert all(piece.offset % 4096 == piece.length % 4096 == 0 and piece.length <= 8 * MIB for piece in plan)
    for piece, entry in parts:
        assert piece.offset <= entry.offset
        assert entry.offset + entry.stored <= piece.offset + piece.length
