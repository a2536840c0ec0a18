"""Staging memory that devices can write into by themselves: pinned, in a few large pieces.

Pinned are the trained tensors of a layout, never the frozen ones: their pages
are given back between saves, and a device would go on writing into those that
it was told of, which nobody reads any more.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.packs.format import aligned
from holdfast.saver.arena import Layout, placed
from holdfast.saver.memory import Slab
from holdfast.state.streams import Streams
from holdfast.trees import Lifetime

logger = logging.getLogger(__name__)

_PIECE = 4 << 30
"""Bytes that are pinned in one call, at least; each call holds up all else that this process asks of the device."""


class Range(NamedTuple):
    """In the bytes of a slab."""

    start: int
    length: int


def pinned_ranges(layout: Layout, *, piece: int = _PIECE, page: int = mmap.PAGESIZE) -> list[Range]:
    """What of a slot is to be pinned: all trained tensors, cut where a segment begins on a page. Pure.

    CUDA refuses a copy into memory that is pinned in part, so no segment may cross a cut.

    Example:
        >>> from holdfast.trees import TensorSpec
        >>> kinds = Lifetime.PARAMETER, Lifetime.FROZEN
        >>> specs = [TensorSpec(name=str(kind), dtype="uint8", shape=(9000,), lifetime=kind) for kind in kinds]
        >>> pinned_ranges(Layout(tuple(specs)), page=4096)
        [Range(start=0, length=12288)]
    """
    end = aligned(layout.trained, page)
    cuts = [0]
    for start in _segment_starts(layout):
        if start % page == 0 and start - cuts[-1] >= piece:
            cuts.append(start)
    return [Range(a, b - a) for a, b in zip(cuts, [*cuts[1:], end], strict=True) if b > a]


def _segment_starts(layout: Layout) -> list[int]:
    return sorted(
        segment.offset
        for spec, offset in zip(layout.specs, layout.offsets, strict=True)
        if spec.lifetime is not Lifetime.FROZEN
        for segment in placed(spec, offset)
    )


class _Pinned(NamedTuple):
    device: int
    base: int
    ranges: tuple[Range, ...]
    memory: memoryview
    """Keeps the pages mapped for as long as the device may write into them."""


@dataclass(slots=True)
class Pinning:
    """The slabs that are pinned. What is refused once is not tried again: copies then wait, and are slower."""

    streams: Streams
    _pinned: dict[int, _Pinned] = field(default_factory=dict)
    _refused: bool = False

    def pin(self, slab: Slab, ranges: Sequence[Range], device: int) -> bool:
        """Pins ranges of a slab whose memory is set aside, and no others of it; False: it could not be done."""
        known = self._pinned.get(slab.serial)
        if known is not None and known.ranges == tuple(ranges):
            return True
        self.unpin(slab.serial)
        if self._refused:
            return False
        self._pinned[slab.serial] = _Pinned(device, slab.address, (), slab.memory)
        try:
            for one in ranges:
                self._add(slab.serial, one)
        except RuntimeError as error:
            self._refuse(slab.serial, error)
            return False
        return True

    def has(self, slab: Slab) -> bool:
        """Whether a slab is pinned."""
        return slab.serial in self._pinned

    def unpin(self, serial: int) -> None:
        """Before the memory of a slab goes, or is laid out anew; nothing may be written into it any more."""
        known = self._pinned.pop(serial, None)
        if known is None:
            return
        for one in known.ranges:
            try:
                self.streams.unregister(known.device, known.base + one.start)
            except RuntimeError as error:
                # After an error that CUDA does not recover from, it is let go when the process ends.
                logger.debug("staging memory could not be unpinned: %s", error)

    def unpin_all(self) -> None:
        """At the end."""
        for serial in tuple(self._pinned):
            self.unpin(serial)

    def _add(self, serial: int, one: Range) -> None:
        known = self._pinned[serial]
        self.streams.register(known.device, known.base + one.start, one.length)
        self._pinned[serial] = known._replace(ranges=(*known.ranges, one))

    def _refuse(self, serial: int, error: RuntimeError) -> None:
        self._refused = True
        self.unpin(serial)
        logger.warning(
            "staging memory could not be pinned (%s): saves wait until all of the state is copied from the device, "
            "at a third of the speed or less",
            error,
        )
