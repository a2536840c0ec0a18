"""Who writes what of the tensors that several ranks hold: every rank works it out by itself, and all agree.

The boxes that the same ranks hold lie in one line, and each of these ranks
writes an equal stretch of it (`holdfast.boxes.shares`). What one rank alone
has, or has without evidence that others have it, too, it writes itself. Small
tensors go whole with everybody's values, for they are put together anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from holdfast.boxes import Box, shares
from holdfast.state.held import Region, Sharing, narrowed, regions_of
from holdfast.trees import Spread, TensorSpec, item_bytes

NOTHING = Spread((), ())


class Replicated(NamedTuple):
    """Tensors that the same ranks hold, all of them bit for bit."""

    ranks: tuple[int, ...]
    places: tuple[int, ...]
    """Positions in the skeleton."""


class Division:
    """What one rank writes of a structure. Immutable.

    Args:
        specs: all tensors, with the boxes that this rank holds.
        sharings: per tensor, who else holds the same.
        rank: this one.
    """

    def __init__(self, specs: Sequence[TensorSpec], sharings: Sequence[Sharing | None], rank: int) -> None:
        self.specs, self.sharings = list(specs), list(sharings)
        self.written = list(specs)
        """The tensors with the boxes that this rank writes."""
        self._keep_first(rank)
        self.replicated = self._divide(rank)

    def _keep_first(self, rank: int) -> None:
        for place, sharing in enumerate(self.sharings):
            if sharing is not None and sharing.first_only and sharing.ranks[0] != rank:
                self.written[place] = _with(self.specs[place], ())

    def _divide(self, rank: int) -> list[Replicated]:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, sharing in enumerate(self.sharings):
            if sharing is not None and not sharing.first_only:
                groups[sharing.ranks].append(place)
        for ranks, places in groups.items():
            self._share([place for place in places if not self.specs[place].inline], ranks, rank)
        return [Replicated(ranks, tuple(places)) for ranks, places in groups.items()]

    def _share(self, places: Sequence[int], ranks: tuple[int, ...], rank: int) -> None:
        line = [(box, item_bytes(self.specs[place].dtype)) for place in places for box in self.specs[place].boxes]
        mine = iter(shares(line, len(ranks), ranks.index(rank)))
        for place in places:
            found = [next(mine) for _ in self.specs[place].boxes]
            self.written[place] = _with(self.specs[place], [box for box in found if box is not None])

    def fits(self, specs: Sequence[TensorSpec], sharings: Sequence[Sharing | None]) -> bool:
        """Whether it is the division of these."""
        return self.specs == specs and self.sharings == sharings

    def tensor(self, place: int, here: Tensor) -> Tensor:
        """What is written of a tensor, of which ``here`` is what is held: a view if that is possible."""
        spec, written = self.specs[place], self.written[place]
        if spec is written:
            return _joined(regions_of(spec, here)) if _scattered(spec) else here
        held = regions_of(spec, here)
        return _joined([_within(held, box) for box in written.boxes]) if written.boxes else here.flatten()[:0]


def _with(spec: TensorSpec, boxes: Sequence[Box]) -> TensorSpec:
    if tuple(boxes) == spec.boxes:
        return spec
    return msgspec.structs.replace(spec, spread=Spread(tuple(boxes), (0,) * len(boxes)) if boxes else NOTHING)


def _scattered(spec: TensorSpec) -> bool:
    """Whether its boxes do not lie one behind the other in the memory that has just them."""
    return spec.spread is not None and len({box.offsets[1:] + box.sizes[1:] for box in spec.boxes}) > 1


def _within(held: Sequence[Region], box: Box) -> Region:
    """The view of a box that lies in one of those that are held."""
    around = next(region for region in held if box in region.box)
    at = [a - b for a, b in zip(box.offsets, around.box.offsets, strict=True)]
    return Region(box, narrowed(around.tensor, at, box.sizes))


def _joined(regions: Sequence[Region]) -> Tensor:
    """Boxes one behind the other; a copy if there are several, which happens to shards that are scattered alone."""
    if len(regions) == 1:
        return regions[0].tensor
    if len({region.box.sizes[1:] for region in regions}) == 1:
        return torch.cat([region.tensor for region in regions])
    return torch.cat([region.tensor.flatten() for region in regions])
