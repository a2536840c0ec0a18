"""`seeded`: randomness of a sample is a function of (seed, epoch, index)."""

import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from holdfast import errors
from holdfast.state import loaders_random as randomness
from holdfast.state.seeding import Index, seeded, with_epoch, worker_init

from .loaders_support import Noisy, Numbers, Stream, seed_all, stored


def same(one, other):
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_a_sample_is_a_function_of_seed_epoch_and_index():
    data = seeded(Noisy(), seed=1)
    first = data[Index(3, 2)]
    seed_all(77)
    assert same(data[Index(3, 2)], first)
    others = [data[Index(4, 2)], data[Index(3, 1)], seeded(Noisy(), seed=2)[Index(3, 2)]]
    assert not any(same(other[1:], first[1:]) for other in others)


def test_all_three_generators_are_seeded():
    one, other = seeded(Noisy())[Index(3, 0)], seeded(Noisy())[Index(3, 1)]
    assert (one[1:] != other[1:]).all()


def test_the_training_draws_as_if_nothing_had_been_seeded():
    seed_all(1)
    np.random.randn()  # leaves the second normal number of a pair behind
    before = randomness.signature()
    seeded(Noisy())[3]
    assert randomness.signature() == before


def test_the_training_draws_on_after_an_error_in_a_sample():
    class Broken(Numbers):
        def __getitem__(self, index):
            random.random()
            raise RuntimeError("broken sample")

    before = randomness.signature()
    with pytest.raises(RuntimeError, match="broken sample"):
        seeded(Broken())[0]
    assert randomness.signature() == before


def test_plain_indices_have_the_epoch_that_was_set():
    data = seeded(Noisy())
    data.set_epoch(4)
    assert same(data[5], data[Index(5, 4)])


def test_set_epoch_reaches_the_dataset():
    class Told(Numbers):
        def set_epoch(self, epoch):
            self.epoch_told = epoch

    inner = Told()
    seeded(inner).set_epoch(3)
    assert inner.epoch_told == 3


def test_a_batched_dataset_is_asked_for_batches():
    class Batched(Numbers):
        def __getitems__(self, indices):
            assert all(type(index) is int for index in indices)
            return [(index, random.random()) for index in indices]

    data = seeded(Batched())
    batch = with_epoch([1, 2], 3)
    assert data.__getitems__(batch) == data.__getitems__(batch)
    assert data.__getitems__(batch) != data.__getitems__(with_epoch([1, 2], 4))


def test_without_batches_each_sample_of_a_batch_is_seeded():
    data = seeded(Noisy())
    assert same(data.__getitems__(with_epoch([7, 8], 1))[1], data[Index(8, 1)])


def test_subsets_can_be_seeded():
    loader = DataLoader(seeded(Subset(Noisy(), [3, 5, 7])), batch_size=3)
    (first,), (again,) = list(loader), list(loader)
    assert same(first, again)


def test_length_and_attributes_are_the_dataset_s():
    data = seeded(Numbers(9))
    assert (len(data), data.size) == (9, 9)
    with pytest.raises(AttributeError):
        data.nothing  # noqa: B018


def test_it_can_be_pickled_for_spawned_workers():
    data = pickle.loads(pickle.dumps(seeded(Noisy(), seed=4)))
    assert same(data[Index(1, 1)], seeded(Noisy(), seed=4)[Index(1, 1)])


SPAWNED = """
import random, sys
from torch.utils.data import DataLoader
from holdfast.state.seeding import seeded

class Noise:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index, random.random()

if __name__ == "__main__":
    spawned = DataLoader(seeded(Noise()), num_workers=1, multiprocessing_context="spawn")
    assert [str(batch) for batch in spawned] == [str(batch) for batch in DataLoader(seeded(Noise()))]
    print("same")
"""


def test_spawned_workers_make_the_same_samples(tmp_path):
    (tmp_path / "spawned.py").write_text(SPAWNED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, tmp_path / "spawned.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "same\n", done.stderr


def test_iterable_datasets_are_refused():
    with pytest.raises(errors.InvalidInput, match="Stream has no indices"):
        seeded(Stream())


def test_an_index_keeps_its_epoch_on_the_way_to_a_worker():
    found = pickle.loads(pickle.dumps(Index(5, 2)))
    assert (found, found.epoch) == (5, 2)


@pytest.mark.parametrize(
    "indices",
    [3, [1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), np.int64(3), torch.tensor(3), [np.int64(1)], range(2)],
)
def test_integers_of_any_kind_carry_the_epoch(indices):
    found = with_epoch(indices, 9)
    single = isinstance(found, Index)
    assert all(type(index) is Index and index.epoch == 9 for index in ([found] if single else found))
    assert ([int(found)] if single else [int(index) for index in found]) == np.atleast_1d(indices).tolist()


@pytest.mark.parametrize("indices", ["ab", ["a", "b"], {"a": 1}, [(1, 2)], None])
def test_other_indices_stay_as_they_are(indices):
    assert with_epoch(indices, 1) is indices


def test_worker_init_gives_each_worker_numbers_of_its_own():
    def drawn(worker):
        torch.manual_seed(5)
        worker_init(worker)
        return random.random(), np.random.rand(), torch.rand(()).item()

    with randomness.preserved():
        assert drawn(0) == drawn(0)
        assert all(one != other for one, other in zip(drawn(0), drawn(1), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: random.Random(3),
        lambda: np.random.RandomState(3),
        lambda: np.random.default_rng(3),
        lambda: np.random.Generator(np.random.MT19937(3)),
        lambda: np.random.Generator(np.random.SFC64(3)),
        lambda: np.random.Generator(np.random.Philox(3)),
        lambda: torch.Generator().manual_seed(3),
    ],
)
def test_owned_generators_are_captured(make):
    def draw(generator):
        if isinstance(generator, torch.Generator):
            return torch.randn(3, generator=generator).tolist()
        return [generator.gauss(0, 1) if isinstance(generator, random.Random) else generator.normal() for _ in range(3)]

    generator = make()
    draw(generator)
    state = stored(randomness.generator_state(generator))
    drawn = draw(generator)
    other = make()
    randomness.set_generator_state(other, state)
    assert draw(other) == drawn
