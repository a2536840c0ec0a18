"""What a position in a loader is: an epoch, and how many of its batches were handed out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from holdfast.errors import InvalidInput, StateMismatch
from holdfast.records import Exactness
from holdfast.state import loaders_samplers as samplers
from holdfast.state.loaders_shield import Shield
from holdfast.state.seeding import Seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How far a replay is; prints as a line for people.

    Example:
        >>> print(Replay(done=250, total=1000, seconds=2.0))
        replayed 250 of 1,000 batches, about 6 s to go
    """

    done: int
    total: int
    seconds: float

    @property
    def remaining(self) -> float:
        """Seconds to go, at the pace so far; 0 before the first batch."""
        return self.seconds / self.done * (self.total - self.done) if self.done else 0.0

    def __str__(self) -> str:
        return f"replayed {self.done:,} of {self.total:,} batches, about {self.remaining:.0f} s to go"


Progress = Callable[[Replay], None]


class Pace:
    """Tells a callback about a replay at its end, and every so many seconds before."""

    def __init__(self, total: int, progress: Progress | None, every: float = 1.0) -> None:
        self._total, self._progress, self._every = total, progress, every
        self._start: float | None = None
        self._told = 0.0

    def tell(self, done: int) -> None:
        """So many batches are replayed."""
        if self._progress is None:
            return
        now = time.monotonic()
        if self._start is None:
            # What comes before the first batch (a permutation of the data set) says nothing of the pace.
            self._start = self._told = now
        if done == self._total or now - self._told >= self._every:
            self._told = now
            self._progress(Replay(done=done, total=self._total, seconds=now - self._start))


class LoaderPosition(ABC):
    """Iterates a loader and knows where it is; made by `open_position`.

    The order of a resume is: `load`, `replay`, then the global random state of the
    boundary, then `batches`. `replay` leaves the global generators as it found them,
    so another order does no harm before `batches`. Not thread-safe.
    """

    strategy: ClassVar[str]
    """How the position is found again: indices, cursor, sequence, reading or stateful."""

    must_match: ClassVar[frozenset[str]] = frozenset()
    """Facts about the loader that may not differ between save and load."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.epoch = 0
        """Epochs completed before the present one."""
        self.batch = 0
        """Batches of this epoch that were handed out."""
        self._iterator: Iterator[Any] | None = None
        self._loaded: dict[str, Any] | None = None
        self._start: dict[str, Any] | None = None
        """Details of before the present epoch was begun."""
        self._fetching = False
        self._own = samplers.OwnState(loader)
        self._shield = Shield(loader)

    @property
    def length(self) -> int | None:
        """Batches of the present epoch, or None where the loader does not know."""
        return samplers.length(self.loader)

    def batches(self) -> Iterator[Any]:
        """The rest of this epoch's batches; at its end the position is at the start of the next epoch.

        Abandoned in the middle and called again, it goes on where it was.

        Raises:
            InvalidInput: the whole epoch gave no batch, so that a loop over epochs would never end.
            StateMismatch: a loaded position could not be found again (see `replay`).
        """
        self.replay()
        self._fetching = True
        if self._iterator is None:
            self._fresh()
        while True:
            self._fetching = True
            try:
                with self._shield.over():
                    batch = self._take()
            except StopIteration:
                break
            self._fetching = False
            self.batch += 1
            yield batch
        self._turn()

    def state(self) -> dict[str, Any]:
        """The position, as plain values and tensors, which nobody may change in place."""
        details = self._details_at_boundary() if self._loaded is None else self._loaded["details"]
        length = self.length if self._loaded is None else self._loaded.get("length")
        return {
            "strategy": self.strategy,
            "epoch": self.epoch,
            "batch": self.batch,
            "length": length,
            "facts": self.facts(),
            "details": details,
        }

    def before(self) -> dict[str, Any] | None:
        """The position before the batch at hand, for a save while nothing has been done with it yet.

        What was drawn from the global generators for that batch is drawn again: their state of before it was fetched
        belongs to this position. None where it cannot be told: without a batch at hand, and for loaders that keep
        their own position and would have to be asked for it before every batch.
        """
        if self.batch == 0 or self._loaded is not None:
            return None
        details = self._start if self.batch == 1 else self._details_before()
        if details is None:
            return None
        return {**self.state(), "batch": self.batch - 1, "details": details}

    @property
    def lost(self) -> bool:
        """Whether a fetch has failed, and `state` cannot tell where the loader was before it."""
        return False

    def load(self, state: dict[str, Any]) -> None:
        """Takes over a position; nothing is drawn or read before `replay` or `batches`.

        Raises:
            StateMismatch: it was saved from another kind of loader; this position is unchanged.
        """
        self._check(state)
        self.close()
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._loaded = state

    def replay(self, progress: Progress | None = None) -> None:
        """Brings the loader to the loaded position; does nothing when there is none to find.

        Raises:
            StateMismatch: the loader does not give again what it gave before the save.
        """
        if self._loaded is None:
            return
        self._own.rewind()
        samplers.set_epoch(self.loader, self.epoch)
        self._resume(self._loaded["details"], Pace(self.batch, progress))
        self._loaded = None

    def start_over(self, epoch: int) -> None:
        """Goes to the start of an epoch whatever was loaded: for data that was changed on purpose."""
        self.close()
        self.epoch, self.batch = epoch, 0

    def close(self) -> None:
        """Lets the loader's iterator go, and with it workers that the loader does not keep."""
        self._shield.lower()
        self._iterator = self._loaded = self._start = None
        self._fetching = False

    def exactness(self) -> dict[str, Exactness]:
        """Whether ``order`` and ``augmentation`` go on bit for bit after a resume here, and why."""
        changed = self._own.changed_elsewhere()
        reason = f"{', '.join(changed)} changes as the sampler goes on, and is not in the checkpoint"
        order = Exactness(exact=False, reason=reason) if changed else self._order()
        return {"order": order, "augmentation": self._augmentation()}

    def facts(self) -> dict[str, Any]:
        """What describes the loader: plain values that are stored and compared."""
        dataset = getattr(self.loader, "dataset", None)
        chain = samplers.chain(self.loader)
        return {
            "loader": type(self.loader).__name__,
            "dataset_length": samplers.length(dataset if dataset is not None else self.loader),
            "batch_size": _batch_size(self.loader),
            "workers": self.workers,
            "sampler": samplers.kind(chain),
            "world": samplers.world_size(chain),
        }

    @property
    def workers(self) -> int:
        """Worker processes of the loader."""
        return int(getattr(self.loader, "num_workers", 0))

    @property
    def _seeds_samples(self) -> bool:
        return isinstance(getattr(self.loader, "dataset", None), Seeded)

    @abstractmethod
    def _begin(self) -> Iterator[Any]:
        """The iterator of an epoch from its start."""

    @abstractmethod
    def _details(self) -> dict[str, Any]:
        """What this strategy stores."""

    def _details_before(self) -> dict[str, Any] | None:
        """As `_details`, one batch earlier, in the middle of an epoch; None where that cannot be told."""
        return None

    def _details_at_start(self) -> dict[str, Any] | None:
        """As `_details`, before an epoch; None where asking costs too much or changes something."""
        return self._details()

    def _details_at_boundary(self) -> dict[str, Any]:
        # The first fetch of an epoch has failed, perhaps, with its order drawn already.
        return self._details() if self.batch or self._start is None else self._start

    @abstractmethod
    def _resume(self, details: dict[str, Any], pace: Pace) -> None:
        """Makes the iterator for the loaded position."""

    @abstractmethod
    def _order(self) -> Exactness: ...

    @abstractmethod
    def _augmentation(self) -> Exactness: ...

    def _iter(self) -> Iterator[Any]:
        with self._shield.making():
            return iter(self.loader)

    def _fresh(self) -> None:
        self._start = self._details_at_start() if self.batch == 0 else None
        samplers.set_epoch(self.loader, self.epoch)
        self._iterator = self._begin()

    def _take(self) -> Any:
        if self._iterator is None:
            raise StopIteration
        return next(self._iterator)

    def _turn(self) -> None:
        if self.batch == 0:
            raise InvalidInput(
                f"{type(self.loader).__name__} gave no batch in epoch {self.epoch}; an iterator or a generator can be "
                "read only once: give something that can be iterated again"
            )
        self._iterator = self._start = None
        self._fetching = False
        self.epoch, self.batch = self.epoch + 1, 0

    def _check(self, state: dict[str, Any]) -> None:
        if state["strategy"] != self.strategy:
            _refuse([f"its position was kept by {state['strategy']}, this loader's is by {self.strategy}"])
        now, then = self.facts(), state["facts"]
        found = [key for key in sorted(self.must_match) if now.get(key) != then.get(key)]
        if found:
            _refuse([f"{key.replace('_', ' ')} was {then.get(key)} and is {now.get(key)}" for key in found])


def _refuse(differences: list[str]) -> NoReturn:
    raise StateMismatch(
        f"the data loader is not the one of the checkpoint: {'; '.join(differences)}; "
        "use the loader that the run was saved with, or start the epoch over with on_mismatch='restart-epoch'"
    )


def not_repeated(what: str) -> StateMismatch:
    """The error for a loader that does not give again what it gave before the save."""
    return StateMismatch(
        f"the data loader does not repeat itself: {what}; the dataset has changed, or its order depends on something "
        "that is not in the checkpoint (a generator or a list of its own without set_epoch); "
        "put it back, or start the epoch over with on_mismatch='restart-epoch'"
    )


def _batch_size(loader: Any) -> int | None:
    size = getattr(loader, "batch_size", None)
    return size if size is not None else getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
