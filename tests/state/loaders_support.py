"""What the tests of loader positions share: noisy data sets, a training that draws, an interruption."""

import json
import random

import numpy as np
import torch
from blake3 import blake3
from torch.utils.data import Dataset, IterableDataset, Sampler

from holdfast import values
from holdfast.state import loaders_random as randomness
from holdfast.state.loaders import open_position


class Numbers(Dataset):
    """Sample i is i."""

    def __init__(self, size=23):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert type(index) is int
        return torch.tensor(index)


class Noisy(Numbers):
    """Sample i is i and a draw from each global generator: a random augmentation."""

    def __getitem__(self, index):
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([index, *noise], dtype=torch.float64)


class Stream(IterableDataset):
    """Draws from the global generators as it goes, like a shuffle buffer."""

    def __init__(self, size=23):
        self.size = size

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(start, self.size, step):
            yield torch.tensor([number, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


class Buckets(Sampler):
    """A batch sampler that draws from the global generators for every batch."""

    def __init__(self, size=23, batch_size=4):
        self.size, self.batch_size = size, batch_size

    def __len__(self):
        return -(-self.size // self.batch_size)

    def __iter__(self):
        left = list(range(self.size))
        while left:
            np.random.shuffle(left)
            random.shuffle(left)
            yield left[: self.batch_size]
            left = left[self.batch_size :]


class Eager(Sampler):
    """Draws in __iter__, and counts its epochs itself."""

    def __init__(self, size=23):
        self.size = size
        self.epoch = 0

    def __len__(self):
        return self.size

    def __iter__(self):
        self.epoch += 1
        order = torch.randperm(self.size).tolist()
        return iter(order[self.epoch :] + order[: self.epoch])


class OwnGenerators(Sampler):
    """Draws from generators of its own, which go on from epoch to epoch."""

    def __init__(self, size=23):
        self.size = size
        self.python = random.Random(3)
        self.numpy = np.random.default_rng(4)
        self.legacy = np.random.RandomState(5)
        self.torch = torch.Generator().manual_seed(6)

    def __len__(self):
        return self.size

    def __iter__(self):
        for _ in range(self.size):
            drawn = self.python.randrange(99) + self.numpy.integers(99) + self.legacy.randint(99)
            yield int(drawn + torch.randint(99, (), generator=self.torch)) % self.size


def seed_all(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def digest(batch):
    return blake3(batch.numpy().tobytes()).hexdigest() if isinstance(batch, torch.Tensor) else repr(batch)


def train(position, *, epochs, until=None):
    """One line per batch: where, what it was, and what the training drew after it (its dropout)."""
    trace = []
    while position.epoch < epochs:
        for batch in position.batches():
            drawn = (random.random(), np.random.randn(), torch.rand(()).item())
            trace.append((position.epoch, position.batch, digest(batch), drawn))
            if until == (position.epoch, position.batch):
                return trace
        if until == (position.epoch, 0):
            return trace
    return trace


def stored(value):
    """As it comes back from a store: tensors copied, everything else through JSON."""
    if isinstance(value, dict):
        return {key: stored(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return value.clone()
    return values.decode(json.loads(json.dumps(values.encode(value))))


def fresh(build):
    seed_all(1)
    return open_position(build())


def resumed(build, state, random_state):
    """What a new process does: builds everything with the same seeds, then takes over the checkpoint."""
    position = fresh(build)
    seed_all(999)
    position.load(state)
    position.replay()
    randomness.restore(random_state)
    return position


def checkpoint(position):
    return stored(position.state()), stored(randomness.capture())


def whole(build, *, epochs=3):
    position = fresh(build)
    trace = train(position, epochs=epochs)
    position.close()
    return trace


def interrupted(build, stops, *, epochs=3, after=None):
    """The trace of a training that is broken off at each stop and taken up again by a new program."""
    position = fresh(build)
    trace = []
    for stop in stops:
        trace += train(position, epochs=epochs, until=stop)
        state, random_state = checkpoint(position)
        position.close()
        position = resumed(after or build, state, random_state)
    trace += train(position, epochs=epochs)
    position.close()
    return trace
