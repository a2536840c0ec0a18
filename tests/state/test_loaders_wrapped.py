"""Loaders around a loader, as accelerate prepares them: the place is found in the one inside.

The wrapper has the structure of ``accelerate.data_loader.DataLoaderShard`` of 1.x: it has the methods of a loader
that keeps its own place whether or not the one inside does, passes for its class, and fetches one batch ahead.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import holdfast
from holdfast.state.loaders import open_position
from holdfast.state.seeding import seeded

from .loaders_support import Eager, Noisy, Numbers, Stream, fresh, interrupted, train, whole

# torchdata 0.11 calls what torch 2.13 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

DATA = Numbers()


class Wrapper:
    """Of another loader, which it passes for."""

    def __init__(self, inner):
        self.base_dataloader = inner
        self.iteration = 0
        self.keep_place()

    def __getattr__(self, name):
        if name == "base_dataloader":
            raise AttributeError
        return getattr(self.base_dataloader, name)

    @property
    def __class__(self):
        return self.base_dataloader.__class__

    def __len__(self):
        return len(self.base_dataloader)

    def keep_place(self):
        if hasattr(self.base_dataloader, "state_dict"):
            self.place = self.base_dataloader.state_dict()

    def state_dict(self):
        return self.place

    def load_state_dict(self, state):
        self.base_dataloader.load_state_dict(state)

    def set_epoch(self, epoch):
        self.iteration = epoch

    def __iter__(self):
        self.set_epoch(self.iteration)
        batches = iter(self.base_dataloader)
        held = next(batches, None)
        while held is not None:
            self.keep_place()
            ahead = next(batches, None)
            yield held
            held = ahead
        self.iteration += 1


def wrapped(dataset=DATA, **options):
    return lambda: Wrapper(DataLoader(dataset, **({"batch_size": 4} | options)))


LOADERS = {
    "shuffle": wrapped(shuffle=True),
    "own generator": lambda: wrapped(shuffle=True, generator=torch.Generator().manual_seed(7))(),
    "eager sampler that counts": lambda: wrapped(sampler=Eager())(),
    "workers": wrapped(shuffle=True, num_workers=2),
    "kept workers": wrapped(shuffle=True, num_workers=2, persistent_workers=True),
    "our sampler": lambda: Wrapper(DataLoader(DATA, batch_sampler=holdfast.Sampler(DATA, batch_size=4))),
    "an iterable data set": wrapped(Stream()),
}


@pytest.mark.parametrize("name", LOADERS)
def test_interruptions_change_nothing(name):
    trace = whole(LOADERS[name])
    assert interrupted(LOADERS[name], [(0, 2), (0, 6), (1, 0), (1, 3)]) == trace
    assert sorted({line[0] for line in trace}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "strategy"), [("shuffle", "indices"), ("our sampler", "cursor"), ("an iterable data set", "reading")]
)
def test_methods_that_lead_nowhere_are_not_taken_for_a_place(name, strategy):
    assert fresh(LOADERS[name]).strategy == strategy


def test_a_loader_inside_that_keeps_its_place_is_asked_for_it():
    assert open_position(Wrapper(StatefulDataLoader(DATA, batch_size=4))).strategy == "stateful"


@pytest.mark.parametrize(
    ("dataset", "exact"),
    [(Noisy(), False), (Numbers(), True), (seeded(Noisy()), True)],
    ids=["draws", "quiet", "seeded"],
)
def test_what_is_fetched_ahead_and_draws_is_said_to_be_inexact(dataset, exact):
    """Its draws lie before the boundary that it comes after, and are made once more behind a resume."""
    position = fresh(wrapped(dataset, shuffle=True))
    train(position, epochs=1, until=(0, 3))
    assert position.exactness()["augmentation"].exact == exact
    train(position, epochs=1, until=(0, 6))
    assert position.exactness()["augmentation"].exact, "there is nothing ahead at the end of an epoch"


def test_indices_of_batches_that_were_handed_out_are_not_kept():
    position = fresh(LOADERS["our sampler"])
    train(position, epochs=1, until=(0, 5))
    assert len(position._tap.pending) == 1
