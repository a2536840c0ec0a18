"""Positions in loaders that keep their own: anything with ``state_dict`` and ``load_state_dict``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from torch.utils.data import DataLoader

from holdfast.errors import StateMismatch
from holdfast.records import Exactness
from holdfast.state import loaders_random as randomness
from holdfast.state import loaders_samplers as samplers
from holdfast.state.loaders_position import LoaderPosition, Pace
from holdfast.state.loaders_tap import seeds_from


class StatefulPosition(LoaderPosition):
    """Stores the loader's own state, taken after the batches that were handed out.

    As with `ReadingPosition`, what the loader draws in this process comes from a
    private stream per epoch, because making its iterator at a resume draws
    more than going on did.
    """

    strategy = "stateful"
    must_match = frozenset({"workers", "dataset_length", "batch_size", "sampler", "world"})

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._seed = 0
        self._stream = randomness.Stream(0)
        self._touched = False
        self._pending: dict[str, Any] | None = None

    def close(self) -> None:
        """Lets the loader's iterator go, and a state that it has not taken over yet."""
        super().close()
        self._pending = None

    def start_over(self, epoch: int) -> None:
        """Goes to the start of an epoch whatever was loaded."""
        super().start_over(epoch)
        self._touched = False

    @property
    def lost(self) -> bool:
        """Whether a fetch has failed: the loader counts on before it reads, and may have drawn."""
        return self._fetching and (self.batch > 0 or self._start is None)

    def _begin(self) -> Iterator[Any]:
        self._open_stream(randomness.entropy())
        return self._made()

    def _take(self) -> Any:
        with self._stream:
            return super()._take()

    def _details(self) -> dict[str, Any]:
        if self._iterator is None and self._pending is not None:
            return {"loader": self._pending, "own": self._own.capture()}
        # Before the first iterator, state_dict() would make one: it starts workers and draws numbers.
        if not self._touched or (self.batch == 0 and not self._carries_over):
            return {"loader": None, "own": self._own.capture()}
        found: dict[str, Any] = {"loader": copy.deepcopy(self.loader.state_dict()), "own": self._own.capture()}
        if self._iterator is not None:
            found.update(seed=self._seed, stream=self._stream.state())
        return found

    def _details_at_start(self) -> dict[str, Any] | None:
        # Asking the loader for its state copies all of it, which nobody wants before every batch; here it is not asked.
        return self._details() if not self._touched or not self._carries_over else None

    def _resume(self, details: dict[str, Any], pace: Pace) -> None:
        self._own.restore(details["own"])
        self._pending = details["loader"]
        self._touched = self._pending is not None
        if self._pending is None and isinstance(self.loader, DataLoader):
            samplers.innermost(self.loader)._iterator = None
        pace.tell(self.batch)
        if self.batch and "seed" in details:
            self._open_stream(details["seed"])
            self._iterator = self._made()
            self._stream.load(details["stream"])

    @property
    def _carries_over(self) -> bool:
        # Loading the state of a finished epoch draws its order once more, so it is done only for what
        # `OwnState` does not hold.
        parts = [*samplers.chain(self.loader).values(), getattr(self.loader, "dataset", None)]
        stateful = not samplers.is_map_style(self.loader) or any(hasattr(part, "state_dict") for part in parts)
        # A kept iterator asks its sampler once, a new one twice; only the loader itself can even that out.
        return stateful or self._keeps_workers

    def _open_stream(self, seed: int) -> None:
        self._seed, self._stream = seed, randomness.Stream(seed)

    def _made(self) -> Iterator[Any]:
        torch_loader = isinstance(self.loader, DataLoader)
        with self._stream, seeds_from(samplers.innermost(self.loader), self._seed) if torch_loader else nullcontext():
            if self._pending is not None:
                self._load_loader(self._pending)
            made = self._iter()
        self._pending, self._touched = None, True
        return made

    def _load_loader(self, state: dict[str, Any]) -> None:
        try:
            self.loader.load_state_dict(copy.deepcopy(state))
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            raise StateMismatch(
                f"{type(self.loader).__name__} refused the state that it stored: {str(error) or type(error).__name__}; "
                "use the loader that the run was saved with, or start the epoch over with on_mismatch='restart-epoch'"
            ) from error

    def _order(self) -> Exactness:
        if self.workers and not getattr(self.loader, "in_order", True):
            return Exactness(exact=False, reason="in_order=False: batches come as they are ready")
        chain = list(samplers.chain(self.loader).values())
        # Behind torchdata's own BatchSampler any sampler is drawn again when the loader takes its state over,
        # but kept workers take over the state of a finished epoch too, which draws once too often.
        for sampler in chain if self._keeps_workers else chain[:1]:
            if not _resumable(sampler):
                reason = f"{type(sampler).__name__} has no state_dict and is read from its start"
                return Exactness(exact=False, reason=reason)
        return Exactness(exact=True, reason="the loader keeps its own position")

    @property
    def _keeps_workers(self) -> bool:
        return bool(getattr(self.loader, "persistent_workers", False))

    def _augmentation(self) -> Exactness:
        if self._seeds_samples and self._keeps_workers:
            return Exactness(exact=False, reason="persistent workers do not learn the epoch of a stateful loader")
        if self._seeds_samples:
            return Exactness(exact=True, reason="samples are seeded one by one")
        if self.workers == 0:
            return Exactness(exact=True, reason="drawn from a stream that is restored")
        return Exactness(
            exact=False,
            reason="random augmentation in workers is not repeated; wrap the dataset with holdfast.seeded",
        )


def _resumable(sampler: Any) -> bool:
    return hasattr(sampler, "state_dict") or type(sampler).__name__ in {
        "BatchSampler",
        "SequentialSampler",
        "RandomSampler",
    }
