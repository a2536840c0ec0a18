"""Positions in map-style loaders: found again by drawing indices, without reading a sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from blake3 import blake3
from torch.utils.data import BatchSampler, DataLoader

from holdfast.records import Exactness
from holdfast.state import loaders_random as randomness
from holdfast.state import loaders_samplers as samplers
from holdfast.state.loaders_position import LoaderPosition, Pace, not_repeated
from holdfast.state.loaders_tap import Draws, Tap, index_bytes, seeds_from, tapped
from holdfast.state.sampler import Sampler


class _MapPosition(LoaderPosition):
    """What the positions in map-style loaders share: the tap on their indices."""

    loader: DataLoader[Any]

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(loader)
        self._source: DataLoader[Any] = samplers.innermost(loader)
        sampler = getattr(loader, samplers.slot(loader))
        self._tap = Tap(sampler, self._own)
        self._swap = ExitStack()
        self._kept: bool | None = None
        self._handed: bytes | None = None
        """The indices of the batch at hand."""
        self._draws_ahead: bool | None = None
        """Whether fetching ahead in this process draws from the global generators; None: not seen yet."""

    def close(self) -> None:
        """Lets the loader's iterator go, and gives the loader its own sampler back."""
        super().close()
        self._swap.close()
        self._tap.ready = None
        self._kept = None

    def _begin(self) -> Iterator[Any]:
        self._draw_as_before()
        return self._tapped_iterator()

    def _draw_as_before(self) -> None:
        # A new iterator draws the seed of its workers, a kept one (persistent workers) does not. Where
        # the run of the checkpoint had the other one, all that is drawn later would be off by one.
        kept, self._kept = self._kept, None
        if kept is True and self._source._iterator is None:
            self._swap.enter_context(seeds_from(self._source, randomness.signature()))
        if kept is False and self._source._iterator is not None:
            torch.empty((), dtype=torch.int64).random_(generator=self._source.generator)

    def _boundary(self) -> dict[str, Any]:
        kept = self._kept if self._kept is not None else self._source._iterator is not None
        return {"before": self._own.capture(), "kept": kept}

    def _resume_boundary(self, details: dict[str, Any]) -> None:
        self._own.restore(details["before"])
        self._kept = details["kept"]

    def _begin_at(self, ready: Draws | None, number: int) -> Iterator[Any]:
        """An iterator that goes on from ``ready``; no generator but private ones is drawn from."""
        self._tap.ready = ready
        self._swap.enter_context(seeds_from(self._source, number))
        with randomness.preserved():
            return self._tapped_iterator()

    def _tapped_iterator(self) -> Iterator[Any]:
        self._swap.enter_context(tapped(self._source, self._tap))
        self._tap.asked = False
        self._tap.epoch = self.epoch if self._seeds_samples else None
        try:
            iterator = self._iter()
        except BaseException:
            self._swap.close()
            raise
        self._settle()
        return iterator

    def _settle(self) -> None:
        # Loaders whose __iter__ is a generator function make the real iterator at the first batch.
        if self._tap.asked:
            self._tap.ready = None
            self._swap.close()

    def _take(self) -> Any:
        try:
            batch = self._watched()
        finally:
            self._settle()
        self._handed = self._tap.pending.popleft() if self._tap.pending else None
        return batch

    def _watched(self) -> Any:
        if self.workers or self._seeds_samples or not self._tap.pending:
            return super()._take()
        before = randomness.signature()
        batch = super()._take()
        self._draws_ahead = self._draws_ahead or randomness.signature() != before
        return batch

    def _augmentation(self) -> Exactness:
        rest = samplers.generators(getattr(self.loader.dataset, "dataset", self.loader.dataset))
        if rest:
            return Exactness(exact=False, reason=f"the dataset draws from generators of its own: {', '.join(rest)}")
        if self._seeds_samples:
            return Exactness(exact=True, reason="samples are seeded one by one")
        if self.workers == 0 and self._tap.pending and self._draws_ahead is not False:
            return Exactness(
                exact=False,
                reason="the loader fetches ahead and draws from the global generators; "
                "wrap the dataset with holdfast.seeded",
            )
        if self.workers == 0:
            return Exactness(exact=True, reason="drawn from the global generators, which are restored")
        return Exactness(
            exact=False,
            reason="random augmentation in workers is not repeated; wrap the dataset with holdfast.seeded",
        )


class IndexPosition(_MapPosition):
    """Replays the loader's own indices from the start of the epoch and compares them with what was drawn before."""

    strategy = "indices"
    must_match = frozenset({"dataset_length", "batch_size", "sampler", "world"})

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(loader)
        self._digest = self._earlier = blake3()

    def _begin(self) -> Iterator[Any]:
        self._digest = self._earlier = blake3()
        return super()._begin()

    def _take(self) -> Any:
        batch = super()._take()
        if self._handed is not None:
            self._earlier = self._digest.copy()
            self._digest.update(self._handed)
        return batch

    def _details(self) -> dict[str, Any]:
        if self.batch == 0:
            return self._boundary()
        return {**self._tap.noted, "digest": self._digest.hexdigest()}

    def _details_before(self) -> dict[str, Any]:
        return {**self._tap.noted, "digest": self._earlier.hexdigest()}

    def _resume(self, details: dict[str, Any], pace: Pace) -> None:
        if self.batch == 0:
            self._resume_boundary(details)
            return
        with randomness.preserved():
            draws = self._tap.replayed(details)
            self._digest = _skip(draws, self.batch, pace)
        if self._digest.hexdigest() != details["digest"]:
            raise not_repeated(
                f"its first {self.batch:,} batches of epoch {self.epoch} are others than before the save"
            )
        self._iterator = self._begin_at(draws, randomness.hashed(details["digest"]))

    def _order(self) -> Exactness:
        if self.workers and not getattr(self.loader, "in_order", True):
            return Exactness(exact=False, reason="in_order=False: batches come as they are ready")
        return Exactness(exact=True, reason="the loader's own indices are drawn again and compared")


class CursorPosition(_MapPosition):
    """Seeks a `holdfast.Sampler` to a sample, at once, under any world size, batch size and number of workers."""

    strategy = "cursor"
    must_match = frozenset({"dataset_length", "seed", "shuffle"})

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(loader)
        self._sampler: Sampler = find_sampler(loader)  # type: ignore[assignment]
        self._since = 0

    @property
    def length(self) -> int | None:
        """Batches of the present epoch; behind a resume those of before it, and what was left in those of today."""
        sought = self._iterator is not None and self._since > 0
        return self._since + self._left() if sought else super().length

    def facts(self) -> dict[str, Any]:
        """What describes the loader and the order of its sampler."""
        own = {"seed": self._sampler.seed, "shuffle": self._sampler.shuffle, "world": self._sampler.world}
        return {**super().facts(), **own}

    def _begin(self) -> Iterator[Any]:
        self._since = self.batch
        return super()._begin()

    def _left(self) -> int:
        share = (self._sampler.size - self._sampler.cursor) // self._sampler.world
        batches = self._tap.sampler
        size = batches.batch_size or 1
        return int(share // size if batches.drop_last else -(-share // size))

    def _details(self) -> dict[str, Any]:
        if self.batch == 0:
            return {"cursor": 0, **self._boundary()}
        outer = getattr(self.loader.batch_sampler, "batch_size", None)
        return {"cursor": self._sampler.cursor_after(self.batch - self._since, outer)}

    def _details_before(self) -> dict[str, Any]:
        outer = getattr(self.loader.batch_sampler, "batch_size", None)
        handed = self.batch - 1 - self._since
        return {"cursor": self._sampler.cursor_after(handed, outer)}

    def _resume(self, details: dict[str, Any], pace: Pace) -> None:
        if self.batch == 0:
            self._resume_boundary(details)
        self._sampler.seek(self.epoch, details["cursor"])
        self._since = self.batch
        pace.tell(self.batch)
        if self.batch:
            number = randomness.hashed(self._sampler.seed, self.epoch, details["cursor"])
            self._iterator = self._begin_at(None, number)

    def start_over(self, epoch: int) -> None:
        """Goes to the start of an epoch whatever was loaded."""
        super().start_over(epoch)
        self._sampler.seek(epoch, 0)

    def _order(self) -> Exactness:
        if self.workers and not getattr(self.loader, "in_order", True):
            return Exactness(exact=False, reason="in_order=False: batches come as they are ready")
        return Exactness(exact=True, reason="the sampler is sought to the cursor")


def find_sampler(loader: object) -> Sampler | None:
    """The `holdfast.Sampler` that a loader draws from, directly or through torch's BatchSampler."""
    found = list(samplers.chain(loader).values())
    if found and isinstance(found[0], Sampler):
        return found[0]
    if len(found) == 2 and type(found[0]) is BatchSampler and isinstance(found[1], Sampler):
        return found[1]
    return None


def _skip(draws: Draws, count: int, pace: Pace) -> blake3:
    digest = blake3()
    for number in range(count):
        try:
            digest.update(index_bytes(draws.draw()))
        except StopIteration:
            raise not_repeated(f"its epoch ends after {number:,} batches, before the {count:,} of the save") from None
        if number % 1000 == 999:
            pace.tell(number + 1)
    pace.tell(count)
    return digest
