"""Read segments back: in parallel, in order, straight into place where alignment allows, and verified."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from holdfast.errors import Corrupt, Missing, ObjectMissing, StorageError, Unreadable
from holdfast.ids import Digest, ObjectName
from holdfast.packs.buffers import address, flat
from holdfast.packs.codec import Codec, decode_into
from holdfast.packs.footer import Entry
from holdfast.packs.format import CHECK_BYTES
from holdfast.packs.index import Location, open_pack
from holdfast.packs.parallel import THREADS, Stop, run_threads
from holdfast.packs.plan import Piece, Wanted, read_plan
from holdfast.storage.blocks import lent_buffer
from holdfast.storage.protocol import Source, Storage

IN_PLACE_FROM = 64 * 1024
"""Shorter segments share a read: a call for each would cost more than the copy."""


def read_segments(
    storage: Storage,
    index: Callable[[Digest], Location | None],
    wanted: Iterable[tuple[Digest, memoryview]],
    *,
    threads: int = THREADS,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fill each memory in ``wanted`` with the raw bytes of its digest, and hash it there.

    Every digest is taken from the target itself once it is filled, so nothing that lies between the disk and the
    target goes unchecked. Memory: 8 MiB a thread, and as much again for decoding. After an error the targets'
    contents are undefined.

    Args:
        storage: where from.
        index: for example `SegmentIndex.get`.
        wanted: digests, each with writable contiguous memory of exactly the segment's length; any order.
        threads: how many read and check.
        progress: called with raw bytes as they are in place, by one thread at a time.

    Raises:
        Missing: a digest that ``index`` does not know, or a pack that is not there.
        Corrupt: stored bytes are not what was written; the message has pack, offset and digest, and so has the error.
        Unreadable: the storage answers EIO for a segment; the error has pack and digest.
        CodecUnavailable: the package that decodes a segment is not installed.
        StorageError: anything else of the storage.
    """
    plan = read_plan(_located(index, wanted))
    with Sources(storage, plan) as sources:
        run_threads(min(threads, len(plan)), _Work(plan, sources, progress).run)


def _located(
    index: Callable[[Digest], Location | None], wanted: Iterable[tuple[Digest, memoryview]]
) -> Iterator[Wanted]:
    for digest, target in wanted:
        location = index(digest)
        if location is None:
            raise Missing(f"segment {digest} is in none of the packs at hand; run 'holdfast verify'")
        length = location.entry.length
        if target.nbytes != length:
            raise Corrupt(
                f"segment {digest} has {length} bytes in {location.pack}, not the {target.nbytes} wanted",
                pack=location.pack,
                digest=digest,
            )
        yield Wanted(location, flat(target))


class Sources:
    """The packs of a plan, each opened when first needed and closed after its last piece. Thread-safe."""

    def __init__(self, storage: Storage, plan: Iterable[Piece]) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._remaining = Counter(piece.pack for piece in plan)
        self._open: dict[ObjectName, Source] = {}

    def get(self, name: ObjectName) -> Source:
        """The open pack.

        Raises:
            Missing: no such pack.
        """
        with self._lock:
            if name not in self._open:
                self._open[name] = open_pack(self._storage, name)
            return self._open[name]

    def done(self, name: ObjectName) -> None:
        """One piece of the pack was read."""
        with self._lock:
            self._remaining[name] -= 1
            if not self._remaining[name]:
                self._open.pop(name).close()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self._open.values():
            source.close()


class _Work:
    def __init__(self, plan: list[Piece], sources: Sources, progress: Callable[[int], None] | None) -> None:
        self._plan, self._sources, self._progress = iter(plan), sources, progress
        self._lock = threading.Lock()

    def run(self, stop: Stop) -> None:
        """One thread: piece after piece, through its own buffer or straight into place."""
        with lent_buffer() as buffer:
            while not stop.is_set() and (piece := self._take()) is not None:
                self._read(piece, buffer)

    def _read(self, piece: Piece, buffer: memoryview) -> None:
        source = self._sources.get(piece.pack)
        if _direct(piece, source):
            for entry, target in piece.parts:
                _read_in_place(source, piece._replace(parts=[(entry, target)]))
        else:
            _read_through(source, piece, buffer[: piece.length])
        self._sources.done(piece.pack)
        self._account(piece)

    def _take(self) -> Piece | None:
        with self._lock:
            return next(self._plan, None)

    def _account(self, piece: Piece) -> None:
        if self._progress is not None:
            with self._lock:
                self._progress(sum(entry.length for entry, _ in piece.parts))


def _direct(piece: Piece, source: Source) -> bool:
    """Whether the segments of a piece are read straight into place.

    From the device a single one, if all is aligned. Out of the page cache wherever they belong: a copy that is made for
    alignment would cost as much as the reading itself.
    """
    if any(entry.codec is not Codec.RAW for entry, _ in piece.parts):
        return False
    if min(entry.stored for entry, _ in piece.parts) >= IN_PLACE_FROM and source.at_hand(piece.offset, piece.length):
        return True
    entry, target = piece.parts[0]
    alignment = source.alignment
    places = (entry.offset, entry.stored, 0 if alignment == 1 else address(target))
    return len(piece.parts) == 1 and not any(place % alignment for place in places)


def _read_in_place(source: Source, piece: Piece) -> None:
    entry, target = piece.parts[0]
    _fill(source, piece, entry.offset, target)
    check_raw(piece.pack, entry, target)


def _read_through(source: Source, piece: Piece, buffer: memoryview) -> None:
    _fill(source, piece, piece.offset, buffer)
    for entry, target in piece.parts:
        start = entry.offset - piece.offset
        decode_segment(piece.pack, entry, buffer[start : start + entry.stored], target)


def _fill(source: Source, piece: Piece, offset: int, into: memoryview) -> None:
    """Reads; what cannot be read is laid to one segment, so that another copy of it can be taken."""
    try:
        source.read_into(offset, into)
    except Corrupt as error:
        raise Corrupt(str(error), pack=piece.pack, digest=_unreadable(source, piece).digest) from error
    except ObjectMissing as error:  # it was deleted, and had to be opened anew
        raise Missing(str(error), pack=piece.pack, digest=piece.parts[0][0].digest) from error
    except StorageError as error:
        if error.errno != errno.EIO:
            raise
        raise Unreadable(str(error), pack=piece.pack, digest=_unreadable(source, piece).digest) from error


def _unreadable(source: Source, piece: Piece) -> Entry:
    """The first segment of a piece that cannot be read by itself."""
    for entry, _ in piece.parts[:-1]:
        try:
            source.read_into(entry.offset, memoryview(bytearray(entry.stored)))
        except (Corrupt, StorageError):
            return entry
    return piece.parts[-1][0]


def check_segment(pack: ObjectName, entry: Entry, stored: memoryview) -> None:
    """As `decode_segment`, for whoever does not want the raw bytes."""
    if entry.codec is Codec.RAW:
        check_raw(pack, entry, stored)
    else:
        decode_segment(pack, entry, stored, memoryview(bytearray(entry.length)))


def decode_segment(pack: ObjectName, entry: Entry, stored: memoryview, target: memoryview) -> None:
    """Fill ``target`` with the raw bytes of a segment; stored and raw bytes are both verified, in this order.

    Raises:
        Corrupt: they are not what was written.
        CodecUnavailable: the package that decodes them is not installed.
    """
    check_stored(pack, entry, stored)
    try:
        decode_into(entry.codec, stored, target)
    except Corrupt as error:
        raise _corrupt(pack, entry, str(error)) from error
    check_raw(pack, entry, target)


def check_stored(pack: ObjectName, entry: Entry, stored: memoryview) -> None:
    """Raises `Corrupt` if stored bytes are not what was written, before a decoder sees them.

    Raw ones are left to `check_raw`: nothing decodes them, and their check is the beginning of their digest.
    """
    if entry.codec is not Codec.RAW and Digest.of(stored)[:CHECK_BYTES] != entry.check:
        raise _corrupt(pack, entry, "its stored bytes do not match their check")


def check_raw(pack: ObjectName, entry: Entry, raw: memoryview) -> None:
    """Raises `Corrupt` if ``raw`` is not what was written."""
    if Digest.of(raw) != entry.digest:
        raise _corrupt(pack, entry, "its bytes do not match its digest")


def _corrupt(pack: ObjectName, entry: Entry, why: str) -> Corrupt:
    where = f"segment {entry.digest} at {entry.offset} (+{entry.stored}) of {pack}"
    return Corrupt(f"{where} is damaged: {why}; run 'holdfast verify'", pack=pack, digest=entry.digest)
