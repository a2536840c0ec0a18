"""Positions in sequences of batches, and in iterables that can only be read again from their start."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from holdfast.records import Exactness
from holdfast.state import loaders_random as randomness
from holdfast.state.loaders_position import LoaderPosition, Pace, not_repeated

logger = logging.getLogger(__name__)

_GLIMPSE = 16


class SequencePosition(LoaderPosition):
    """Goes to a batch of a list or tuple by its number, and compares a glimpse of those before it.

    That is done when the next one is taken, and only said: until then the program may put a list in order that it
    shuffles in place. What is neither list nor tuple may read or draw for every batch, and is not compared.
    """

    strategy = "sequence"
    must_match = frozenset({"dataset_length"})
    loader: Sequence[Any]

    def __init__(self, loader: Sequence[Any]) -> None:
        super().__init__(loader)
        self._glimpses = isinstance(loader, list | tuple)
        self._digest = self._earlier = blake3()
        self._sought: dict[str, Any] | None = None
        """What was stored of a place that no batch was taken from yet."""
        self._differs = False

    def _begin(self) -> Iterator[Any]:
        self._digest = self._earlier = blake3()
        self._sought, self._differs = None, False
        return iter(self.loader)

    def _take(self) -> Any:
        if self._sought is not None and self.batch < len(self.loader):
            self._compare(self._sought.get("digest"))
        batch = super()._take()
        self._earlier = self._digest.copy()
        if self._glimpses:
            self._digest.update(glimpse(batch))
        return batch

    def _compare(self, stored: str | None) -> None:
        self._sought = None
        for batch in self.loader[: self.batch] if self._glimpses else ():
            self._digest.update(glimpse(batch))
        self._differs = self._glimpses and stored not in (None, self._digest.hexdigest())
        if self._differs:
            logger.warning(
                "the first %d batches of epoch %d are others than before the save, so those after them may be, too; "
                "shuffle a list by the number of the epoch, or give a DataLoader",
                self.batch,
                self.epoch,
            )

    def _details(self) -> dict[str, Any]:
        return self._told(self._digest) if self._sought is None or not self.batch else self._sought

    def _details_before(self) -> dict[str, Any]:
        return self._told(self._earlier)

    def _told(self, digest: blake3) -> dict[str, Any]:
        return {"digest": digest.hexdigest()} if self._glimpses and self.batch else {}

    def _resume(self, details: dict[str, Any], pace: Pace) -> None:
        self._digest, self._sought, self._differs = blake3(), details, False
        self._iterator = (self.loader[number] for number in range(self.batch, len(self.loader)))
        pace.tell(self.batch)

    def _order(self) -> Exactness:
        if self._differs:
            return Exactness(exact=False, reason="the list was in another order before a resume in this epoch")
        return Exactness(exact=True, reason="batches are taken by their number")

    def _augmentation(self) -> Exactness:
        return Exactness(exact=True, reason="the batches are ready-made")


class ReadingPosition(LoaderPosition):
    """Reads an iterable from its start, throws away what was handed out before, and compares a glimpse of each batch.

    What the iterable draws in this process comes from a private stream of random
    numbers per epoch, so that reading it again, without the training in between,
    draws the same.
    """

    strategy = "reading"
    must_match = frozenset({"batch_size", "workers", "world"})

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._origin: dict[str, Any] = {}
        self._stream = randomness.Stream(0)
        self._digest = self._earlier = blake3()

    def _begin(self) -> Iterator[Any]:
        return self._from_origin({"seed": randomness.entropy(), **self._own.capture()})

    def _from_origin(self, origin: dict[str, Any]) -> Iterator[Any]:
        self._origin, self._digest = origin, blake3()
        self._own.restore(origin)
        self._stream = randomness.Stream(origin["seed"])
        with self._stream:
            return self._iter()

    def _take(self) -> Any:
        with self._stream:
            batch = super()._take()
        self._earlier = self._digest.copy()
        self._digest.update(glimpse(batch))
        return batch

    def _details(self) -> dict[str, Any]:
        if self.batch == 0:
            return {"before": self._own.capture()}
        return {"origin": self._origin, "digest": self._digest.hexdigest()}

    def _details_before(self) -> dict[str, Any]:
        return {"origin": self._origin, "digest": self._earlier.hexdigest()}

    def _resume(self, details: dict[str, Any], pace: Pace) -> None:
        if self.batch == 0:
            self._own.restore(details["before"])
            return
        self._iterator = self._from_origin(details["origin"])
        self._throw_away(pace)
        if self._digest.hexdigest() != details["digest"]:
            self._iterator = None
            raise not_repeated(
                f"its first {self.batch:,} batches of epoch {self.epoch} are others than before the save"
            )

    def _throw_away(self, pace: Pace) -> None:
        for done in range(1, self.batch + 1):
            if next(islice(self._taken(), 1), None) is None:
                self._iterator = None
                raise not_repeated(f"it ends after {done - 1:,} batches, before the {self.batch:,} of the save")
            pace.tell(done)

    def _taken(self) -> Iterator[tuple[Any]]:
        while True:
            try:
                yield (self._take(),)
            except StopIteration:
                return

    def _order(self) -> Exactness:
        return Exactness(
            exact=False,
            reason="it is read again from the start of the epoch: exact if it then gives the same, "
            "which a glimpse of every batch tells",
        )

    def _augmentation(self) -> Exactness:
        if self.workers and getattr(self.loader, "persistent_workers", False) and self.epoch:
            return Exactness(exact=False, reason="persistent workers go on with the random numbers of earlier epochs")
        return Exactness(exact=True, reason="it is read again with the random numbers of the epoch's start")


def glimpse(batch: Any) -> bytes:
    """Some bytes that tell batches apart without reading all of them, or waiting for an accelerator."""
    if isinstance(batch, torch.Tensor):
        return _tensor_glimpse(batch)
    if isinstance(batch, np.ndarray):
        return f"{batch.dtype}{batch.shape}{batch.reshape(-1)[:_GLIMPSE].tolist()}".encode()
    if isinstance(batch, dict):
        return b"{" + b",".join(repr(key).encode() + glimpse(batch[key]) for key in islice(batch, _GLIMPSE)) + b"}"
    if isinstance(batch, list | tuple):
        return b"[%d:" % len(batch) + b",".join(map(glimpse, batch[:_GLIMPSE])) + b"]"
    if isinstance(batch, str | bytes | bool | int | float | complex | None):
        return repr(batch[:1000] if isinstance(batch, str | bytes) else batch).encode()
    return type(batch).__name__.encode()


def _tensor_glimpse(tensor: torch.Tensor) -> bytes:
    about = f"{tensor.dtype}{tuple(tensor.shape)}"
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_quantized:
        return about.encode()
    return f"{about}{tensor.detach().reshape(-1)[:_GLIMPSE].tolist()}".encode()
