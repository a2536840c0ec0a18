"""Write segments: copy, digest, look up, encode, write, on several threads with one fixed buffer each.

The digest is taken from a private copy, and that copy is what is written:
memory that changes meanwhile can spoil a checkpoint's moment, but never make a
digest that does not fit the stored bytes. Memory that its owner has promised
not to change (`Segment.padded`) is such a copy already: it is hashed and
written in place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from holdfast.boxes import SEGMENT_BYTES
from holdfast.ids import Digest, ObjectName
from holdfast.packs.buffers import copy, joined
from holdfast.packs.codec import Codec, encode
from holdfast.packs.footer import Entry, Footer
from holdfast.packs.format import BLOCK, CHECK_BYTES, PACK_BYTES, aligned, alignment
from holdfast.packs.packing import Packing
from holdfast.packs.parallel import THREADS, Pace, Stop, run_threads
from holdfast.packs.segment import Numbered, Segment, numbered
from holdfast.storage.blocks import lent_buffer
from holdfast.storage.protocol import Storage

Inspect = Callable[[int, memoryview, str], None]


class PackInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A committed pack: what is checked right before a record names it."""

    name: ObjectName
    size: int


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What one call of `write_segments` did."""

    digests: list[Digest]
    """One per segment, in the order given, known ones included."""
    packs: list[PackInfo]
    footers: list[Footer]
    """The indexes of those packs, so that nobody needs to read them back."""
    new_bytes: int
    """Raw bytes of the segments that were written."""
    stored_bytes: int
    """The same after the codec, without alignment and index."""
    hash_seconds: float
    """Copying, hashing and encoding, summed over the threads."""
    write_seconds: float
    """Waiting for storage, summed over the threads."""


def write_segments(
    storage: Storage,
    folder: str,
    segments: Iterable[Segment | memoryview],
    *,
    known: Callable[[Digest], bool],
    codec: Codec,
    threads: int = THREADS,
    progress: Callable[[int], None] | None = None,
    expected: int | None = None,
    cap: int = PACK_BYTES,
    pace: Pace | None = None,
    inspect: Inspect | None = None,
) -> Written:
    """Write those of ``segments`` that are not ``known`` into new packs in ``folder`` (which ends in ``/``).

    All packs are committed and durable when it returns; on any error, also of the iterable or a callback, none
    is left. Equal segments are written once. Memory: 8 MiB a thread, and as much again with a codec.

    Args:
        storage: where to.
        folder: for example ``data/runs/003/``.
        segments: valid until this returns; bare memory is a segment of ``uint8``. Asked for by one thread at a time.
        known: whether a digest needs no writing; called by one thread at a time.
        codec: for segments that it makes shorter.
        threads: how many copy, hash and write.
        progress: called with raw bytes as they are done with, by one thread at a time.
        expected: bytes likely to be new: set aside first, so that a full disk is found before the bytes are written.
        cap: no pack gets longer, unless by a single segment.
        pace: whether the threads leave the processor to others, and until when.
        inspect: called with each segment that is new: its place in the order given, its bytes, which do not change
            while it runs, and its dtype. By several threads at once.

    Raises:
        InvalidInput: an empty, too long, non-contiguous or wrongly padded segment.
        StorageError: of the storage; `StorageFull` early, where ``expected`` is right.
    """
    with Packing(storage, folder, cap=cap, expected=expected) as packing:
        work = _Work(packing, _Intake(segments), known, codec, progress or _no_progress, inspect or _no_look)
        run_threads(threads, work.run, pace)
        packing.finish()
        return work.result()


class _Intake:
    """Hands out the segments in batches that fit one buffer, so that small ones share a write."""

    def __init__(self, segments: Iterable[Segment | memoryview]) -> None:
        self._segments = numbered(segments)
        self._next: Numbered | None = None
        self._lock = threading.Lock()

    def take(self) -> list[Numbered]:
        """The next batch; empty at the end. Either all of it is staged, or all of it lies in one piece of memory."""
        with self._lock:
            batch: list[Numbered] = []
            end = 0
            while (segment := self._next or next(self._segments, None)) is not None:
                end = _after(segment, end)
                self._next = segment if batch and not (_follows(batch[-1], segment) and end <= SEGMENT_BYTES) else None
                if self._next:
                    break
                batch.append(segment)
            return batch


def _after(segment: Numbered, end: int) -> int:
    """Where a segment ends if it lies behind what ends at ``end``."""
    if segment.block is not None:
        return end + segment.block.nbytes
    return aligned(end, alignment(segment.data.nbytes)) + segment.data.nbytes


def _follows(one: Numbered, other: Numbered) -> bool:
    """Whether two segments can be written at once."""
    if one.block is None or other.block is None:
        return one.block is other.block
    return one.place + one.block.nbytes == other.place


class _Piece(NamedTuple):
    """What is written at once."""

    entries: list[Entry]
    """Offsets from 0."""
    memory: memoryview
    """Whole blocks, in which the segments lie like that, with zeros between them."""


class _Work:
    """What the threads of one call share."""

    def __init__(
        self,
        packing: Packing,
        intake: _Intake,
        known: Callable[[Digest], bool],
        codec: Codec,
        progress: Callable[[int], None],
        inspect: Inspect,
    ) -> None:
        self._packing, self._intake, self._known = packing, intake, known
        self._codec, self._progress, self._inspect = codec, progress, inspect
        self._lock = threading.Lock()
        self._claimed: set[Digest] = set()
        self._digests: dict[int, Digest] = {}
        self._hash_seconds = self._write_seconds = 0.0

    def run(self, stop: Stop) -> None:
        """One thread: batch after batch through its own buffer."""
        with lent_buffer() as buffer:
            while not stop.is_set() and (batch := self._intake.take()):
                self._save(batch, buffer)

    def _save(self, batch: list[Numbered], buffer: memoryview) -> None:
        begin = time.perf_counter()
        pieces = self._stage(batch, buffer) if batch[0].block is None else self._stage_in_place(batch, buffer)
        middle = time.perf_counter()
        for piece in pieces:
            self._write(piece)
        self._account(batch, middle - begin, time.perf_counter() - middle)

    def result(self) -> Written:
        """What was done, once all is committed."""
        footers = self._packing.footers
        return Written(
            digests=[digest for _, digest in sorted(self._digests.items())],
            packs=[PackInfo(name=footer.name, size=footer.size) for footer in footers],
            footers=footers,
            new_bytes=sum(footer.raw_bytes for footer in footers),
            stored_bytes=sum(footer.stored_bytes for footer in footers),
            hash_seconds=self._hash_seconds,
            write_seconds=self._write_seconds,
        )

    def _stage(self, batch: list[Numbered], buffer: memoryview) -> list[_Piece]:
        """The new segments of a batch, copied."""
        entries: list[Entry] = []
        for number, data, dtype, *_ in batch:
            end = _end(entries)
            start = aligned(end, alignment(data.nbytes))
            staged = buffer[start : start + data.nbytes]
            copy(staged, data)
            digest = Digest.of(staged)
            if self._is_new(number, digest):
                self._inspect(number, staged, dtype)
                entries.append(self._encode(digest, staged, dtype, end, buffer))
        return _closed(entries, buffer)

    def _stage_in_place(self, batch: list[Numbered], buffer: memoryview) -> list[_Piece]:
        """The new segments of a batch: encoded ones together, and the others where they lie, neighbours together."""
        coded: list[Entry] = []
        raw: list[tuple[Entry, Numbered]] = []
        for segment in batch:
            digest = Digest.of(segment.data)
            if self._is_new(segment.number, digest):
                self._inspect(segment.number, segment.data, segment.dtype)
                entry = self._encode(digest, segment.data, segment.dtype, _end(coded), buffer)
                if entry.codec is Codec.RAW:
                    raw.append((entry, segment))
                else:
                    coded.append(entry)
        return [*_neighbours(raw), *_closed(coded, buffer)]

    def _is_new(self, number: int, digest: Digest) -> bool:
        with self._lock:
            self._digests[number] = digest
            if digest in self._claimed or self._known(digest):
                return False
            self._claimed.add(digest)
            return True

    def _encode(self, digest: Digest, staged: memoryview, dtype: str, end: int, buffer: memoryview) -> Entry:
        codec, stored = encode(self._codec, staged, dtype)
        size, length = memoryview(stored).nbytes, staged.nbytes
        start = aligned(end, alignment(size))
        if codec is Codec.RAW:
            return Entry(digest, start, size, length, codec, digest[:CHECK_BYTES])
        copy(buffer[start : start + size], memoryview(stored))
        return Entry(digest, start, size, length, codec, Digest.of(stored)[:CHECK_BYTES])

    def _write(self, piece: _Piece) -> None:
        place = self._packing.place(piece.entries, piece.memory.nbytes)
        place.pack.sink.write(place.offset, piece.memory)
        self._packing.done(place)

    def _account(self, batch: list[Numbered], hashing: float, writing: float) -> None:
        with self._lock:
            self._hash_seconds += hashing
            self._write_seconds += writing
            self._progress(sum(segment.data.nbytes for segment in batch))


def _end(entries: list[Entry]) -> int:
    return entries[-1].offset + entries[-1].stored if entries else 0


def _closed(entries: list[Entry], buffer: memoryview) -> list[_Piece]:
    """What was put into ``buffer``."""
    if not entries:
        return []
    memory = buffer[: aligned(_end(entries), BLOCK)]
    _zero_gaps(entries, memory)
    return [_Piece(entries, memory)]


def _neighbours(found: list[tuple[Entry, Numbered]]) -> Iterator[_Piece]:
    """Segments that lie in their own memory, those that follow each other in one piece."""
    run: list[tuple[Entry, Numbered]] = []
    for entry, segment in found:
        if run and not _follows(run[-1][1], segment):
            yield _in_one(run)
            run = []
        run.append((entry, segment))
    if run:
        yield _in_one(run)


def _in_one(run: list[tuple[Entry, Numbered]]) -> _Piece:
    (_, first), (_, last) = run[0], run[-1]
    assert first.block is not None
    assert last.block is not None
    entries = [entry._replace(offset=segment.place - first.place) for entry, segment in run]
    if first is last:
        return _Piece(entries, first.block)
    return _Piece(entries, joined(first.block, last.place + last.block.nbytes - first.place))


def _zero_gaps(entries: list[Entry], piece: memoryview) -> None:
    """Between segments lies what was staged there before; a pack has zeros there."""
    ends = [0, *(entry.offset + entry.stored for entry in entries)]
    starts = [*(entry.offset for entry in entries), len(piece)]
    for end, start in zip(ends, starts, strict=True):
        if end < start:
            piece[end:start] = bytes(start - end)


def _no_look(number: int, data: memoryview, dtype: str) -> None:
    pass


def _no_progress(_: int) -> None:
    pass
