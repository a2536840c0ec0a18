"""`Sampler`: one order, a cursor in samples, any world size."""

import collections
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from holdfast import errors
from holdfast.state import loaders_random as randomness
from holdfast.state.loaders import open_position
from holdfast.state.sampler import Permutation, Sampler
from holdfast.state.seeding import seeded

from .loaders_support import Noisy, Numbers, checkpoint, fresh, interrupted, resumed, seed_all, stored, train, whole

DATA = Numbers()


@given(size=st.integers(0, 300), key=st.binary(max_size=8))
def test_a_permutation_holds_every_number_once(size, key):
    assert sorted(Permutation(size, key)(np.arange(size, dtype=np.uint64)).tolist()) == list(range(size))


def test_any_position_of_a_huge_permutation_costs_no_memory():
    order = Permutation(2**60, b"x")
    assert all(0 <= found < 2**60 for found in order(np.array([0, 1, 2**59, 2**60 - 1], dtype=np.uint64)).tolist())


def test_an_order_never_changes_between_versions():
    """Golden: a checkpoint's cursor means the same samples for ever."""
    sampler = Sampler(10, seed=42)
    assert list(sampler) == [1, 7, 8, 0, 9, 3, 4, 6, 2, 5]


def test_orders_are_evenly_spread():
    """Every element is first about as often as every other: chi-square of 6 elements over 6,000 orders."""
    firsts = collections.Counter()
    for epoch in range(6000):
        firsts.update(Permutation(6, f"0/{epoch}".encode())(np.zeros(1, dtype=np.uint64)).tolist())
    chi_square = sum((firsts[element] - 1000) ** 2 / 1000 for element in range(6))
    assert chi_square < 20.5  # 0.1 % of fair orders are above, with 5 degrees of freedom


def test_neighbours_do_not_stay_neighbours():
    order = Permutation(10_000, b"k")(np.arange(10_000, dtype=np.uint64)).astype(np.int64)
    assert (np.abs(np.diff(order)) == 1).sum() < 20  # 2 are expected
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        sampler = Sampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_the_global_generators_are_not_drawn_from():
    seed_all(1)
    before = randomness.signature()
    list(Sampler(100))
    assert randomness.signature() == before


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_size": 4, "drop_last": True}, {}])
def test_len_is_what_an_epoch_yields(options):
    for world in (1, 2, 3):
        sampler = Sampler(23, world=world, **options)
        assert len(list(sampler)) == len(sampler)


def test_an_order_can_be_continued_anywhere_at_once():
    sampler = Sampler(2**40, batch_size=2)
    sampler.seek(0, 2**39)
    assert len(next(iter(sampler))) == 2


def loaders():
    return {
        "batch_sampler": lambda: DataLoader(DATA, batch_sampler=Sampler(DATA, batch_size=4)),
        "sampler": lambda: DataLoader(DATA, batch_size=4, sampler=Sampler(DATA)),
        "sampler, drop_last": lambda: DataLoader(DATA, batch_size=4, sampler=Sampler(DATA), drop_last=True),
        "single indices": lambda: DataLoader(DATA, batch_size=None, sampler=Sampler(DATA)),
        "lists as indices": lambda: DataLoader(ListData(), batch_size=None, sampler=Sampler(23, batch_size=4)),
        "2 workers": lambda: DataLoader(DATA, batch_sampler=Sampler(DATA, batch_size=4), num_workers=2),
        "persistent workers": lambda: DataLoader(
            DATA, batch_sampler=Sampler(DATA, batch_size=4), num_workers=2, persistent_workers=True
        ),
        "seeded augmentation": lambda: DataLoader(
            seeded(Noisy()), batch_sampler=Sampler(23, batch_size=4), num_workers=2, persistent_workers=True
        ),
    }


class ListData(Numbers):
    def __getitem__(self, indices):
        return torch.tensor(indices)


@pytest.mark.parametrize("name", loaders())
def test_interruptions_change_nothing(name):
    build = loaders()[name]
    trace = whole(build)
    last = max(line[1] for line in trace)
    assert interrupted(build, [(0, 2), (0, last), (1, 0), (1, 3), (2, 1)]) == trace
    assert fresh(build).strategy == "cursor"


def test_a_seek_draws_no_indices():
    """users-ask 26: constant time, however far."""

    class Watched(Sampler):
        drawn = 0

        def __iter__(self):
            for batch in super().__iter__():
                self.drawn += 1
                yield batch

    sampler = Watched(10**9, batch_size=10)
    position = open_position(DataLoader(range(10**9), batch_sampler=sampler))
    next(position.batches())
    state = position.state()
    state["details"]["cursor"], state["batch"], sampler.drawn = 660_000_000, 66_000_000, 0
    position.load(state)
    position.replay()
    next(position.batches())
    assert sampler.drawn == 1
    assert position.state()["details"]["cursor"] == 660_000_010


class Ranks:
    """All ranks of a job in turn, in lock step."""

    def __init__(self, size, world, batch_size, state=None):
        self.positions = [
            open_position(
                DataLoader(Numbers(size), batch_sampler=Sampler(size, batch_size=batch_size, rank=rank, world=world))
            )
            for rank in range(world)
        ]
        for position in self.positions:
            if state is not None:
                position.load(state)

    def steps(self, count):
        """Samples that the ranks saw in so many steps, or fewer at the end of the epoch."""
        seen = []
        courses = [position.batches() for position in self.positions]
        for _ in range(count):
            batches = [next(course, None) for course in courses]
            assert len({batch is None for batch in batches}) == 1, "ranks end together"
            seen += [number for batch in batches if batch is not None for number in batch.tolist()]
        return seen


@pytest.mark.parametrize("rank", [0, -1])
def test_worlds_of_1_2_4_and_3_see_every_sample_once(rank):
    """users-ask 17, hazards 27: the cursor is in samples and belongs to all ranks."""
    size, state, seen = 99, None, []
    for world, batch_size, steps in [(1, 4, 3), (2, 4, 3), (4, 3, 2), (3, 5, 99)]:
        ranks = Ranks(size, world, batch_size, state)
        seen += ranks.steps(steps)
        state = ranks.positions[rank].state()
    assert sorted(seen) == list(range(size))
    assert (state["epoch"], state["batch"]) == (1, 0)


@given(
    size=st.integers(1, 120),
    parts=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4)), max_size=4),
)
def test_whatever_the_worlds_nothing_is_repeated_and_less_than_a_world_is_lost(size, parts):
    sampler_state, seen = 0, []
    for world, batch_size, steps in [*parts, (3, 4, 99)]:
        after = []
        for rank in range(world):
            sampler = Sampler(size, batch_size=batch_size, rank=rank, world=world)
            sampler.seek(0, sampler_state)
            batches = list(sampler)[:steps]
            seen += [number for batch in batches for number in batch]
            after.append(sampler.cursor_after(len(batches)))
        assert len(set(after)) == 1
        sampler_state = after[0]
    assert len(seen) == len(set(seen))
    # A world can end its epoch by a batch that is not full, once; what the last world leaves is under its size.
    assert size - len(seen) < max([world for world, *_ in parts] + [3])


def test_another_order_is_refused():
    build = loaders()["sampler"]
    position = fresh(build)
    train(position, epochs=1, until=(0, 2))
    state, _ = checkpoint(position)
    with pytest.raises(errors.StateMismatch, match="seed was 0 and is 1"):
        open_position(DataLoader(DATA, batch_size=4, sampler=Sampler(DATA, seed=1))).load(state)
    with pytest.raises(errors.StateMismatch, match="dataset length was 23 and is 9"):
        open_position(DataLoader(Numbers(9), batch_size=4, sampler=Sampler(9))).load(state)


def test_a_later_epoch_is_whole_after_a_resume_within_one():
    """users-ask 7: epochs shortened after resuming mid-epoch."""
    build = loaders()["batch_sampler"]
    position = fresh(build)
    train(position, epochs=2, until=(0, 3))
    again = resumed(build, *checkpoint(position))
    lengths = [sum(1 for _ in again.batches()) for _ in range(3)]
    assert lengths == [3, 6, 6]


@pytest.mark.parametrize("kind", ["batch_sampler", "sampler"])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("then", "now", "world"), [(2, 4, 1), (4, 2, 1), (4, 3, 2)])
def test_an_epoch_has_ended_when_its_samples_have_whatever_the_batches(kind, drop_last, then, now, world):
    def opened(batch_size, ranks=1):
        if kind == "batch_sampler":
            own = Sampler(DATA, batch_size=batch_size, drop_last=drop_last, world=ranks)
            return open_position(DataLoader(DATA, batch_sampler=own))
        own = Sampler(DATA, world=ranks)
        return open_position(DataLoader(DATA, batch_size=batch_size, sampler=own, drop_last=drop_last))

    position = opened(then)
    train(position, epochs=1, until=(0, 3))
    again = opened(now, world)
    again.load(stored(position.state()))
    ends = []
    for _ in range(2):
        lengths = [(again.batch, again.length) for _ in again.batches()]
        ends.append(([length for _, length in lengths], lengths[-1]))
    for lengths, (batch, length) in ends:
        assert set(lengths) == {batch}
        assert batch == length
    assert again.length == len(again.loader)


def test_impossible_samplers_are_refused():
    for options in ({"rank": 2, "world": 2}, {"rank": -1}, {"batch_size": 0}):
        with pytest.raises(errors.InvalidInput):
            Sampler(10, **options)
    with pytest.raises(errors.InvalidInput):
        Sampler(-1)
    with pytest.raises(errors.InvalidInput):
        Sampler(10).seek(0, 11)


def test_a_sampler_can_be_pickled():
    sampler = Sampler(10, seed=3)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)
