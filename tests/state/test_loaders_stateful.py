"""Interrupted is uninterrupted for loaders that keep their own position."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from holdfast import errors
from holdfast.state import loaders_random as randomness
from holdfast.state.loaders import open_position
from holdfast.state.seeding import seeded

from .loaders_support import Buckets, Noisy, Numbers, Stream, checkpoint, fresh, interrupted, train, whole

# torchdata 0.11 calls what torch 2.13 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

DATA = Numbers()
STOPS = [(0, 2), (0, 6), (1, 0), (1, 3), (2, 1)]


class StatefulStream(Stream):
    """Knows where it is, as Hugging Face's streams do."""

    def __init__(self):
        super().__init__()
        self.at = 0

    def __iter__(self):
        while self.at < self.size:
            self.at += 1
            yield torch.tensor(self.at)
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def builder(dataset=DATA, **options):
    return lambda: StatefulDataLoader(dataset, batch_size=4, **options)


def weighted():
    sampler = WeightedRandomSampler([1.0 + number % 5 for number in range(23)], 23)
    return StatefulDataLoader(DATA, batch_size=4, sampler=sampler)


@pytest.mark.parametrize(
    "build",
    [
        builder(),
        builder(shuffle=True),
        builder(shuffle=True, generator=torch.Generator()),
        builder(Noisy(), shuffle=True),
        weighted,
        lambda: StatefulDataLoader(StatefulStream(), batch_size=4),
    ],
    ids=["sequential", "shuffle", "own generator", "noisy", "weighted", "stateful stream"],
)
def test_five_interruptions_change_nothing(build):
    """users-ask 7: also in epoch 2 and after the second resume."""
    if build is not weighted and (generator := build().generator) is not None:
        build = lambda: builder(shuffle=True, generator=generator.manual_seed(3))()  # noqa: E731
    assert interrupted(build, STOPS) == whole(build)


@pytest.mark.parametrize(
    "build",
    [
        builder(shuffle=True, num_workers=2),
        builder(shuffle=True, num_workers=2, persistent_workers=True),
        builder(shuffle=True, num_workers=2, snapshot_every_n_steps=3),
        builder(seeded(Noisy()), shuffle=True, num_workers=2),
    ],
    ids=["plain", "persistent", "rare snapshots", "seeded"],
)
def test_with_two_workers_interruptions_change_nothing(build):
    assert interrupted(build, [(0, 2), (1, 0), (1, 3)], epochs=2) == whole(build, epochs=2)


def test_a_stream_without_state_is_read_again_by_the_loader(caplog):
    build = lambda: StatefulDataLoader(Stream(), batch_size=4)  # noqa: E731
    with caplog.at_level(logging.ERROR):
        assert interrupted(build, [(0, 2)], epochs=1) == whole(build, epochs=1)


@pytest.mark.parametrize("now", [0, 1, 3])
def test_another_number_of_workers_is_a_clear_error(now):
    """The loader itself fails with a bare AssertionError."""
    position = fresh(builder(num_workers=2))
    train(position, epochs=1, until=(0, 2))
    state, _ = checkpoint(position)
    position.close()
    with pytest.raises(errors.StateMismatch, match=f"workers was 2 and is {now}"):
        open_position(_unwarned(now)).load(state)


def _unwarned(workers):
    loader = StatefulDataLoader(DATA, batch_size=4)
    loader.num_workers = workers
    return loader


def test_another_length_is_a_clear_error():
    position = fresh(builder(shuffle=True))
    train(position, epochs=1, until=(0, 2))
    with pytest.raises(errors.StateMismatch, match="dataset length was 23 and is 22"):
        fresh(builder(Numbers(22), shuffle=True)).load(position.state())


def test_a_state_that_the_loader_refuses_is_a_clear_error():
    class Picky(list):
        def state_dict(self):
            return {"here": 1}

        def load_state_dict(self, state):
            raise AssertionError

    position = open_position(Picky([1, 2, 3]))
    next(position.batches())
    again = open_position(Picky([1, 2, 3]))
    again.load(position.state())
    with pytest.raises(errors.StateMismatch, match="Picky refused the state that it stored: AssertionError"):
        again.replay()


def test_asking_for_the_state_before_the_first_batch_starts_no_worker():
    loader = builder(num_workers=2)()
    assert open_position(loader).state()["details"]["loader"] is None
    assert loader._iterator is None


def test_samplers_without_state_are_said_to_be_inexact():
    loader = StatefulDataLoader(DATA, batch_sampler=Buckets())
    found = open_position(loader).exactness()["order"]
    assert not found.exact
    assert "Buckets has no state_dict" in found.reason


def test_a_rollback_in_the_same_process_changes_nothing():
    for options in ({}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}):
        build = builder(shuffle=True, **options)
        trace = whole(build)
        for back_to in [(0, 2), (1, 0)]:
            position = fresh(build)
            before = train(position, epochs=3, until=back_to)
            state, random_state = checkpoint(position)
            train(position, epochs=3, until=(2, 2))
            position.load(state)
            position.replay()
            randomness.restore(random_state)
            assert before + train(position, epochs=3) == trace
            position.close()


def test_kept_workers_and_a_sampler_without_state_are_said_to_be_inexact():
    sampler = WeightedRandomSampler([1.0] * 23, 23)
    loader = StatefulDataLoader(DATA, batch_size=4, sampler=sampler, num_workers=2, persistent_workers=True)
    assert not open_position(loader).exactness()["order"].exact


def test_what_augmentation_keeps_is_said():
    def said(dataset, **options):
        return open_position(builder(dataset, **options)()).exactness()["augmentation"].exact

    assert said(Noisy())
    assert said(seeded(Noisy()), num_workers=2)
    assert not said(Noisy(), num_workers=2)
    assert not said(seeded(Noisy()), num_workers=2, persistent_workers=True)


def test_plain_loaders_are_not_taken_for_stateful_ones():
    assert open_position(DataLoader(DATA)).strategy == "indices"
    assert open_position(builder()()).strategy == "stateful"
