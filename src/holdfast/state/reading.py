"""Stored tensors on their way into memory: straight where that is possible, through a bounded buffer where not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from holdfast.boxes import Span
from holdfast.errors import Corrupt
from holdfast.ids import Digest
from holdfast.state import tensors
from holdfast.state.proofs import Proofs
from holdfast.trees import Manifest, Skeleton, TensorSpec, segment_count, segments

BUFFER_BYTES = 64 * 1024 * 1024
"""Most of what is on the way at one time into tensors that cannot be read into directly (one segment at least)."""


class Wanted(NamedTuple):
    """Bytes ``start`` to ``start + len(into)`` of a tensor; both ends are segment boundaries."""

    entry: int
    """Position in the skeleton."""
    start: int
    into: memoryview
    """Writable, of single bytes."""


class TensorReader(Protocol):
    """Where the bytes come from."""

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
    digests: Sequence[Digest]
    """One per segment, in skeleton order."""
    reader: TensorReader

    @classmethod
    def of(cls, manifest: Manifest, reader: TensorReader) -> Stored:
        """From a decoded manifest."""
        parts = manifest._asdict()
        return cls(
            **{key: parts[key] for key in ("skeleton", "values", "inline")},
            digests=manifest.segment_digests(),
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
    def _digest_starts(self) -> list[int]:
        starts, at = [], 0
        for spec in self.skeleton.tensors:
            starts.append(at)
            at += segment_count(spec)
        if at != len(self.digests):
            raise Corrupt(f"the manifest has {len(self.digests)} segment digests, and the skeleton asks for {at}")
        return starts

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

    def segment_digests(self, path: str) -> list[tuple[Span, Digest]]:
        """The segments of a tensor that is not inline, with their digests."""
        spans = list(segments(self.spec(path)))
        start = self._digest_starts[self.by_path[path]]
        return list(zip(spans, self.digests[start : start + len(spans)], strict=True))

    def check(self) -> None:
        """Compares the sizes of pages with the skeleton.

        Raises:
            Corrupt: they do not fit together.
        """
        _ = self._inline_starts, self._digest_starts


class _Piece(NamedTuple):
    """Part of a tensor that goes through a buffer."""

    entry: int
    span: Span
    put: Callable[[Tensor], None]


@dataclass(slots=True)
class Filling:
    """Gathers which stored tensors go where, then reads them all: `into` any number of times, then `run`."""

    stored: Stored
    budget: int = BUFFER_BYTES
    _direct: list[Wanted] = field(default_factory=list)
    _pieces: list[_Piece] = field(default_factory=list)
    _seen: set[tuple[int, int, str]] = field(default_factory=set)
    _placed: dict[str, Tensor] = field(default_factory=dict)
    proofs: Proofs = field(default_factory=Proofs)
    """What was verified where it lies, for the comparison after the load."""

    def into(self, path: str, target: Tensor) -> None:
        """Sends the stored tensor at ``path`` into the memory of ``target``, of equal dtype and shape."""
        spec, index = self.stored.spec(path), self.stored.by_path[path]
        key = (index, target.data_ptr(), str(target.device))
        if spec.nbytes == 0 or key in self._seen:
            return
        self._seen.add(key)
        if spec.inline:
            self.proofs.written(target)
            self._put_inline(path, target)
        elif (memory := tensors.live_bytes(target)) is not None:
            self._direct.append(Wanted(index, 0, memory))
        else:
            self.proofs.written(target)
            self._pieces += _pieces(index, spec, target, self.budget)

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
            for one in self._direct:
                self.proofs.verified(one.entry, one.into)
        for batch in _batches(self._pieces, self.budget):
            buffers = [torch.empty(piece.span.length, dtype=torch.uint8, device="cpu") for piece in batch]
            views = [buffer.numpy().data for buffer in buffers]
            pairs = zip(batch, views, strict=True)
            self.stored.reader.read([Wanted(piece.entry, piece.span.start, view) for piece, view in pairs])
            for piece, buffer in zip(batch, buffers, strict=True):
                piece.put(buffer)
        self._direct, self._pieces, self._seen = [], [], set()
        for action in later:
            action()
            self.proofs.forget()

    def _put_inline(self, path: str, target: Tensor) -> None:
        raw = torch.frombuffer(bytearray(self.stored.inline_bytes(path)), dtype=torch.uint8)
        _put(raw, self.stored.spec(path), target)


def _put(raw: Tensor, spec: TensorSpec, target: Tensor) -> None:
    with torch.no_grad():
        tensors.put(target, raw.view(tensors.dtype_of(spec.dtype)).reshape(spec.shape))


def _pieces(index: int, spec: TensorSpec, target: Tensor, budget: int) -> list[_Piece]:
    if not target.is_contiguous() or target.is_conj() or target.is_neg():
        # Rows of a permuted tensor lie nowhere in one stretch, so it is read whole.
        return [_Piece(index, Span(0, spec.nbytes), lambda raw: _put(raw, spec, target))]
    flat = tensors.flat_bytes(target)
    return [_Piece(index, span, _slice_putter(flat, span)) for span in _joined(spec, budget)]


def _slice_putter(flat: Tensor, span: Span) -> Callable[[Tensor], None]:
    def put(raw: Tensor) -> None:
        flat[span.start : span.start + span.length].copy_(raw)

    return put


def _joined(spec: TensorSpec, budget: int) -> Iterator[Span]:
    start = length = 0
    for span in segments(spec):
        if length and length + span.length > budget:
            yield Span(start, length)
            start, length = span.start, 0
        length += span.length
    yield Span(start, length)


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
