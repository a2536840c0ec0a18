from __future__ import annotations

import pytest
from packs_kit import FOLDER, Heap, write

from holdfast.errors import Damaged, StorageUnavailable
from holdfast.ids import ObjectName
from holdfast.packs.codec import Codec
from holdfast.packs.index import read_footer
from holdfast.packs.verify import verify_pack


@pytest.fixture
def small(heap, rng):
    """A pack of three pages: header, one of two short segments, footer and trailer."""
    written = write(heap, [rng.randbytes(40), b"ab" * 200], codec=Codec.ZSTD)
    return heap, written.packs[0].name


def flipped(heap, name, bit):
    """The problems with one bit flipped; it is put back."""
    data = heap.objects[name]
    data[bit // 8] ^= 1 << bit % 8
    problems = verify_pack(heap, name)
    data[bit // 8] ^= 1 << bit % 8
    return problems


def test_a_sound_pack_has_no_problems(storage, rng):
    written = write(storage, [rng.randbytes(rng.randrange(1, 300_000)) for _ in range(100)], codec=Codec.ZSTD)
    seen = []
    assert verify_pack(storage, written.packs[0].name, seen.append) == []
    assert 0 < written.packs[0].size - sum(seen) < 3 * 4096, "all but the end, which was read first"


def test_every_flipped_bit_of_a_small_pack_is_found(small):
    """users-ask 5: header, segments, footer and trailer bit by bit; of every zero byte between, one bit in turn."""
    heap, name = small
    data = bytes(heap.objects[name])
    assert len(data) == 3 * 4096
    bits = [
        bit
        for bit in range(len(data) * 8)
        if any(data[max(0, bit // 8 - 32) : bit // 8 + 32]) or bit // 8 % 8 == bit % 8
    ]
    missed = [bit for bit in bits if not flipped(heap, name, bit)]
    assert missed == []
    assert verify_pack(heap, name) == []


def test_random_flipped_bits_of_a_larger_pack_are_found(heap, rng):
    sizes = [rng.randrange(1, 3000) for _ in range(300)] + [rng.randrange(60_000, 80_000) for _ in range(10)]
    written = write(heap, [rng.choice([rng.randbytes, bytes])(size) for size in sizes], codec=Codec.ZSTD)
    (pack,) = written.packs
    bits = [rng.randrange(pack.size * 8) for _ in range(300)]
    assert [bit for bit in bits if not flipped(heap, pack.name, bit)] == []


def test_a_damaged_segment_is_named_and_the_others_are_not(heap, rng):
    written = write(heap, [rng.randbytes(100_000) for _ in range(5)])
    name = written.packs[0].name
    entries = list(read_footer(heap, name))
    for entry in (entries[1], entries[3]):
        heap.objects[name][entry.offset + 7] ^= 1
    problems = verify_pack(heap, name)
    assert [(p.digest, p.offset, p.length, p.kind) for p in problems] == [
        (entry.digest, entry.offset, entry.stored, "corrupt") for entry in (entries[1], entries[3])
    ]
    assert all(p.object == name and str(p.digest) in p.message for p in problems)


def test_damage_between_segments_loses_no_segment(small):
    heap, name = small
    (problem,) = flipped(heap, name, 8 * 2000)
    assert problem.digest is None
    assert problem.offset <= 2000 < problem.offset + problem.length


def test_truncation_at_any_length_is_found(small):
    """users-ask 2."""
    heap, name = small
    whole = bytes(heap.objects[name])
    for length in range(len(whole)):
        heap.objects[name] = bytearray(whole[:length])
        assert verify_pack(heap, name), f"cut to {length} bytes"


@pytest.mark.parametrize("more", [1, 96, 4096, 8192])
def test_bytes_that_were_added_are_found(small, more):
    heap, name = small
    data = bytes(heap.objects[name])
    heap.objects[name] = bytearray(data + bytes(more))
    assert verify_pack(heap, name)
    heap.objects[name] = bytearray(bytes(more) + data)
    assert verify_pack(heap, name)


def test_two_packs_that_were_swapped_are_found(heap, rng):
    """hazards 13: a pack says which one it is."""
    one, two = (write(heap, [rng.randbytes(5000)]).packs[0].name for _ in range(2))
    heap.objects[one], heap.objects[two] = heap.objects[two], heap.objects[one]
    for name in (one, two):
        (problem,) = verify_pack(heap, name)
        assert "swapped" in problem.message
        with pytest.raises(Damaged):
            read_footer(heap, name)


def test_a_pack_that_is_not_there_is_a_problem(storage):
    (problem,) = verify_pack(storage, ObjectName(f"{FOLDER}{'0' * 32}.pack"))
    assert problem.kind == "missing"


def test_a_disk_that_cannot_be_read_is_no_problem_of_the_pack():
    """I/O errors prove nothing about the bytes."""
    heap = Heap()
    (pack,) = write(heap, [b"abc"]).packs

    def fail(_):
        raise StorageUnavailable("input/output error")

    heap.source = fail
    with pytest.raises(StorageUnavailable):
        verify_pack(heap, pack.name)
