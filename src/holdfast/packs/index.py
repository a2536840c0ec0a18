"""Where segments lie: the footers of packs, read once, and a look-up by digest over many of them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from holdfast.errors import Corrupt, Missing, ObjectMissing, StorageError, Unreadable
from holdfast.ids import Digest, ObjectName
from holdfast.packs.footer import Entry, Footer, decode_footer
from holdfast.packs.format import HEADER_BYTES, TRAILER_BYTES, Tail, decode_trailer
from holdfast.storage.protocol import Source, Storage

_FIRST_READ = 64 * 1024
"""Holds the whole index of most packs: eight hundred segments."""


class Location(NamedTuple):
    """One segment in one pack."""

    pack: ObjectName
    entry: Entry


def read_footer(storage: Storage, name: ObjectName) -> Footer:
    """The index of a pack, from its last bytes; says nothing about the segments themselves.

    Raises:
        Missing: no such pack.
        Corrupt: truncated, damaged, malformed, or another pack under this name.
        UnknownFormat: written by a later version.
        StorageError: it cannot be read.
    """
    with open_pack(storage, name) as source:
        return footer_of(source, name)


def open_pack(storage: Storage, name: ObjectName) -> Source:
    """A pack opened for reading.

    Raises:
        Missing: no such pack.
    """
    try:
        return storage.source(name)
    except ObjectMissing as error:
        raise Missing(f"{name} is not there; run 'holdfast verify' to see what needs it") from error


def footer_of(source: Source, name: ObjectName) -> Footer:
    """As `read_footer`, from an open pack."""
    size = source.size
    if size < HEADER_BYTES + TRAILER_BYTES:
        raise Corrupt(f"{name} has {size} bytes, too few for a pack; it was truncated")
    last = _read(source, max(0, size - _FIRST_READ), size)
    tail = decode_trailer(name, last[-TRAILER_BYTES:], size)
    return decode_footer(name, _footer_bytes(source, tail, last), tail, size)


def _footer_bytes(source: Source, tail: Tail, last: bytes) -> bytes:
    start = tail.offset - (source.size - len(last))
    if start >= 0:
        return last[start : start + tail.length]
    return _read(source, tail.offset, tail.offset + tail.length)


def _read(source: Source, start: int, end: int) -> bytes:
    data = bytearray(end - start)
    source.read_into(start, memoryview(data))
    return bytes(data)


class Footers:
    """The footers of a store's packs, each read once: packs never change. Thread-safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._known: dict[ObjectName, Footer] = {}

    def get(self, name: ObjectName) -> Footer:
        """The footer of a pack; raises as `read_footer`, and `Unreadable` where the storage answers EIO."""
        with self._lock:
            found = self._known.get(name)
        return found or self.add(self._read(name))

    def _read(self, name: ObjectName) -> Footer:
        try:
            return read_footer(self._storage, name)
        except StorageError as error:
            if error.errno != errno.EIO:
                raise
            raise Unreadable(str(error)) from error

    def add(self, footer: Footer) -> Footer:
        """Remember a footer that was just written."""
        with self._lock:
            return self._known.setdefault(footer.name, footer)

    def forget(self, names: Iterable[ObjectName]) -> None:
        """Forget packs that were deleted, so that memory does not grow with every save."""
        with self._lock:
            for name in names:
                self._known.pop(name, None)

    def __len__(self) -> int:
        return len(self._known)


_PER_PACK = 1 << 32
"""Row numbers of pack n begin at n times this; one dictionary of integers is the whole index."""


class SegmentIndex:
    """Digest to `Location` over some packs. Immutable, so thread-safe; about 200 bytes of memory a segment.

    A digest that several packs hold is found in the last of them.
    """

    __slots__ = ("_footers", "_rows")

    def __init__(self, footers: Iterable[Footer] = ()) -> None:
        self._footers = tuple(footers)
        self._rows: dict[bytes, int] = {}
        for pack, footer in enumerate(self._footers):
            base = pack * _PER_PACK
            self._rows.update(zip(footer.digests(), range(base, base + len(footer)), strict=True))

    @classmethod
    def of(cls, storage: Storage | Footers, packs: Iterable[ObjectName]) -> SegmentIndex:
        """The index of ``packs``; raises as `read_footer`."""
        footers = storage if isinstance(storage, Footers) else Footers(storage)
        return cls(map(footers.get, packs))

    @classmethod
    def _made(cls, footers: tuple[Footer, ...], rows: dict[bytes, int]) -> SegmentIndex:
        index = cls()
        index._footers, index._rows = footers, rows
        return index

    def merged(self, *others: SegmentIndex) -> SegmentIndex:
        """This one and the others; later ones win."""
        footers, rows = self._footers, dict(self._rows)
        for other in others:
            base = len(footers) * _PER_PACK
            rows.update((digest, base + row) for digest, row in other._rows.items())
            footers += other._footers
        return self._made(footers, rows)

    def only(self, digests: Iterable[Digest]) -> SegmentIndex:
        """The same for some segments alone; those that it does not know are no error."""
        return self._made(self._footers, {digest: self._rows[digest] for digest in digests if digest in self._rows})

    def without(self, digests: Iterable[Digest]) -> SegmentIndex:
        """The same without some segments: rotten ones, which must be neither read nor reused."""
        rows = dict(self._rows)
        for digest in digests:
            rows.pop(digest, None)
        return self._made(self._footers, rows)

    def get(self, digest: Digest) -> Location | None:
        """Where a segment lies, if in these packs."""
        row = self._rows.get(digest)
        if row is None:
            return None
        footer = self._footers[row // _PER_PACK]
        return Location(footer.name, footer[row % _PER_PACK])

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Digest]:
        return map(Digest, self._rows)

    @property
    def packs(self) -> list[ObjectName]:
        """The packs that it covers."""
        return [footer.name for footer in self._footers]
