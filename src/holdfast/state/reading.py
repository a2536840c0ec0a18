"""Stored tensors on their way into memory: straight where that is possible, through a bounded buffer where not.

What is stored in boxes, and what this process holds of a tensor, may overlap in
any way. Whole segments whose rows lie in the target as they were stored are
read into it; of the others the part that is wanted is copied out of a buffer.
Reading is by whole segments, since their digests are: a shard that is cut in
rows reads two segments more than its bytes at most, one that is cut in another
dimension reads all rows of the boxes that it touches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from holdfast.boxes import SEGMENT_BYTES, Box, Span, cuts, inner_rows, outer_rows, row_bytes
from holdfast.errors import Corrupt
from holdfast.ids import Digest
from holdfast.payload import Places, counts
from holdfast.state import tensors
from holdfast.state.held import Region, narrowed, regions
from holdfast.state.proofs import Proofs
from holdfast.storage.blocks import PAGE, aligned_buffer
from holdfast.trees import Manifest, Skeleton, TensorSpec, item_bytes

BUFFER_BYTES = 64 * 1024 * 1024
"""Most of what is on the way at one time into tensors that cannot be read into directly (one row at least)."""


class Wanted(NamedTuple):
    """Bytes ``start`` to ``start + len(into)`` of a box of a tensor; both ends are segment boundaries."""

    entry: int
    """Position in the skeleton."""
    box: int
    """Position among the boxes of the tensor."""
    start: int
    into: memoryview
    """Writable, of single bytes."""


class TensorReader(Protocol):
    """Where the bytes come from."""

    def need(self, parts: Collection[int]) -> None:
        """Makes sure that the segments of these parts can be read.

        Raises:
            Damaged, StorageError: some cannot.
        """
        ...

    def read(self, wanted: Sequence[Wanted]) -> None:
        """Fills every view and verifies the bytes in it; may work in parallel, returns when all are filled.

        Raises:
            Damaged, StorageError: the views then hold anything.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A checkpoint to load from: its manifest and a way to its bytes."""

    skeleton: Skeleton
    values: bytes
    inline: bytes
    own: bytes
    """Of the part whose values are taken for this process's own."""
    counts: Sequence[int]
    """Digests per part."""
    digest: Callable[[int], Digest]
    """The digest at a position; those of other parts are not looked at."""
    reader: TensorReader

    @classmethod
    def of(cls, manifest: Manifest, reader: TensorReader, part: int = 0) -> Stored:
        """From a whole manifest, with the values of one part for this process's own."""
        return cls(
            skeleton=manifest.skeleton,
            values=manifest.values,
            inline=manifest.inline,
            own=manifest.own[part],
            counts=manifest.by_part,
            digest=manifest.digest,
            reader=reader,
        )

    @cached_property
    def by_path(self) -> dict[str, int]:
        """Index in the skeleton by name and by alias."""
        specs = enumerate(self.skeleton.tensors)
        return {path: index for index, spec in specs for path in (spec.name, *spec.aliases)}

    @cached_property
    def _inline_starts(self) -> list[int]:
        starts, at = [], 0
        for spec in self.skeleton.tensors:
            starts.append(at)
            at += spec.nbytes if spec.inline else 0
        if at != len(self.inline):
            raise Corrupt(f"the inline page has {len(self.inline)} bytes, and the skeleton asks for {at}")
        return starts

    @cached_property
    def _places(self) -> Places:
        if (asked := counts(self.skeleton)) != tuple(self.counts):
            raise Corrupt(f"the manifest has {list(self.counts)} segment digests, and the skeleton asks for {asked}")
        return Places(self.skeleton, self.counts)

    def spec(self, path: str) -> TensorSpec:
        """The spec of the tensor at ``path``.

        Raises:
            Corrupt: the values name a tensor that the skeleton lacks.
        """
        if path not in self.by_path:
            raise Corrupt(f"the stored values name the tensor {path!r}, and the skeleton has none of that name")
        return self.skeleton.tensors[self.by_path[path]]

    def inline_bytes(self, path: str) -> bytes:
        """The bytes of an inline tensor."""
        start = self._inline_starts[self.by_path[path]]
        return self.inline[start : start + self.spec(path).nbytes]

    def segment_digests(self, path: str, box: int) -> list[tuple[Span, Digest]]:
        """The segments of one box of a tensor that is not inline, with their digests."""
        spec, at = self.spec(path), self._places.of(self.by_path[path], box)
        return list(zip(cuts(spec.boxes[box], item_bytes(spec.dtype)), map(self.digest, at), strict=True))

    def need(self, paths: Iterable[tuple[str, TensorSpec]]) -> None:
        """Makes sure that everything can be read that overlaps what is here of these tensors.

        Raises:
            Damaged, StorageError: it cannot.
        """
        self.reader.need({part for path, here in paths for part in parts_of(self.spec(path), here.boxes)})

    def check(self) -> None:
        """Compares the sizes of pages with the skeleton.

        Raises:
            Corrupt: they do not fit together.
        """
        _ = self._inline_starts, self._places


def parts_of(spec: TensorSpec, boxes: Sequence[Box]) -> Iterator[int]:
    """The parts with segments of a stored tensor that some boxes of it need."""
    if spec.inline:
        return
    if spec.spread is None:
        yield 0
        return
    for part, box in zip(spec.spread.parts, spec.spread.boxes, strict=True):
        if any(box.overlap(one) is not None for one in boxes):
            yield part


class _Piece(NamedTuple):
    """Part of a box that goes through a buffer."""

    entry: int
    box: int
    span: Span
    put: Callable[[Tensor], object]


@dataclass(slots=True)
class Filling:
    """Gathers which stored tensors go where, then reads them all: `into` any number of times, then `run`."""

    stored: Stored
    budget: int = BUFFER_BYTES
    _direct: list[Wanted] = field(default_factory=list)
    _pieces: list[_Piece] = field(default_factory=list)
    _seen: set[tuple[int, int, str]] = field(default_factory=set)
    _placed: dict[str, Tensor] = field(default_factory=dict)
    _cut: list[tuple[str, list[Region]]] = field(default_factory=list)
    """What is read in other boxes than it lies in, and not hashed yet."""
    _whole: list[tuple[int, memoryview]] = field(default_factory=list)
    """The memory of regions, each of one stored tensor, which are filled out of verified bytes alone."""
    filled: dict[str, Digest] = field(default_factory=dict)
    """What lies here of tensors that were read in other boxes than they lie in, hashed right after it was filled."""
    proofs: Proofs = field(default_factory=Proofs)
    """What was verified where it lies, for the comparison after the load."""

    def into(self, path: str, target: Tensor) -> None:
        """Sends what ``target``, of equal dtype and global shape, has here of the stored tensor at ``path``."""
        spec, index, here = self.stored.spec(path), self.stored.by_path[path], regions(target, path)
        key = (index, here[0].tensor.data_ptr() if here else 0, str(target.device))
        if spec.nbytes == 0 or not here or key in self._seen:
            return
        self._seen.add(key)
        for region in here:
            if spec.inline:
                self._put_inline(path, region)
            else:
                self._overlaps(index, spec, region)
        if not spec.inline and [region.box for region in here] != list(spec.boxes):
            self._cut.append((path, here))

    def put(self, path: str, region: Region) -> None:
        """As `into`, for one region by itself: whoever asks knows what is held."""
        spec = self.stored.spec(path)
        if spec.inline:
            self._put_inline(path, region)
        elif region.box.elements:
            self._overlaps(self.stored.by_path[path], spec, region)

    def place(self, path: str, target: Tensor) -> None:
        """As `into`, and remembers ``target`` as the one home of these bytes, so that aliases find it."""
        self._placed.setdefault(self.stored.spec(path).name, target)
        self.into(path, target)

    def placed(self, path: str) -> Tensor | None:
        """The home of the stored tensor at ``path``, if it has one by now."""
        return self._placed.get(self.stored.spec(path).name)

    def run(self, later: Collection[Callable[[], None]] = ()) -> None:
        """Reads everything, then calls what had to wait for the bytes; then what was gathered is forgotten.

        Raises:
            Damaged, StorageError: from the reader; targets then hold anything.
        """
        if self._direct:
            self.stored.reader.read(self._direct)
        batches = list(_batches(self._pieces, self.budget))
        laid_out = [list(_laid_out(batch)) for batch in batches]
        # Once: new memory costs more than a copy.
        buffer = aligned_buffer(max((spans[-1].start + spans[-1].length for spans in laid_out), default=0))
        for batch, spans in zip(batches, laid_out, strict=True):
            views = [buffer[span.start : span.start + span.length] for span in spans]
            pairs = zip(batch, views, strict=True)
            self.stored.reader.read([Wanted(piece.entry, piece.box, piece.span.start, view) for piece, view in pairs])
            for piece, view in zip(batch, views, strict=True):
                piece.put(torch.frombuffer(view, dtype=torch.uint8))
        for index, memory in self._whole:
            self.proofs.verified(index, memory)
        self._direct, self._pieces, self._seen, self._whole = [], [], set(), []
        self._hash(lambda here: any(tensors.live_bytes(region.tensor) is None for region in here))
        for action in later:
            with self.others():
                action()

    @contextlib.contextmanager
    def others(self) -> Iterator[None]:
        """Within it code runs that may write anywhere: what it should not have changed is found by its digest."""
        self._hash(lambda here: True)
        try:
            yield
        finally:
            self.proofs.forget()

    def _hash(self, wanted: Callable[[list[Region]], bool]) -> None:
        """Hashes what was filled, where nothing else will tell that it is as it was filled."""
        self.filled |= {path: digest_of(here) for path, here in self._cut if wanted(here)}
        self._cut = [(path, here) for path, here in self._cut if not wanted(here)]

    def _overlaps(self, index: int, spec: TensorSpec, region: Region) -> None:
        memory = tensors.live_bytes(region.tensor)
        for number, box in enumerate(spec.boxes):
            if (common := box.overlap(region.box)) is None:
                continue
            way = _Way(index, number, box, region, common, item_bytes(spec.dtype))
            if memory is not None and way.rows_alike:
                self._direct += way.direct(memory)
                self._pieces += [piece for edge in way.edges() for piece in way.buffered(*edge, self.budget)]
            else:
                self._pieces += way.buffered(*way.outer, self.budget)
        if memory is None:
            self.proofs.written(region.tensor)
        else:
            self._whole.append((index, memory))  # the boxes of a checkpoint cover every tensor, each byte once

    def _put_inline(self, path: str, region: Region) -> None:
        self.proofs.written(region.tensor)
        spec = self.stored.spec(path)
        raw = torch.frombuffer(bytearray(self.stored.inline_bytes(path)), dtype=torch.uint8)
        whole = raw.view(tensors.dtype_of(spec.dtype)).reshape(spec.shape)
        with torch.no_grad():
            tensors.put(region.tensor, narrowed(whole, region.box.offsets, region.box.sizes))


class _Way(NamedTuple):
    """From a box that is stored to a region that is held, as far as they overlap."""

    entry: int
    number: int
    box: Box
    region: Region
    common: Box
    item: int

    @property
    def rows_alike(self) -> bool:
        """Whether a row has the same bytes on both sides."""
        inner = (self.box.offsets[1:], self.box.sizes[1:])
        return inner == (self.region.box.offsets[1:], self.region.box.sizes[1:])

    @property
    def outer(self) -> tuple[int, int]:
        """The rows of all segments that are needed."""
        return outer_rows(self.box, self.item, self.common.offsets[0], self.common.offsets[0] + self.common.sizes[0])

    @property
    def inner(self) -> tuple[int, int]:
        """The rows of those that are needed whole."""
        return inner_rows(self.box, self.item, self.common.offsets[0], self.common.offsets[0] + self.common.sizes[0])

    def direct(self, memory: memoryview) -> Iterator[Wanted]:
        """What is read where it belongs."""
        first, last = self.inner
        if first < last:
            row = row_bytes(self.box, self.item)
            begin = (first - self.region.box.offsets[0]) * row
            into = memory[begin : begin + (last - first) * row]
            yield Wanted(self.entry, self.number, (first - self.box.offsets[0]) * row, into)

    def edges(self) -> list[tuple[int, int]]:
        """The rows of segments of which only some rows are wanted."""
        (first, last), (inner_first, inner_last) = self.outer, self.inner
        if inner_first >= inner_last:
            return [(first, last)]
        return [(a, b) for a, b in ((first, inner_first), (inner_last, last)) if a < b]

    def buffered(self, first: int, last: int, budget: int) -> Iterator[_Piece]:
        """Rows that go through buffers, as many at a time as the budget allows."""
        row = row_bytes(self.box, self.item)
        if row > SEGMENT_BYTES and self.rows_alike and self.region.tensor.is_contiguous():
            yield from self._flat()
            return
        segment = max(1, SEGMENT_BYTES // row)
        step = max(1, budget // (segment * row)) * segment
        while first < last:
            end = min(last, (first // step + 1) * step)
            span = Span((first - self.box.offsets[0]) * row, (end - first) * row)
            yield _Piece(self.entry, self.number, span, self._putter(first, end))
            first = end

    def _putter(self, first: int, last: int) -> Callable[[Tensor], None]:
        rows = self.box.rows(first, last)
        common = rows.overlap(self.common)
        assert common is not None  # every segment that is read has rows that are wanted
        source = [a - b for a, b in zip(common.offsets, rows.offsets, strict=True)]
        target = [a - b for a, b in zip(common.offsets, self.region.box.offsets, strict=True)]

        def put(raw: Tensor) -> None:
            read = raw.view(self.region.tensor.dtype).reshape(rows.sizes)
            with torch.no_grad():
                tensors.put(narrowed(self.region.tensor, target, common.sizes), narrowed(read, source, common.sizes))

        return put

    def _flat(self) -> Iterator[_Piece]:
        """Rows longer than a segment, segment by segment."""
        row, flat = row_bytes(self.box, self.item), tensors.flat_bytes(self.region.tensor)
        shift = (self.region.box.offsets[0] - self.box.offsets[0]) * row
        begin, end = ((at - self.box.offsets[0]) * row for at in self.outer)
        for span in cuts(self.box, self.item):
            if begin <= span.start < end:
                yield _Piece(self.entry, self.number, span, flat[span.start - shift :][: span.length].copy_)


def digest_of(here: Sequence[Region]) -> Digest:
    """Of all bytes that are held of one tensor."""
    return Digest.of(b"".join(bytes(Digest.of(tensors.row_bytes(region.tensor))) for region in here))


def _laid_out(batch: Sequence[_Piece]) -> Iterator[Span]:
    """Where the pieces of a batch lie in one memory, each at the beginning of a page."""
    at = 0
    for piece in batch:
        yield Span(at, piece.span.length)
        at += -(-piece.span.length // PAGE) * PAGE


def _batches(pieces: list[_Piece], budget: int) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        if batch and size + piece.span.length > budget:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.span.length
    if batch:
        yield batch
