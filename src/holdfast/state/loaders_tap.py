"""Stands in for a loader's index sampler, hands its indices on and remembers how they were drawn."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

from holdfast.state import loaders_random as randomness
from holdfast.state import loaders_samplers as samplers
from holdfast.state.seeding import with_epoch


class Draws:
    """The indices of one epoch, in the sampler's own order.

    The first draw uses the global generators, as without us. A sampler that may draw
    later too does so from a private stream: which of its draws fall between which
    draws of the training would depend on prefetching and could not be replayed.
    """

    def __init__(self, tap: Tap, indices: Iterator[Any]) -> None:
        self._tap = tap
        self._indices = indices
        self._aside: AbstractContextManager[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        indices = self.draw()
        self._tap.pending.append(index_bytes(indices))
        return indices if self._tap.epoch is None else with_epoch(indices, self._tap.epoch)

    def draw(self) -> Any:
        """The next indices as the sampler gives them."""
        if self._aside is None:
            return self._first()
        with self._aside:
            return next(self._indices)

    def _first(self) -> Any:
        self._tap.noted["drawn"] = self._tap.sources()
        indices = next(self._indices)
        quiet = samplers.draws_once(self._tap.sampler)
        self._aside = nullcontext() if quiet else randomness.Stream(randomness.signature())
        return indices


class Tap:
    """The stand-in; transparent unless it has an epoch, which indices then carry to the dataset.

    It refers to no loader and no position: kept workers must end when the last
    reference to their loader is gone, not when a cycle is collected.
    """

    def __init__(self, sampler: Any, own: samplers.OwnState) -> None:
        self.sampler = sampler
        self.epoch: int | None = None
        self.noted: dict[str, Any] = {}
        """Random state when the sampler was asked for an iterator, and when that first drew."""
        self.pending: deque[bytes] = deque()
        """Indices drawn for batches that are not handed out yet."""
        self.ready: Draws | None = None
        """What the next iterators are, when it is not a new one."""
        self.asked = False
        self._own = own

    def __iter__(self) -> Iterator[Any]:
        self.asked = True
        self.pending.clear()
        if self.ready is not None:
            return self.ready
        self.noted["asked"] = self.sources()
        return Draws(self, iter(self.sampler))

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def sources(self) -> dict[str, Any]:
        """All that the sampler can draw from, as plain values and tensors."""
        return {"global": randomness.capture(), **self._own.capture()}

    def replayed(self, noted: dict[str, Any]) -> Draws:
        """The draws of an epoch that began as noted, from its start."""
        self._back_to(noted["asked"])
        draws = Draws(self, iter(self.sampler))
        self._back_to(noted["drawn"])
        self.noted = dict(noted)
        return draws

    def _back_to(self, sources: dict[str, Any]) -> None:
        randomness.restore(sources["global"])
        self._own.restore(sources)


@contextmanager
def tapped(loader: DataLoader[Any], tap: Tap) -> Iterator[None]:
    """Within, iterators of the loader draw from the tap; the loader itself stays what the user made.

    The setter of DataLoader refuses a new sampler, but its iterators read the
    attribute when they are made, and persistent ones keep their own reference.
    """
    name, before = samplers.slot(loader), tap.sampler
    object.__setattr__(loader, name, tap)
    if loader._iterator is not None:
        loader._iterator._index_sampler = tap
    try:
        yield
    finally:
        object.__setattr__(loader, name, before)


@contextmanager
def seeds_from(loader: DataLoader[Any], number: int) -> Iterator[None]:
    """Within, a new iterator draws the seed of its workers from this number, not from anybody's generator."""
    before, loader.generator = loader.generator, torch.Generator().manual_seed(number)
    try:
        yield
    finally:
        loader.generator = before


def index_bytes(indices: Any) -> bytes:
    """An index or a batch of them as bytes, for a digest."""
    try:
        return array("q", indices if isinstance(indices, list) else [indices]).tobytes()
    except (TypeError, OverflowError):
        return repr(indices).encode()
