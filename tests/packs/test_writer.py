from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading

import pytest
from packs_kit import CODECS, FOLDER, Heap, nothing, padded, read_back, weights, write

from holdfast.errors import InvalidInput, ObjectExists, StorageError, StorageFull, StorageUnavailable
from holdfast.ids import Digest
from holdfast.packs.codec import Codec
from holdfast.packs.index import SegmentIndex, read_footer
from holdfast.packs.reader import read_segments
from holdfast.packs.segment import Segment
from holdfast.packs.verify import verify_pack
from holdfast.packs.writer import write_segments

MIB = 1 << 20
KIB64 = 64 * 1024
SIZES = [1, 63, 64, 65, 1025, KIB64 - 1, KIB64, KIB64 + 1, 3 * MIB + 5, 8 * MIB - 1, 8 * MIB]


def slots(heap, written):
    """All entries of all packs."""
    return [entry for pack in written.packs for entry in read_footer(heap, pack.name)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_every_size_comes_back_as_it_was(storage, codec, threads, rng):
    segments = [rng.randbytes(size) for size in SIZES] + [bytes(size) for size in SIZES]
    written = write(storage, segments, codec=codec, threads=threads)
    assert written.digests == [Digest.of(segment) for segment in segments]
    assert read_back(storage, written, map(len, segments), threads=threads) == segments
    assert [problem for pack in written.packs for problem in verify_pack(storage, pack.name)] == []
    assert [storage.source(pack.name).size for pack in written.packs] == [pack.size for pack in written.packs]


@pytest.mark.parametrize("of", [bytes, padded])
@pytest.mark.parametrize("codec", CODECS)
def test_memory_that_is_copied_and_memory_that_is_not_give_the_same(storage, codec, of, rng):
    big = rng.randbytes(3 * MIB)
    raw = [b"small", big, big[:-1], bytes(2 * MIB), big[: KIB64 - 1], big[1 : KIB64 + 1], big, rng.randbytes(KIB64 + 1)]
    written = write(storage, [*map(of, raw), memoryview(bytearray(9) + big)[9:]], codec=codec)
    assert written.digests == [Digest.of(data) for data in [*raw, big]]
    assert read_back(storage, written, [*map(len, raw), len(big)]) == [*raw, big]
    assert verify_pack(storage, written.packs[0].name) == []
    assert len(slots(storage, written)) == 7


@pytest.mark.parametrize("size", [KIB64, KIB64 + 1, 3 * MIB + 5, 8 * MIB - 1, 8 * MIB])
def test_padded_memory_is_written_where_it_lies(heap, size, rng):
    segment = padded(rng.randbytes(size))
    written = write(heap, [b"x", segment, b"y"], threads=1)
    assert [memory.obj is segment.padded.obj for memory in heap.written[:3]] == [False, True, False]
    assert read_back(heap, written, [1, size, 1]) == [b"x", bytes(segment.data), b"y"]
    assert verify_pack(heap, written.packs[0].name) == []


def arena(parts):
    """Padded segments one behind the other in one piece of memory, as a staging arena has them."""
    places = [sum(-(-len(part) // 4096) * 4096 for part in parts[:number]) for number in range(len(parts) + 1)]
    memory = memoryview(mmap.mmap(-1, places[-1]))
    for part, start in zip(parts, places, strict=False):
        memory[start : start + len(part)] = part
    return [
        Segment(memory[start : start + len(part)], "float32", memory[start:end])
        for part, start, end in zip(parts, places, places[1:], strict=False)
    ]


@pytest.mark.parametrize("threads", [1, 4])
def test_neighbours_in_memory_are_written_at_once(heap, threads, rng):
    parts = [rng.randbytes(rng.randrange(KIB64, 300_000)) for _ in range(200)]
    written = write(heap, arena(parts), threads=threads)
    assert read_back(heap, written, map(len, parts)) == parts
    assert verify_pack(heap, written.packs[0].name) == []
    assert len(heap.pieces) <= 3 + sum(map(len, parts)) // (7 * MIB), "header, end, and what is left"
    assert max(length for _, length in heap.pieces) <= 8 * MIB


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_known_or_encoded_parts_neighbours(heap, codec, rng):
    """In any mixture, also with short ones and with memory that lies elsewhere in between."""
    kinds = [
        lambda size: rng.randbytes(size),
        lambda size: bytes([rng.randrange(256)]) * size,
        lambda size: weights(rng, size // 4),
    ]
    parts = [rng.choice(kinds)(rng.choice([rng.randrange(4, 5000), rng.randrange(KIB64, 200_000)])) for _ in range(300)]
    known = {Digest.of(part) for part in parts if rng.random() < 0.3}
    segments = [segment if rng.random() < 0.9 else bytes(segment.data) for segment in arena(parts)]
    written = write(heap, segments, codec=codec, known=known.__contains__, threads=3)
    assert written.digests == [Digest.of(part) for part in parts]
    new = {Digest.of(part): part for part in parts if Digest.of(part) not in known}
    assert {entry.digest for entry in slots(heap, written)} == set(new)
    targets = {digest: bytearray(len(part)) for digest, part in new.items()}
    index = SegmentIndex.of(heap, [pack.name for pack in written.packs])
    read_segments(heap, index.get, [(digest, memoryview(into)) for digest, into in targets.items()])
    assert targets == new
    assert [problem for pack in written.packs for problem in verify_pack(heap, pack.name)] == []


def test_short_padded_segments_share_writes(heap, rng):
    write(heap, [padded(rng.randbytes(1500)) for _ in range(2000)])
    assert len(heap.pieces) <= 2 + 4, "header and end, and 3 MB in buffers of 8 MiB"


def wrong_paddings():
    memory = memoryview(mmap.mmap(-1, 1 << 20))
    data = memory[:70_000]
    yield data, data
    yield data, memory[:77_824]
    yield data, memoryview(mmap.mmap(-1, 73_728))
    yield memory[1:70_001], memory[1:73_729]
    dirty = padded(bytes(70_000))
    dirty.padded[70_001] = 1
    yield dirty.data, dirty.padded


@pytest.mark.parametrize("case", range(5))
def test_padding_that_is_not_what_was_promised_is_refused(heap, case):
    data, padding = list(wrong_paddings())[case]
    with pytest.raises(InvalidInput, match="segment 1"):
        write(heap, [b"good", Segment(data, padded=padding)])
    assert heap.objects == {}


def test_nothing_to_write_makes_no_pack(storage):
    written = write(storage, [])
    assert (written.digests, written.packs, written.new_bytes) == ([], [], 0)
    assert list(storage.list("")) == []


def test_known_segments_are_not_written(heap, rng):
    segments = [rng.randbytes(5000) for _ in range(10)]
    known = {Digest.of(segment) for segment in segments[::2]}
    written = write(heap, segments, known=known.__contains__)
    assert written.digests == [Digest.of(segment) for segment in segments]
    assert {entry.digest for entry in slots(heap, written)} == {Digest.of(segment) for segment in segments[1::2]}
    assert written.new_bytes == 5 * 5000


def test_if_all_is_known_no_pack_is_begun(heap, rng):
    """A save of an unchanged state costs no object."""
    written = write(heap, [rng.randbytes(100_000)] * 3, known=lambda _: True, expected=300_000)
    assert (written.packs, heap.reserved, heap.events) == ([], [], [])


@pytest.mark.parametrize("threads", [1, 4])
def test_equal_segments_of_one_call_are_written_once(heap, threads, rng):
    segment, other = rng.randbytes(MIB), rng.randbytes(100)
    written = write(heap, [segment, other] * 12, threads=threads)
    assert written.digests == [Digest.of(segment), Digest.of(other)] * 12
    assert sorted(entry.length for entry in slots(heap, written)) == [100, MIB]
    assert written.stored_bytes == written.new_bytes == MIB + 100


def test_the_codec_is_given_up_segment_by_segment(heap, rng):
    written = write(heap, [rng.randbytes(300_000), bytes(300_000)], codec=Codec.ZSTD)
    assert [entry.codec for entry in slots(heap, written)] == [Codec.RAW, Codec.ZSTD]
    assert written.new_bytes == 600_000
    assert 300_000 < written.stored_bytes < 301_000


@pytest.mark.skipif(Codec.OPENZL not in CODECS, reason="no openzl on this platform")
@pytest.mark.parametrize("of", [padded, lambda data, dtype="uint8": Segment(memoryview(data), dtype)])
def test_each_dtype_gets_what_suits_it(heap, of, rng):
    raw = [weights(rng, MIB), weights(rng, MIB, "bfloat16"), bytes(MIB), rng.randbytes(MIB)]
    segments = list(map(of, raw, ["float32", "bfloat16", "int64", "float32"]))
    written = write(heap, segments, codec=Codec.OPENZL, threads=1)
    assert [entry.codec for entry in slots(heap, written)] == [Codec.OPENZL, Codec.OPENZL, Codec.ZSTD, Codec.RAW]
    assert read_back(heap, written, map(len, raw)) == raw
    assert verify_pack(heap, written.packs[0].name) == []
    assert [bytes(segment.data) for segment in segments] == raw, "given memory is never written to"


@pytest.mark.parametrize("codec", CODECS)
def test_long_segments_lie_on_blocks_and_all_writes_are_whole_blocks(heap, codec, rng):
    """hazards 41: direct I/O needs no copy and no read-modify-write."""
    sizes = [rng.choice([rng.randrange(1, 2000), rng.randrange(1, 200_000), MIB]) for _ in range(200)]
    written = write(heap, [rng.choice([rng.randbytes, bytes])(size) for size in sizes], codec=codec)
    for entry in slots(heap, written):
        assert entry.offset % (4096 if entry.stored >= KIB64 else 64) == 0
    assert all(offset % 4096 == length % 4096 == 0 for offset, length in heap.pieces)


def test_small_segments_share_writes(heap, rng):
    write(heap, [rng.randbytes(1500) for _ in range(2000)])
    assert len(heap.pieces) <= 2 + 4, "header and end, and 3 MB in buffers of 8 MiB"


@pytest.mark.parametrize("threads", [1, 4])
def test_a_full_pack_is_followed_by_another(storage, threads, rng):
    segments = [rng.randbytes(rng.randrange(1, 300_000)) for _ in range(40)] + [rng.randbytes(8 * MIB)] * 2
    written = write(storage, segments, threads=threads, cap=MIB)
    assert len(written.packs) > 1
    assert read_back(storage, written, map(len, segments)) == segments
    assert [listed.name for listed in storage.list("")] == sorted(pack.name for pack in written.packs)


def test_no_pack_is_longer_than_the_cap_unless_by_one_write(heap, rng):
    cap = 20 * MIB
    written = write(heap, (rng.randbytes(700_000) for _ in range(150)), cap=cap, threads=4)
    assert len(written.packs) > 5
    assert all(pack.size <= cap for pack in written.packs)


def test_full_packs_are_committed_while_others_are_still_written(rng):
    heap, seen = Heap(), []
    heap.committed = lambda sink: seen.append(len(heap.reserved))
    write(heap, (rng.randbytes(MIB) for _ in range(64)), cap=17 * MIB, threads=1)
    assert len(seen) > 3
    assert seen[0] < len(heap.reserved)


@pytest.mark.parametrize("bad", [b"", bytes(8 * MIB + 1), memoryview(bytes(100))[::2]])
def test_segments_out_of_bounds_are_refused_and_leave_nothing(heap, bad):
    with pytest.raises(InvalidInput):
        write(heap, [b"good", bad])
    assert heap.objects == {}


def test_memory_that_changes_meanwhile_never_makes_a_wrong_digest():
    """users-ask 1, hazards 3: the digest is of the very copy that is written."""
    memory, stop = bytearray(4 * MIB), threading.Event()

    def scribble():
        number = 0
        while not stop.is_set():
            number += 1
            memory[number * 4096 % len(memory)] = number % 251

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        for codec in CODECS:
            heap = Heap()
            written = write(heap, [memory] * 12, codec=codec)
            assert all(verify_pack(heap, pack.name) == [] for pack in written.packs)
            assert {entry.digest for entry in slots(heap, written)} == set(written.digests)
    finally:
        stop.set()
        scribbler.join()


def test_a_change_after_hashing_is_found_where_stability_was_promised_wrongly(rng):
    """A broken promise costs the segment, not the truth."""
    heap, segment = Heap(), padded(rng.randbytes(2 * MIB))

    def known(_):
        segment.data[5] ^= 1
        return False

    written = write(heap, [segment], known=known)
    (problem,) = verify_pack(heap, written.packs[0].name)
    assert problem.digest == written.digests[0]


def test_the_iterable_and_the_callbacks_are_used_by_one_thread_at_a_time(heap, rng):
    busy = {name: threading.Lock() for name in ("iterable", "known", "progress")}

    def alone(name, value=None):
        assert busy[name].acquire(blocking=False), f"two threads in {name}"
        threading.Event().wait(0.0005)
        busy[name].release()
        return value

    done = []
    segments = (alone("iterable", memoryview(rng.randbytes(MIB))) for _ in range(32))
    write_segments(
        heap,
        FOLDER,
        segments,
        known=lambda _: alone("known", False),
        codec=Codec.RAW,
        threads=4,
        progress=lambda n: done.append(alone("progress", n)),
    )
    assert sum(done) == 32 * MIB


class CallerError(Exception):
    pass


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("where", ["iterable", "known", "progress"])
def test_an_error_of_the_caller_propagates_and_leaves_nothing(heap, where, threads, rng):
    calls = iter(range(10_000))

    def fail(here, value=None):
        if here == where and next(calls) == {"iterable": 20, "known": 20, "progress": 5}[here]:
            raise CallerError
        return value

    segments = (fail("iterable", memoryview(rng.randbytes(MIB))) for _ in range(64))
    with pytest.raises(CallerError):
        write_segments(
            heap,
            FOLDER,
            segments,
            known=lambda _: fail("known", False),
            codec=Codec.RAW,
            threads=threads,
            progress=lambda _: fail("progress"),
            cap=5 * MIB,
        )
    assert heap.objects == {}
    assert heap.aborted


@pytest.mark.parametrize("threads", [1, 3])
def test_whichever_call_to_the_storage_fails_no_pack_is_left(threads, rng):
    """users-ask 2, 23: half-written data is removed, committed packs of the same call too."""
    segments = [rng.randbytes(MIB) for _ in range(24)]
    whole = Heap()
    write(whole, segments, cap=10 * MIB, threads=threads)
    for at in range(len(whole.events) - 2):
        heap = Heap()
        heap.fail_at, heap.error = at, StorageUnavailable("input/output error")
        with pytest.raises(StorageUnavailable):
            write(heap, segments, cap=10 * MIB, threads=threads)
        assert heap.objects == {}, f"failed at {at}: {whole.events[at]}"


def test_a_failed_clean_up_does_not_hide_the_first_error(heap, rng, caplog):
    def unable(_):
        raise StorageUnavailable("gone")

    heap.fail_at, heap.error, heap.delete = 3, StorageFull("no space left"), unable
    with pytest.raises(StorageFull):
        write(heap, [rng.randbytes(MIB)] * 3)
    assert "next sweep" in caplog.text


def test_a_full_disk_is_found_before_the_bytes_are_written(rng):
    """hazards 31, users-ask 23."""
    heap = Heap(room=5 * MIB)
    with pytest.raises(StorageFull):
        write(heap, (rng.randbytes(MIB) for _ in range(6)), expected=6 * MIB)
    assert heap.pieces == []


def test_a_real_full_disk_leaves_nothing(tmp_path, rng):
    """ENOSPC of a real file system of 24 MiB, not announced by an estimate."""
    from holdfast.storage.local import LocalStorage

    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        storage = LocalStorage(mount / "store")
        with pytest.raises(StorageFull):
            write(storage, (rng.randbytes(MIB) for _ in range(40)), cap=8 * MIB)
        assert list(storage.list("")) == []
        assert [path for path in mount.rglob("*.pack*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", mount], check=True)


def test_only_what_is_expected_is_set_aside(heap, rng):
    """A save that reuses nearly everything must not fail for want of 512 MiB."""
    write(heap, [rng.randbytes(3000)])
    write(heap, [rng.randbytes(3000)], expected=3000)
    write(heap, [rng.randbytes(3000)], expected=1 << 40)
    assert heap.reserved[0] <= 4 * 4096
    assert heap.reserved[1] <= 4 * 4096
    assert heap.reserved[2] == 512 * MIB


def test_what_is_set_aside_for_later_packs_is_what_is_left(heap, rng):
    write(heap, (rng.randbytes(MIB) for _ in range(20)), expected=20 * MIB, cap=9 * MIB, threads=1)
    assert heap.reserved[0] == 9 * MIB
    assert heap.reserved[-1] < 9 * MIB


def test_a_commit_whose_answer_was_lost_is_recognised(rng):
    """hazards 2: the name is random, so the pack that exists is one's own."""
    heap = Heap()

    def lose(sink):
        raise ObjectExists(f"{sink.name} exists")

    heap.committed = lose
    written = write(heap, [rng.randbytes(5000)])
    assert verify_pack(heap, written.packs[0].name) == []


def test_a_foreign_object_under_the_name_is_not_taken_for_ones_own(rng):
    heap = Heap()

    def replace(sink):
        heap.objects[sink.name][-200] ^= 1
        raise ObjectExists(f"{sink.name} exists")

    heap.committed = replace
    with pytest.raises(StorageError, match="not the pack"):
        write(heap, [rng.randbytes(5000)])


def test_an_interrupt_leaves_nothing(heap, rng):
    def interrupted():
        yield memoryview(rng.randbytes(MIB))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_segments(heap, FOLDER, interrupted(), known=nothing, codec=Codec.RAW)
    assert heap.objects == {}


def test_no_thread_outlives_the_call(heap, rng):
    before = threading.active_count()
    write(heap, [rng.randbytes(1000)], threads=4)
    assert threading.active_count() == before


MEASURE = """
import pathlib, resource, sys
from holdfast.packs.codec import Codec
from holdfast.packs.index import SegmentIndex
from holdfast.packs.reader import read_segments
from holdfast.packs.writer import write_segments
from holdfast.storage.local import LocalStorage

storage = LocalStorage(pathlib.Path(sys.argv[1]))
block = bytearray(range(256)) * 32768
target = memoryview(bytearray(len(block)))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def segments(count):
    for number in range(count):
        block[:8] = number.to_bytes(8, "little")
        yield memoryview(bytes(block))

def save_and_load(count):
    made = write_segments(storage, "data/shared/", segments(count), known=lambda _: False, codec=Codec.ZSTD, threads=2)
    index = SegmentIndex.of(storage, [pack.name for pack in made.packs])
    read_segments(storage, index.get, [(digest, target) for digest in made.digests], threads=1)

save_and_load(6)
first = peak()
save_and_load(60)
print((peak() - first) // 1024)
"""


def test_ten_times_the_bytes_take_no_more_memory(tmp_path):
    """users-ask 13, I9: 8 MiB a thread, whatever is saved."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "store")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert int(grown) < 48, f"{grown} MiB more for ten times the bytes"
