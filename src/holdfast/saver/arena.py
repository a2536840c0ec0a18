"""Where things lie in staging memory: slots, and in a slot every segment where it can be written from.

A slot holds one generation: the trained tensors first, then the frozen ones
(whose memory is given back once they are stored), then the document. Segments
of 64 KiB and more begin on blocks of 4096 bytes with zeros behind them, so
that direct I/O writes them from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.boxes import Span
from holdfast.ids import Digest
from holdfast.packs.format import ALIGNED_FROM, BLOCK, aligned, alignment
from holdfast.packs.segment import Segment
from holdfast.payload import Places
from holdfast.saver.jobs import Positions
from holdfast.saver.memory import Slab
from holdfast.trees import Lifetime, Manifest, TensorSpec, segments

_HEADROOM = 16 * 1024 * 1024
_FROZEN_FROM = 64 * 1024 * 1024
"""Frozen tensors begin on a multiple of this, so that their memory can be given back in large pieces."""


class Placed(NamedTuple):
    """One segment of a tensor in a slot."""

    span: Span
    """In the bytes of the tensor."""
    offset: int
    """In the slot."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the large tensors of one structure lie in a slot. A pure function of their specs."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...] = field(init=False)
    """Per tensor, where its first segment begins."""
    trained: int = field(init=False)
    """Bytes from the beginning that hold what is staged at every save."""
    ends: tuple[int, ...] = field(init=False)
    """Per tensor, the end of its last segment and of the zeros behind it."""
    frozen_from: int = field(init=False)
    """Where the frozen tensors begin; ``length`` if there are none."""
    length: int = field(init=False)
    """Bytes up to the end of the frozen tensors."""

    def __post_init__(self) -> None:
        frozen = [place for place, spec in enumerate(self.specs) if spec.lifetime is Lifetime.FROZEN]
        extents, others = dict[int, tuple[int, int]](), sorted(set(range(len(self.specs))) - set(frozen))
        trained = self._lay(others, 0, extents)
        frozen_from = aligned(trained, _FROZEN_FROM) if frozen else trained
        length = self._lay(frozen, frozen_from, extents)
        object.__setattr__(self, "offsets", tuple(extents[place][0] for place in range(len(self.specs))))
        object.__setattr__(self, "ends", tuple(extents[place][1] for place in range(len(self.specs))))
        object.__setattr__(self, "trained", trained)
        object.__setattr__(self, "frozen_from", frozen_from)
        object.__setattr__(self, "length", length)

    def _lay(self, places: Iterable[int], at: int, extents: dict[int, tuple[int, int]]) -> int:
        """Lays tensors one behind the other, each from the beginning of a block; gives the end of the last one."""
        for place in places:
            begin, at = at, _end(self.specs[place], at)
            extents[place] = begin, at
        return at

    def slab_bytes(self) -> int:
        """How long a slab for it should be: untouched memory costs nothing, and the document has to fit, too."""
        return 2 * self.length + _HEADROOM


def placed(spec: TensorSpec, offset: int) -> Iterator[Placed]:
    """The segments of a tensor whose first one begins at ``offset`` of a slot."""
    for span in segments(spec):
        offset = aligned(offset, alignment(span.length))
        yield Placed(span, offset)
        offset += span.length


def _end(spec: TensorSpec, offset: int) -> int:
    last = offset
    for piece in placed(spec, offset):
        last = piece.offset + piece.span.length
    return aligned(last, BLOCK)


def gaps(spec: TensorSpec, offset: int) -> Iterator[slice]:
    """What must be zero behind the segments of a tensor."""
    for piece in placed(spec, offset):
        end = piece.offset + piece.span.length
        if piece.span.length >= ALIGNED_FROM and end % BLOCK:
            yield slice(end, aligned(end, BLOCK))


@dataclass(frozen=True, slots=True)
class StagedContent:
    """The bytes of a generation in its slot; see `holdfast.saver.jobs.Content`."""

    slab: Slab
    specs: Sequence[TensorSpec]
    offsets: Sequence[int]
    """-1: not staged."""
    known: Mapping[int, Digest]

    def segments(self, lifetime: Lifetime) -> Iterable[Segment]:
        """Those that are staged."""
        memory = self.slab.memory
        for spec, offset in zip(self.specs, self.offsets, strict=True):
            if spec.lifetime is not lifetime or offset < 0:
                continue
            for piece in placed(spec, offset):
                end = piece.offset + piece.span.length
                padded = memory[piece.offset : aligned(end, BLOCK)] if piece.offset % BLOCK == 0 else None
                yield Segment(memory[piece.offset : end], spec.dtype, padded)

    def kept(self) -> Mapping[int, Digest]:
        """By position in skeleton order."""
        return self.known


def kept_digests(specs: Sequence[TensorSpec], kept: Iterable[int], manifest: Manifest) -> dict[int, Digest] | None:
    """The segments of tensors that are not staged, as another manifest has them; None: it has not all of them.

    Args:
        specs: the large tensors of the state that is saved.
        kept: places in ``specs``.
        manifest: the other one.
    """
    mine, theirs = Positions(specs), Places(manifest.skeleton, manifest.by_part)
    stored = manifest.skeleton.tensors
    by_name = {spec.name: place for place, spec in enumerate(stored)}
    found: dict[int, Digest] = {}
    for place in kept:
        spec, other = specs[place], by_name.get(specs[place].name)
        if other is None or (stored[other].dtype, stored[other].shape) != (spec.dtype, spec.shape):
            return None
        boxes = {box: number for number, box in enumerate(stored[other].boxes)}
        if not boxes.keys() >= set(spec.boxes):
            return None
        at = (at for box in spec.boxes for at in theirs.of(other, boxes[box]))
        found.update((mine.starts[place] + i, manifest.digest(where)) for i, where in enumerate(at))
    return found
