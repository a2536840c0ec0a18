"""Batches that are passed over after a rollback: found again by the steps they belonged to, and kept with the line."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

import holdfast
from holdfast.health.skipping import Skip
from holdfast.recovery.restoring.left_out import REMEMBERED, LeavingOut, LeftOut, Spot, stretches_of
from holdfast.state.loaders import open_position


def walked(batches, per_epoch=4, leaving=None):
    """The numbers of the batches that a loop gets, with a boundary after each."""
    leaving = leaving or LeavingOut()
    position = open_position(DataLoader(torch.arange(per_epoch), batch_size=1))
    leaving.boundary(0, position)
    got = []
    while position.epoch * per_epoch < batches:
        for batch in position.batches():
            if leaving.passes_over(position):
                continue
            got.append((position.epoch, int(batch)))
            leaving.boundary(len(got), position)
    return got, leaving


def test_the_data_of_a_step_is_found_again():
    _, leaving = walked(8)
    assert leaving.batches_of(Skip(2, 3), target=0) == LeftOut(Spot(0, 1), Spot(0, 3))
    assert leaving.batches_of(Skip(4, 5), target=0) == LeftOut(Spot(0, 3), Spot(1, 1))


def test_what_is_left_out_is_passed_over_and_nothing_else():
    _, leaving = walked(8)
    leaving.leave_out([leaving.batches_of(Skip(4, 5), target=0)])
    got, _ = walked(8, leaving=leaving)
    assert got == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert leaving.passed == 2


def test_a_checkpoint_keeps_what_was_left_out_before_it():
    _, leaving = walked(8)
    leaving.leave_out([leaving.batches_of(Skip(2, 2), target=0)])
    other = LeavingOut()
    other.begin_at(0, leaving.stored({"epoch": 0}))
    assert other.stretches == leaving.stretches
    other.begin_at(0, {"epoch": 0})
    assert other.stretches == []


def test_a_position_without_anything_left_out_is_stored_as_it_is():
    data = {"epoch": 3}
    assert LeavingOut().stored(data) is data
    assert LeavingOut().stored(None) is None


def test_steps_that_nobody_remembers_begin_at_the_checkpoint():
    leaving = LeavingOut()
    position = open_position(DataLoader(torch.arange(4), batch_size=1))
    leaving.boundary(10, position)
    batches = position.batches()
    for step in (11, 12):
        next(batches)
        if step == 12:
            leaving.boundary(step, position)
    assert leaving.batches_of(Skip(12, 12), target=10) == LeftOut(Spot(0, 0), Spot(0, 2))
    assert leaving.batches_of(Skip(13, 13), target=10) == LeftOut(Spot(0, 2), Spot(0, 3))  # not made yet
    assert leaving.batches_of(Skip(9, 9), target=8) is None


def test_batches_that_a_step_has_passed_over_are_none_that_steps_use():
    """The step that fails next is often the very one that has just jumped over what the first rollback left out."""
    leaving = LeavingOut()
    position = open_position(DataLoader(torch.arange(40), batch_size=1))
    for step, batch in enumerate((5, 6, 7, 13), 5):
        position.batch = batch
        leaving.boundary(step, position)
    assert leaving.batches_of(Skip(8, 18), target=5) == LeftOut(Spot(0, 7), Spot(0, 23))


def test_an_earlier_process_was_at_the_checkpoint():
    _, leaving = walked(8)
    assert leaving.knows(3)
    del leaving._spots[0], leaving._spots[1]
    assert not leaving.knows(0)
    leaving.remember(0, Spot(0, 0))
    assert leaving.batches_of(Skip(1, 3), target=0) == LeftOut(Spot(0, 0), Spot(0, 3))
    assert leaving.batches_of(Skip(9, 9), target=0) == LeftOut(Spot(1, 4), Spot(1, 5))


def test_memory_of_boundaries_is_bounded():
    leaving = LeavingOut()
    position = open_position(DataLoader(torch.arange(4), batch_size=1))
    for step in range(REMEMBERED + 10):
        leaving.boundary(step, position)
    assert len(leaving._spots) == REMEMBERED


def test_what_was_left_out_stays_left_out_where_batches_have_another_size():
    """Samples 212 to 227 at four to a batch; from batch 40 on there are eight to one."""
    one = LeftOut(Spot(0, 53), Spot(0, 57))
    assert one.in_batches_of(Spot(0, 40), 4, 8) == LeftOut(Spot(0, 46), Spot(0, 49), 8)
    assert one.in_batches_of(Spot(0, 40), 4, 2) == LeftOut(Spot(0, 66), Spot(0, 74), 2)
    later = LeftOut(Spot(1, 10), Spot(1, 12))
    assert later.in_batches_of(Spot(0, 40), 4, 8) == LeftOut(Spot(1, 5), Spot(1, 6), 8)


def test_what_was_remembered_of_steps_that_are_made_again_is_forgotten():
    leaving = walked(8)[1]
    leaving.begin_at(3, None)
    assert leaving.batches_of(Skip(2, 3), target=0) is not None
    assert max(leaving._spots) == 3


def test_each_stretch_is_moved_from_the_batches_that_it_was_counted_in():
    """A checkpoint of batches of 8 with a stretch of its own, and a rollback to it made in batches of 4."""
    sampler = holdfast.Sampler(4000, seed=1, batch_size=4, shuffle=False)
    position = open_position(DataLoader(torch.arange(4000), batch_sampler=sampler))
    stored = {"epoch": 0, "batch": 20, "facts": {"batch_size": 8}, "left_out": [[0, 30, 0, 32]]}
    position.epoch, position.batch = 0, 20
    leaving = LeavingOut()
    leaving.begin_at(20, stored)
    leaving.leave_out(stretches_of([[0, 30, 0, 34]], unit=4))
    leaving.leave_out(stretches_of([[0, 50, 0, 52]]))  # of a journal that does not say
    moved = [one.plain() for one in _found(leaving, position, stored)]
    assert moved == [[0, 40, 0, 44], [0, 30, 0, 34], [0, 80, 0, 84]]
    assert [one.plain() for one in _found(leaving, position, stored)] == moved, "once is enough"


def _found(leaving, position, stored):
    leaving.found(position, stored, then=1, now=1)
    return leaving.stretches
