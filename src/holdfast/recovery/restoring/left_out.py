"""Batches that are passed over: those of steps after which the training had to go back.

Where the boundaries lay in the data is remembered for a while, so that the data
of a step can be found again. What is passed over belongs to the line of work,
and so to its checkpoints: a resumed training passes over the same.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from holdfast.health import Skip
from holdfast.state.loaders import LoaderPosition

logger = logging.getLogger(__name__)

REMEMBERED = 20_000
"""Boundaries."""
LOOKED_BACK = 10
"""Boundaries that tell how many batches a step uses."""


class Spot(NamedTuple):
    """The next batch, by its epoch and its number there."""

    epoch: int
    batch: int


class LeftOut(NamedTuple):
    """From one batch to before another one, in the order of the data."""

    first: Spot
    end: Spot
    unit: int = 0
    """Samples of all ranks in one of these batches; 0: as many as at the checkpoint that the training goes on from."""

    def in_batches_of(self, here: Spot, before: int, after: int) -> LeftOut:
        """The same samples, where batches have another size from ``here`` on; what is left out never gets less."""
        if before == after:
            return self._replace(unit=after)

        def moved(spot: Spot, *, up: bool) -> Spot:
            base = here.batch if spot.epoch == here.epoch else 0
            samples = max(0, spot.batch - base) * before
            return Spot(spot.epoch, base + (-(-samples // after) if up else samples // after))

        return LeftOut(moved(self.first, up=False), moved(self.end, up=True), after)

    def plain(self) -> list[int]:
        """As it is stored."""
        return [*self.first, *self.end]


class LeavingOut:
    """One per launch and rank. Not thread-safe.

    Args:
        world: ranks.
    """

    def __init__(self, world: int = 1) -> None:
        self._world = world
        self._position: LoaderPosition | None = None
        self.stretches: list[LeftOut] = []
        """In this line of work."""
        self.passed = 0
        """Batches that were passed over by this launch."""
        self._spots: OrderedDict[int, Spot] = OrderedDict()

    def begin_at(self, step: int, stored: dict[str, Any] | None) -> None:
        """The training goes on from a checkpoint of ``step``, with this position."""
        self.stretches = stretches_of((stored or {}).get("left_out", ()))
        for later in [known for known in self._spots if known > step]:
            del self._spots[later]

    def found(self, position: LoaderPosition, stored: dict[str, Any], then: int, now: int) -> None:
        """The loader was brought to the stored position: its batches may be others than those of the checkpoint.

        Args:
            position: where it is.
            stored: the position of the checkpoint.
            then: ranks that the checkpoint was made by.
            now: ranks.
        """
        before = then * (stored.get("facts", {}).get("batch_size") or 0)
        after = now * (position.facts().get("batch_size") or 0)
        anew = (position.epoch, position.batch) != (stored.get("epoch"), stored.get("batch"))
        units = [one.unit or before for one in self.stretches]
        if not anew and (set(units) <= {after} or (position.strategy == "cursor" and after and all(units))):
            here = Spot(position.epoch, position.batch)
            moved = (one.in_batches_of(here, unit, after) for one, unit in zip(self.stretches, units, strict=True))
            self.stretches = list(dict.fromkeys(moved))
            return
        if not self.stretches:
            return
        logger.warning(
            "the data comes in another order now: %d stretches are not left out any more", len(self.stretches)
        )
        self.stretches = []

    def boundary(self, step: int, position: LoaderPosition | None) -> None:
        """Here the step ``step`` has ended."""
        if position is None:
            return
        self._position = position
        self._spots[step] = Spot(position.epoch, position.batch)
        self._spots.move_to_end(step)
        if len(self._spots) > REMEMBERED:
            self._spots.popitem(last=False)

    def knows(self, step: int) -> bool:
        """Whether it is remembered where this step has ended."""
        return step in self._spots

    def remember(self, step: int, spot: Spot) -> None:
        """Where a step of an earlier process has ended."""
        self._spots[step] = spot
        self._spots.move_to_end(step, last=False)

    def batches_of(self, steps: Skip, target: int) -> LeftOut | None:
        """The data of some steps, as they were made before; what is not remembered begins at the checkpoint.

        Steps that were not made yet are taken to use as many batches as the last ones, of the same epoch.

        Args:
            steps: which.
            target: the step of the checkpoint that the training goes back to.
        """
        first = self._spots.get(steps.first - 1) or self._spots.get(target)
        end = self._spots.get(steps.last) or self._ahead(steps.last)
        return LeftOut(first, end) if first is not None and end is not None and first < end else None

    def _ahead(self, step: int) -> Spot | None:
        if not self._spots or step < (now := next(reversed(self._spots))):
            return None
        here = self._spots[now]
        return Spot(here.epoch, here.batch + (step - now) * self._each(now))

    def _each(self, now: int) -> int:
        """Batches of a step: the least that one of the last has used, for some have passed over others besides."""
        spots = [self._spots.get(step) for step in range(now, now - LOOKED_BACK, -1)]
        pairs = [(one, before) for one, before in pairwise(spots) if one and before and one.epoch == before.epoch]
        return max(1, min((one.batch - before.batch for one, before in pairs), default=1))

    @property
    def unit(self) -> int:
        """Of what `batches_of` gives, as in `LeftOut`; 0: the loader does not say."""
        return 0 if self._position is None else self._world * (self._position.facts().get("batch_size") or 0)

    def leave_out(self, stretches: Iterable[LeftOut]) -> None:
        """From now on these are passed over, too; repeated ones change nothing."""
        self.stretches = list(dict.fromkeys([*self.stretches, *stretches]))

    def passes_over(self, position: LoaderPosition) -> bool:
        """Whether the batch that was just drawn is one of them."""
        here = Spot(position.epoch, position.batch - 1)
        found = any(one.first <= here < one.end for one in self.stretches)
        self.passed += found
        return found

    def stored(self, data: dict[str, Any] | None) -> dict[str, Any] | None:
        """A position, with what is passed over."""
        if data is None or not self.stretches:
            return data
        return {**data, "left_out": [one.plain() for one in self.stretches]}


def stretches_of(stored: Iterable[Iterable[int]], unit: int = 0) -> list[LeftOut]:
    """What `LeftOut.plain` wrote, counted in batches of ``unit``."""
    found = []
    for epoch, batch, end_epoch, end_batch in stored:
        found.append(LeftOut(Spot(epoch, batch), Spot(end_epoch, end_batch), unit))
    return found
