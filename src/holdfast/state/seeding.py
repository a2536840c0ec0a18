"""Randomness of single samples as a pure function of (seed, epoch, index), whoever loads them and when."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from holdfast.errors import InvalidInput
from holdfast.state import loaders_random as randomness


class _MapStyle(Protocol):
    def __getitem__(self, index: Any, /) -> Any: ...


class Index(int):
    """An index that knows its epoch: it reaches the dataset in whichever worker, persistent ones too.

    Example:
        >>> Index(7, 2), Index(7, 2) == 7, Index(7, 2).epoch
        (7, True, 2)
    """

    epoch: int

    def __new__(cls, index: int, epoch: int) -> Index:
        """An index of this epoch."""
        made = super().__new__(cls, index)
        made.epoch = epoch
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (int(self), self.epoch)


def with_epoch(indices: Any, epoch: int) -> Any:
    """An index, or a batch of them, as `Index`; what holds no integers comes back as it is."""
    try:
        if isinstance(indices, tuple):
            return tuple(_index(one, epoch) for one in indices)
        if hasattr(indices, "__index__") and not getattr(indices, "ndim", 0):
            return _index(indices, epoch)
        return indices if isinstance(indices, str | bytes | dict) else [_index(one, epoch) for one in indices]
    except TypeError:
        return indices


class Seeded(Dataset[Any]):
    """A dataset whose samples draw the same random numbers each time an epoch asks for them; see `seeded`."""

    def __init__(self, dataset: _MapStyle, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of plain indices; a loader that holdfast iterates gives each index its own."""
        self.epoch = epoch
        inner = getattr(self.dataset, "set_epoch", None)
        if callable(inner):
            inner(epoch)

    def __getitem__(self, index: Any) -> Any:
        with _put_back():
            return self._sample(index)

    def __getitems__(self, indices: Sequence[Any]) -> Any:
        inner = getattr(self.dataset, "__getitems__", None)
        with _put_back():
            if not callable(inner):
                return [self._sample(index) for index in indices]
            randomness.seed(randomness.hashed(*map(self._number, indices)))
            return inner([_plain(index) for index in indices])

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # Without the guard, unpickling would look for ``dataset`` before it exists, for ever.
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _sample(self, index: Any) -> Any:
        randomness.seed(self._number(index))
        return self.dataset[_plain(index)]

    def _number(self, index: Any) -> int:
        return randomness.hashed(self.seed, getattr(index, "epoch", self.epoch), repr(_plain(index)))


def seeded(dataset: _MapStyle, seed: int = 0) -> Seeded:
    """The dataset, with random augmentation that resumes bit for bit under any number of workers.

    Before a sample is made, Python's ``random``, NumPy's legacy generator and torch's
    CPU generator are seeded from (seed, epoch, index). In the training process they
    are put back afterwards, so the training draws what it would have drawn. Where the
    dataset has ``__getitems__``, a batch is seeded as one, from all of its indices.

    It must be the outermost wrapper of the dataset. Generators that the dataset owns
    (``self.rng = np.random.default_rng()``) are not seeded. Attributes of the dataset
    are found on the wrapper too. Can be pickled when the dataset can.

    Raises:
        InvalidInput: the dataset has no ``__getitem__``, so its samples have no index.

    Example:
        >>> import random
        >>> class Noisy:
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, index):
        ...         return random.random()
        >>> data = seeded(Noisy(), seed=1)
        >>> data[Index(2, epoch=5)] == data[Index(2, epoch=5)], data[Index(2, epoch=5)] == data[Index(2, epoch=6)]
        (True, False)
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise InvalidInput(
            f"{type(dataset).__name__} has no indices to seed from; seeded() is for datasets with __getitem__"
        )
    return Seeded(dataset, seed)


def worker_init(worker: int) -> None:
    """A ``worker_init_fn`` for loops of one's own: all three CPU generators of a worker from torch's worker seed.

    With `seeded` datasets it is not needed. For loops of one's own call ``set_epoch`` on
    those before each epoch, and do not keep workers over epochs.
    """
    randomness.seed(randomness.hashed("worker", torch.initial_seed(), worker))


def _put_back() -> AbstractContextManager[None]:
    # A worker has nothing to put back, and putting back costs more than seeding.
    return randomness.preserved() if get_worker_info() is None else nullcontext()


def _index(value: Any, epoch: int) -> Index:
    return Index(operator.index(value), epoch)


def _plain(index: Any) -> Any:
    return int(index) if isinstance(index, Index) else index
