"""The epoch that begins where the loader is not the one of the checkpoint, as with another number of ranks."""

from __future__ import annotations

from itertools import islice

import torch
from torch.utils.data import DataLoader, DistributedSampler

from holdfast.recovery.restoring.finding import Mismatch, find
from holdfast.state.loaders import open_position

DATA = torch.arange(40)


def of_world(world):
    sampler = DistributedSampler(DATA, num_replicas=world, rank=0, shuffle=False)
    return open_position(DataLoader(DATA, batch_size=2, sampler=sampler))


def after(batches):
    """What a checkpoint of eight ranks holds after so many of the three batches of an epoch."""
    position = of_world(8)
    list(islice(position.batches(), batches))
    assert position.batch == batches
    return position.state()


def found(stored):
    position = of_world(4)
    find(position, stored, Mismatch.RESTART_EPOCH)
    return position.epoch, position.batch


def test_an_epoch_that_was_under_way_begins_anew():
    assert found(after(2)) == (0, 0)


def test_an_epoch_that_had_ended_is_followed_by_the_next_one(caplog):
    stored = after(3)
    assert stored["length"] == 3
    assert found(stored) == (1, 0)
    assert "epoch 1 begins with this loader" in caplog.text


def test_a_checkpoint_that_does_not_say_how_long_its_epoch_is_has_it_begun_anew():
    stored = after(3)
    del stored["length"]
    assert found(stored) == (0, 0)
