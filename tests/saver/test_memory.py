"""Memory that two processes share."""

from __future__ import annotations

import gc
import mmap
import os
import tempfile
import threading

import pytest
from failing_files import small_disk
from toy_training import ended, forked

from holdfast.errors import SaveFailed
from holdfast.saver import memory
from holdfast.saver.memory import PIECE, Slab

MIB = 1 << 20


@pytest.fixture(params=["memfd", "file"])
def kind(request, monkeypatch):
    """Where the kernel gives no memfd there is a file without a name."""
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create")
    return request.param


@pytest.fixture
def slab(kind):
    made = Slab.make(10 * MIB + 5)
    yield made
    made.close()


def taken(slab):
    return os.fstat(slab.descriptor).st_blocks * 512


def about(count):
    """But for what the kernel takes for its large pages, and counts late."""
    return pytest.approx(count, abs=64 * 1024)


def test_it_is_a_whole_number_of_pages_and_costs_nothing_before_it_is_touched(slab):
    assert slab.length == 10 * MIB + mmap.PAGESIZE
    assert len(slab.memory) == slab.length
    assert taken(slab) == 0


def test_another_process_sees_the_same_bytes(slab):
    """What it has is the descriptor; the mapping of its own is another one."""

    def other():
        mine = Slab(slab.descriptor, slab.length)
        assert bytes(mine.memory[:5]) == b"hello"
        mine.memory[5:10] = b"world"

    slab.memory[:5] = b"hello"
    assert ended(forked(other)) == 0
    assert bytes(slab.memory[:10]) == b"helloworld"


def test_what_is_set_aside_is_whole_pieces_and_only_once(slab):
    slab.reserve(1, 10)
    assert taken(slab) == PIECE
    slab.reserve(PIECE - 1, 2)
    assert taken(slab) == 2 * PIECE
    slab.reserve(0, 2 * PIECE)
    assert taken(slab) == 2 * PIECE
    slab.reserve(slab.length - 1, 1)
    assert taken(slab) < 3 * PIECE


def test_setting_aside_ends_early_where_the_program_does(slab):
    stop = threading.Event()
    stop.set()
    slab.reserve(0, slab.length, stop)
    slab.populate(0, slab.length, stop)
    assert taken(slab) == 0


def test_what_is_mapped_early_can_be_written_to(slab):
    slab.reserve(0, slab.length)
    slab.populate(0, slab.length, threading.Event())
    slab.memory[-1:] = b"x"
    assert bytes(slab.memory[-1:]) == b"x"


def test_what_is_given_back_is_whole_pieces_inside_and_reads_as_zeros(slab):
    slab.reserve(0, slab.length)
    slab.memory[: 4 * PIECE] = b"x" * (4 * PIECE)
    before = taken(slab)
    slab.release(PIECE - 1, 2 * PIECE + 1)
    assert before - taken(slab) == about(2 * PIECE)
    assert bytes(slab.memory[PIECE - 1 : PIECE + 1]) == b"x\0"
    assert bytes(slab.memory[3 * PIECE - 1 : 3 * PIECE + 1]) == b"\0x"
    slab.release(0, PIECE - 1)
    assert before - taken(slab) == about(2 * PIECE)
    slab.reserve(0, slab.length)
    assert taken(slab) == about(before)


def test_a_lack_of_memory_is_an_error_and_no_signal(tmp_path, monkeypatch):
    """Of a file as well, which lies where there may be no room."""
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    with small_disk(tmp_path / "disk", "8m") as mounted:
        if not mounted:
            pytest.skip("this user may not mount anything")
        slab = Slab.make(64 * MIB)
        slab.reserve(0, 4 * MIB)
        with pytest.raises(SaveFailed, match=r"no memory for the staged state .*ram_budget="):
            slab.reserve(0, 64 * MIB)
        slab.memory[: 4 * MIB] = b"x" * (4 * MIB)
        slab.close()
        gc.collect()


def test_nothing_to_share_is_an_error(monkeypatch, tmp_path):
    def refused(*given, **options):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    monkeypatch.setattr(memory.tempfile, "TemporaryFile", refused)
    with pytest.raises(SaveFailed, match="neither memfd_create nor a temporary file works"):
        Slab.make(MIB)


def test_serial_numbers_are_given_once():
    slabs = [Slab.make(1) for _ in range(3)]
    assert len({slab.serial for slab in slabs}) == 3
    assert 0 not in {slab.serial for slab in slabs}
    for slab in slabs:
        slab.close()


def test_whoever_still_looks_at_a_closed_one_sees_what_was_there(kind):
    """torch keeps no count of what it was given; reading it must not be the end of the process."""
    slab = Slab.make(MIB)
    slab.memory[:5] = b"hello"
    view = slab.memory[:5]
    slab.close()
    gc.collect()
    assert bytes(view) == b"hello"
    assert bytes(slab.memory) == b""


def test_letting_it_go_twice_closes_no_file_of_the_program(kind):
    """The number of its descriptor may be that of another file by then."""
    slab = Slab.make(MIB)
    number = slab.descriptor
    slab.close()
    os.dup2(0, number)
    slab.close()
    os.close(number)  # it is open still
