"""The position before the batch at hand, which a save at the top of a loop's body needs; and starting an epoch over."""

import functools
import itertools
import random

import pytest
import torch
from torch.utils.data import DataLoader, Sampler

import holdfast
from holdfast.errors import StateMismatch
from holdfast.state import loaders_random as randomness
from holdfast.state.loaders import open_position

from .loaders_support import Buckets, Eager, Noisy, Numbers, OwnGenerators, Stream, digest, fresh, resumed, stored

SIZE, EPOCHS = 23, 3


class Anew:
    """An iterable of the user that starts again each time."""

    def __iter__(self):
        return iter([torch.rand(2) for _ in range(5)])


LOADERS = {
    "shuffled, augmented": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True),
    "own generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(4)),
    "drawing for each batch": lambda: DataLoader(Noisy(), batch_sampler=Buckets()),
    "counting its epochs": lambda: DataLoader(Noisy(), 4, sampler=Eager()),
    "generators of its own": lambda: DataLoader(Noisy(), 4, sampler=OwnGenerators()),
    "workers": lambda: DataLoader(Numbers(), 4, shuffle=True, num_workers=1),
    "kept workers": lambda: DataLoader(Numbers(), 4, shuffle=True, num_workers=1, persistent_workers=True),
    "our sampler": lambda: DataLoader(Noisy(), batch_sampler=holdfast.Sampler(SIZE, seed=3, batch_size=4)),
    "our sampler in batches of torch": lambda: DataLoader(Noisy(), 4, sampler=holdfast.Sampler(SIZE, seed=3)),
    "an iterable data set": lambda: DataLoader(Stream(), batch_size=4),
    "any iterable": Anew,
    "a list": lambda: [torch.tensor([float(number)]) for number in range(6)],
    "a single batch": lambda: DataLoader(Noisy(4), batch_size=4, shuffle=True),
}


def step(position, batch):
    return position.epoch, position.batch, digest(batch), random.random(), torch.rand(()).item()


def lived(build):
    """The trace of a training, and for each of its batches what a save at the top of the body would hold."""
    position = fresh(build)
    trace, saves = [], []
    while position.epoch < EPOCHS:
        batches = position.batches()
        while True:
            before = stored(randomness.capture())
            if (batch := next(batches, None)) is None:
                break
            saves.append((stored(position.before()) if position.before() else None, before))
            trace.append(step(position, batch))
    position.close()
    return trace, saves


def rest(position):
    trace = []
    while position.epoch < EPOCHS:
        trace += [step(position, batch) for batch in position.batches()]
    position.close()
    return trace


@pytest.mark.parametrize("kind", LOADERS)
def test_every_batch_can_be_taken_back(kind):
    build = LOADERS[kind]
    trace, saves = lived(build)
    assert all(state is not None for state, _ in saves)
    per_epoch = len(trace) // EPOCHS
    for at in sorted({0, 1, per_epoch - 1, per_epoch, per_epoch + 1, len(trace) - 1} & set(range(len(trace)))):
        assert rest(resumed(build, *saves[at])) == trace[at:], f"batch {at} of {per_epoch} in each epoch"


@pytest.mark.parametrize("kind", ["shuffled, augmented", "our sampler", "an iterable data set", "a list"])
def test_the_first_batch_after_a_resume_can_be_taken_back_too(kind):
    build = LOADERS[kind]
    trace, saves = lived(build)
    position = resumed(build, *saves[2])
    before = stored(randomness.capture())
    assert step(position, next(position.batches())) == trace[2]
    assert rest(resumed(build, stored(position.before()), before)) == trace[2:]


def test_without_a_batch_at_hand_there_is_nothing_to_take_back():
    position = fresh(LOADERS["a list"])
    assert position.before() is None
    list(position.batches())
    assert position.before() is None


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")
def test_a_loader_that_keeps_its_own_position_can_take_back_the_first_batch_of_an_epoch():
    """It would have to be asked for all of its state before every batch."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    build = functools.partial(stateful.StatefulDataLoader, Noisy(), batch_size=4, shuffle=True)
    trace, saves = lived(build)
    told = [at for at, (state, _) in enumerate(saves) if state is not None]
    assert told == [0, 6, 12]
    for at in told:
        assert rest(resumed(build, *saves[at])) == trace[at:]


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("shuffled, augmented", lambda: DataLoader(Noisy(), batch_size=8, shuffle=True)),
        ("our sampler", lambda: DataLoader(Noisy(30), batch_sampler=holdfast.Sampler(30, seed=3, batch_size=4))),
        ("an iterable data set", lambda: DataLoader(Stream(), batch_size=8)),
        ("a list", lambda: [1, 2]),
        ("a list", lambda: DataLoader(Noisy(), batch_size=8, shuffle=True)),
    ],
)
def test_after_a_refused_load_the_epoch_can_be_started_over(kind, other):
    position = fresh(LOADERS[kind])
    next(itertools.islice(position.batches(), 2, None))
    state = stored(position.state())
    changed = open_position(other())
    with pytest.raises(StateMismatch):
        changed.load(state)
    assert (changed.epoch, changed.batch) == (0, 0)
    changed.start_over(2)
    count = len(list(changed.batches()))
    assert (changed.epoch, changed.batch) == (3, 0)
    assert count == changed.length or changed.length is None


@pytest.mark.parametrize("kind", ["shuffled, augmented", "an iterable data set", "any iterable"])
def test_after_a_replay_that_found_other_data_the_epoch_can_be_started_over(kind):
    position = fresh(LOADERS[kind])
    next(itertools.islice(position.batches(), 2, None))
    state = stored(position.state())
    state["details"]["digest"] = "0" * 64
    changed = fresh(LOADERS[kind])
    changed.load(state)
    with pytest.raises(StateMismatch):
        changed.replay()
    changed.start_over(state["epoch"])
    assert len(list(changed.batches())) in (5, 6)
    assert (changed.epoch, changed.batch) == (1, 0)


class InPlace(Sampler):
    """Shuffles a list of its own, which goes on from epoch to epoch."""

    def __init__(self, size=SIZE, kind=list):
        self.order = kind(range(size))
        self.size = size

    def __len__(self):
        return self.size

    def __iter__(self):
        random.shuffle(self.order)
        return iter(list(self.order))


class Again(InPlace):
    def set_epoch(self, epoch):
        self.order = list(range(self.size))
        random.Random(epoch).shuffle(self.order)

    def __iter__(self):
        return iter(list(self.order))


def test_an_order_that_the_sampler_keeps_in_a_list_is_said_to_be_inexact():
    """The list is in no checkpoint: a resume in the second epoch draws others, and is refused."""
    position = fresh(lambda: DataLoader(Numbers(), 4, sampler=InPlace()))
    assert position.exactness()["order"].exact
    next(position.batches())
    found = position.exactness()["order"]
    assert not found.exact
    assert "batch_sampler.sampler.order" in found.reason


@pytest.mark.parametrize("sampler", [Eager, OwnGenerators, Again, Buckets])
def test_orders_that_are_drawn_or_told_stay_exact(sampler):
    options = {"batch_sampler": sampler()} if sampler is Buckets else {"batch_size": 4, "sampler": sampler()}
    position = fresh(lambda: DataLoader(Numbers(), **options))
    for _ in range(2):
        list(position.batches())
    assert position.exactness()["order"].exact


class Once:
    """An iterator of the user's."""

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


class Restarts(Once):
    def __iter__(self):
        return iter([1])


@pytest.mark.parametrize(
    ("make", "warned"),
    [
        (lambda: zip([1], [2], strict=True), True),
        (lambda: (number for number in range(3)), True),
        (lambda: iter([1]), True),
        (lambda: map(abs, [1]), True),
        (lambda: itertools.chain([1], [2]), True),
        (lambda: itertools.cycle([1]), False),
        (Restarts, False),
        (lambda: [1], False),
        (lambda: DataLoader(Numbers()), False),
    ],
)
def test_what_can_be_read_only_once_is_warned_of(make, warned, caplog):
    """The training would end with the first epoch, and say nothing before."""
    open_position(make())
    assert ("only once" in caplog.text) is warned
