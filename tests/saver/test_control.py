"""The words by which trainer and saver agree on what is staged where."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
import time

import pytest
from toy_training import ended, forked

from holdfast.errors import SaveFailed
from holdfast.ids import Digest
from holdfast.saver import control as module
from holdfast.saver.control import LENGTH, SLOTS, Control, Intent
from holdfast.saver.memory import Slab


@pytest.fixture
def control():
    slab = Slab.make(LENGTH)
    yield Control(slab)
    slab.close()


def staged(control, slot, generation, intent=Intent.SAVE):
    control.unseal(slot)
    control.describe(slot, intent, 40 + slot, 4096, b"a document")
    control.seal(slot, generation)
    return control.row(slot)


def test_nothing_is_sealed_at_first(control):
    assert control.rows() == []
    assert control.finished() == 0


def test_a_sealed_row_says_all_about_its_slot(control):
    row = staged(control, 1, 7, Intent.RESERVE)
    assert (row.slot, row.generation, row.intent, row.slab) == (1, 7, Intent.RESERVE, 41)
    assert (row.offset, row.length, row.digest) == (4096, 10, Digest.of(b"a document"))
    assert row.pending
    assert control.row(0) is None


def test_rows_come_oldest_generation_first(control):
    for slot, generation in ((0, 9), (1, 7), (2, 8)):
        staged(control, slot, generation)
    assert [row.generation for row in control.rows()] == [7, 8, 9]


def test_what_is_described_is_not_there_before_it_is_sealed(control):
    staged(control, 0, 1)
    control.unseal(0)
    control.describe(0, Intent.SAVE, 40, 0, b"another")
    assert control.row(0) is None


def test_a_row_that_is_done_is_not_pending_and_the_next_generation_in_it_is(control):
    row = staged(control, 0, 1)
    assert control.taken(row)
    control.done(row)
    assert not control.row(0).pending
    assert control.finished() == 1
    assert staged(control, 0, 2).pending


def test_rows_do_not_touch_each_other(control):
    before = [staged(control, slot, slot + 1) for slot in range(SLOTS)]
    control.taken(before[1])
    control.done(before[1])
    assert [control.row(slot) == before[slot] for slot in range(SLOTS)] == [True, False, True]


def test_the_words_lie_where_the_page_says(control):
    """A stream of a device writes the seal, and savers of this version read what trainers of it wrote."""
    row = staged(control, 1, 7)
    control.taken(row)
    raw = bytes(control.slab.memory[128:256])
    assert struct.unpack("<4Q", raw[:32]) == (7, Intent.SAVE, 4096, 10)
    assert raw[32:64] == Digest.of(b"a document")
    assert struct.unpack("<3Q", raw[64:88]) == (0, 7, 41)
    assert control.seal_place(1) == 128
    assert SLOTS * 128 <= LENGTH


# Who takes a slot


def test_a_generation_that_nobody_has_begun_can_be_taken_back(control):
    row = staged(control, 0, 1)
    assert control.take_back(row)
    assert control.row(0) is None
    assert not control.taken(row)


def test_one_that_the_saver_is_at_work_on_cannot(control):
    row = staged(control, 0, 1)
    assert control.taken(row)
    assert not control.take_back(row)
    assert control.row(0) is not None


def test_nor_one_that_is_done_for_it_may_be_a_checkpoint(control):
    row = staged(control, 0, 1)
    control.taken(row)
    control.done(row)
    assert not control.take_back(row)
    assert not control.row(0).pending


def test_an_older_generation_of_a_slot_that_was_filled_again_is_nobodys(control):
    old = staged(control, 0, 1)
    staged(control, 0, 2)
    assert not control.taken(old)


def test_of_two_who_want_a_generation_exactly_one_gets_it(control):
    """Trainer and saver are processes: the lock is the kernel's."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for number in range(1, 40):
        row = staged(control, 0, number)
        mine, theirs = rng.uniform(0, 0.003), rng.uniform(0, 0.003)

        def saver(row=row, pause=theirs):
            time.sleep(pause)
            os._exit(10 + Control(Slab(control.slab.descriptor, LENGTH)).taken(row))

        child = forked(saver)
        time.sleep(mine)
        back = control.take_back(row)
        assert (ended(child) == 11) != back


@pytest.fixture
def holder(control):
    """A process that has the lock, and does not let it go."""
    reader, writer = os.pipe()

    def hold():
        with Control(Slab(control.slab.descriptor, LENGTH)).lock():
            os.write(writer, b"x")
            time.sleep(600)

    child = forked(hold)
    os.read(reader, 1)
    yield child
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    os.close(reader)
    os.close(writer)


def test_whoever_is_killed_with_the_lock_does_not_keep_it(control, holder):
    threading.Timer(0.2, os.kill, (holder, signal.SIGKILL)).start()
    with control.lock():
        pass


def test_whoever_is_stopped_with_the_lock_is_not_waited_for(control, holder, monkeypatch):
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.2)
    with pytest.raises(SaveFailed, match="holds the lock"), control.lock():
        pass
