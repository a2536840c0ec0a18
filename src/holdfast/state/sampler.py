"""`Sampler`: one order for all ranks, and a cursor in samples, so that any world size goes on where another stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch.utils.data
from blake3 import blake3

from holdfast.errors import InvalidInput

_ROUNDS = 8
_BLOCK = 4096

Positions = np.ndarray[Any, np.dtype[np.uint64]]


class Permutation:
    """A pseudo-random order of ``range(size)``, computed where it is asked for: no memory, any position at once.

    An a x b Feistel network with cycle walking (Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains", CT-RSA 2002, method FE[r, a, b]); the round function
    is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, in Stafford's
    variant 13). Only integer arithmetic, so the order is the same on every machine
    and in every version.

    Example:
        >>> order = Permutation(10, b"seed")
        >>> sorted(order(np.arange(10, dtype=np.uint64)).tolist()) == list(range(10))
        True
    """

    def __init__(self, size: int, key: bytes) -> None:
        self.size = size
        self._rows = max(1, int(np.ceil(np.sqrt(size))))
        self._columns = max(1, -(-size // self._rows))
        self._keys = np.frombuffer(blake3(key).digest(length=8 * _ROUNDS), dtype="<u8").astype(np.uint64)

    def __call__(self, positions: Positions) -> Positions:
        """The elements at these positions, each under ``size``."""
        found = self._encipher(positions)
        # The network permutes rows * columns >= size numbers; whoever lands outside walks on.
        while (outside := found >= self.size).any():
            found[outside] = self._encipher(found[outside])
        return found

    def _encipher(self, numbers: Positions) -> Positions:
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        left, right = numbers % rows, numbers // rows
        for number, key in enumerate(self._keys):
            side = columns if number % 2 else rows
            left, right = right, (left + _mix(right ^ key) % side) % side
        return rows * right + left  # so for an even number of rounds


class Sampler(torch.utils.data.Sampler[Any]):
    """Indices in one order for all ranks, seekable at once, independent of the world size.

    Sample ``cursor + rank + i * world`` of the epoch's order goes to this rank. The
    order depends on ``seed`` and epoch only, so a checkpoint holds a cursor in
    samples, and a run goes on with another number of ranks or another batch size
    without losing or repeating a sample. All ranks get the same number of samples:
    the last ``remaining % world`` ones of an epoch (fewer than ``world``) are left
    out; which those are differs from epoch to epoch.

    Give it to a loader as ``batch_sampler`` with a ``batch_size``, or as ``sampler``
    without one. Not thread-safe.

    Args:
        dataset: The dataset, or its length.
        seed: The same on all ranks.
        shuffle: False gives the dataset's own order.
        batch_size: Samples of this rank per batch; None yields single indices.
        drop_last: Whether a last batch that is not full is left out.
        rank: Number of this rank.
        world: How many ranks share the order.

    Raises:
        InvalidInput: a size, rank or world that cannot be.

    Example:
        >>> two = [Sampler(10, batch_size=2, shuffle=False, rank=rank, world=2) for rank in (0, 1)]
        >>> [list(sampler) for sampler in two]
        [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]
    """

    def __init__(
        self,
        dataset: Sized | int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        batch_size: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.size = dataset if isinstance(dataset, int) else len(dataset)
        _check(self.size, batch_size, rank, world)
        self.seed, self.shuffle = seed, shuffle
        self.batch_size, self.drop_last = batch_size, drop_last
        self.rank, self.world = rank, world
        self.epoch = 0
        self.cursor = 0
        """Samples of the epoch, over all ranks, that come before the next iteration."""

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; does nothing when it is the present one."""
        if epoch != self.epoch:
            self.epoch, self.cursor = epoch, 0

    def seek(self, epoch: int, cursor: int) -> None:
        """The next iteration starts at this sample of this epoch, in constant time.

        Raises:
            InvalidInput: the cursor is outside of the epoch.
        """
        if not 0 <= cursor <= self.size:
            raise InvalidInput(f"cursor {cursor} is outside of an epoch of {self.size} samples")
        self.epoch, self.cursor = epoch, cursor

    def cursor_after(self, batches: int, batch_size: int | None = None) -> int:
        """The cursor when each rank has taken this many batches since the start of the iteration."""
        taken = batches * (batch_size or self.batch_size or 1) * self.world
        return min(self.size, self.cursor + taken)

    def __iter__(self) -> Iterator[Any]:
        order = Permutation(self.size, f"{self.seed}/{self.epoch}".encode()) if self.shuffle else None
        indices = self._indices(order, self.cursor, (self.size - self.cursor) // self.world)
        return indices if self.batch_size is None else self._batched(indices, self.batch_size)

    def __len__(self) -> int:
        """What a whole epoch yields on this rank, wherever the cursor stands."""
        share = self.size // self.world
        if self.batch_size is None:
            return share
        return share // self.batch_size if self.drop_last else -(-share // self.batch_size)

    def _indices(self, order: Permutation | None, cursor: int, count: int) -> Iterator[int]:
        for start in range(0, count, _BLOCK):
            steps = np.arange(start, min(count, start + _BLOCK), dtype=np.uint64)
            positions = steps * np.uint64(self.world) + np.uint64(cursor + self.rank)
            yield from (order(positions) if order else positions).tolist()

    def _batched(self, indices: Iterator[int], size: int) -> Iterator[list[int]]:
        while batch := list(islice(indices, size)):
            if len(batch) == size or not self.drop_last:
                yield batch


def _check(size: int, batch_size: int | None, rank: int, world: int) -> None:
    if size < 0:
        raise InvalidInput(f"a dataset has 0 samples or more, not {size}")
    if batch_size is not None and batch_size < 1:
        raise InvalidInput(f"batch_size is at least 1, not {batch_size}; None yields single indices")
    if not 0 <= rank < world:
        raise InvalidInput(f"rank {rank} is not in a world of {world}; ranks count from 0")


def _mix(words: Positions) -> Positions:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
