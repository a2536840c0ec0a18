"""Direct I/O is used where it can be, and nothing depends on it (hazards 41)."""

import contextlib
import mmap

import pytest

from holdfast.boxes import SEGMENT_BYTES
from holdfast.ids import ObjectName
from holdfast.storage.blocks import LENT_BYTES, PAGE, aligned_buffer, drop_buffers, lent_buffer, next_part
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage
from holdfast.storage.resident import ResidentPages
from holdfast.testing.faults import CountedFiles, Op
from holdfast.testing.storage import pattern

P = ObjectName("data/p")
SIZE = 1 << 20


@pytest.fixture
def storage(tmp_path):
    storage = LocalStorage(tmp_path)
    with storage.sink(P, 0) as sink:
        if sink.alignment == 1:
            pytest.skip(f"no direct I/O in {tmp_path}")
    return storage


def aligned(data):
    buffer = aligned_buffer(len(data))
    buffer[:] = data
    return buffer


def resident(storage, tmp_path):
    """Whether the page cache has the object; None where it never leaves memory."""
    with open(tmp_path / P, "rb") as file:
        pages = ResidentPages(file.fileno(), storage.size(P))
        found = pages.have(0, storage.size(P))
        pages.close()
    return found


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 4096, [(4096, True)]),
        (0, 5000, [(4096, True), (904, False)]),
        (1, 4095, [(4095, False)]),
        (1, 10, [(10, False)]),
        (4095, 8194, [(1, False), (8192, True), (1, False)]),
        (8192, 100, [(100, False)]),
    ],
)
def test_a_range_is_cut_into_head_blocks_and_tail(offset, length, expected):
    parts = []
    while length:
        part, whole = next_part(offset, length, 4096)
        parts.append((part, whole))
        offset, length = offset + part, length - part
    assert parts == expected


def test_aligned_bytes_bypass_the_page_cache_both_ways(storage, tmp_path):
    with storage.sink(P, SIZE) as sink:
        sink.write(0, aligned(pattern(SIZE)))
        sink.commit(SIZE)
    if resident(storage, tmp_path):
        pytest.skip("this filesystem lives in memory")
    into = aligned_buffer(SIZE)
    with storage.source(P) as source:
        source.read_into(0, into)
    assert into == pattern(SIZE)
    assert not resident(storage, tmp_path)


def test_cached_bytes_are_read_from_the_cache(storage, tmp_path):
    storage.create(P, pattern(SIZE))
    assert resident(storage, tmp_path)
    into = aligned_buffer(SIZE)
    with storage.source(P) as source:
        source.read_into(0, into)
    assert into == pattern(SIZE)
    assert resident(storage, tmp_path)


def test_bytes_at_odd_addresses_are_written_and_read_too(storage, tmp_path):
    data = pattern(SIZE)
    shifted = aligned_buffer(SIZE + 1)[1:]
    shifted[:] = data
    with storage.sink(P, SIZE) as sink:
        sink.write(0, shifted)
        sink.commit(SIZE)
    assert (tmp_path / P).read_bytes() == data
    shifted[:] = bytes(SIZE)
    with storage.source(P) as source:
        source.read_into(0, shifted)
    assert shifted == data


def test_readers_get_fresh_bytes_after_a_mixed_write(storage, tmp_path):
    """Whole blocks past the cache, odd ends through it, in either order, and never a stale page."""
    data = pattern(5 * PAGE + 300)
    with storage.sink(P, 0) as sink:
        for start, end in [(5 * PAGE, len(data)), (100, PAGE), (PAGE, 5 * PAGE), (0, 100)]:
            sink.write(start, aligned(data[start:end]))
        sink.commit(len(data))
    assert (tmp_path / P).read_bytes() == data
    into = aligned_buffer(len(data))
    with storage.source(P) as source:
        source.read_into(0, into)
    assert into == data


def test_the_direct_descriptor_is_opened_once_per_file(tmp_path):
    files = CountedFiles(ops=frozenset({Op.OPEN_DIRECT, Op.CLOSE, Op.CREATE}))
    storage = LocalStorage(tmp_path, files)
    with storage.sink(P, 0) as sink:
        sink.write(0, aligned(pattern(SIZE)))
        sink.write(SIZE, aligned(pattern(SIZE)))
        sink.commit(2 * SIZE)
    ops = [event.op for event in files.seen]
    assert ops.count(Op.OPEN_DIRECT) <= 1
    assert ops.count(Op.CLOSE) == len(ops) - ops.count(Op.CLOSE)


def test_reserved_space_is_real(tmp_path):
    path = tmp_path / "x"
    files = Files()
    descriptor = files.create(path)
    files.reserve(descriptor, SIZE)
    facts = path.stat()
    files.close(descriptor)
    if facts.st_size == 0:
        pytest.skip("this filesystem cannot reserve")
    assert facts.st_blocks * 512 >= SIZE


def test_aligned_buffers_begin_on_a_page():
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(aligned_buffer(10)))
    assert address % mmap.PAGESIZE == 0
    assert len(aligned_buffer(0)) == 0


def test_a_buffer_is_lent_to_one_at_a_time_and_used_again():
    """Memory that is touched for the first time costs more than what is read into it."""
    drop_buffers()
    with lent_buffer() as first, lent_buffer() as second:
        first[:1], second[:1] = b"1", b"2"
        assert bytes(first[:1]) == b"1"
    with lent_buffer() as again:
        assert bytes(again[:1]) in (b"1", b"2")
        with lent_buffer() as other:
            assert bytes(other[:1]) != bytes(again[:1])
    drop_buffers()
    with lent_buffer() as new:
        assert not any(new[:10])


def test_no_more_buffers_are_kept_than_threads_use_at_a_time():
    drop_buffers()
    with contextlib.ExitStack() as stack:
        for buffer in [stack.enter_context(lent_buffer()) for _ in range(9)]:
            buffer[:1] = b"x"
    with contextlib.ExitStack() as stack:
        used = [bytes(stack.enter_context(lent_buffer())[:1]) for _ in range(9)]
    assert used.count(b"x") == 4


def test_every_segment_fits_into_a_lent_buffer():
    assert LENT_BYTES == SEGMENT_BYTES
