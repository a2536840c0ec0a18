"""The footer of a pack: its index, in columns. Source: `holdfast.packs.format`."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from operator import add, le
from typing import NamedTuple

import msgspec

from holdfast.boxes import SEGMENT_BYTES
from holdfast.errors import Corrupt, UnknownFormat
from holdfast.ids import Digest, ObjectName
from holdfast.packs.codec import Codec
from holdfast.packs.format import BLOCK, HEADER_BYTES, TRAILER_BYTES, Tail, aligned, alignment, encode_trailer, pack_id

_CODECS = (Codec.RAW, Codec.ZSTD, Codec.OPENZL)
"""In the order of their numbers in a footer."""


class Entry(NamedTuple):
    """One segment of a pack."""

    digest: Digest
    offset: int
    stored: int
    """Bytes in the pack."""
    length: int
    """Raw bytes."""
    codec: Codec
    check: bytes
    """The first 16 bytes of the digest of the stored bytes."""


class _Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: bytes
    digests: bytes
    offsets: bytes
    stored: bytes
    lengths: bytes
    codecs: bytes
    checks: bytes


class Footer:
    """The index of one pack, in columns: a hundred thousand segments cost no hundred thousand objects.

    Behaves as an immutable sequence of `Entry`, in order of offset.
    """

    __slots__ = ("_checks", "_codecs", "_digests", "_lengths", "_offsets", "_stored", "end", "length", "name", "size")

    name: ObjectName
    size: int
    """Length of the whole pack."""
    end: int
    """Where the footer begins: the segments end before it."""
    length: int
    """Bytes of the footer itself."""

    def __init__(self, name: ObjectName, size: int, tail: Tail, columns: _Columns) -> None:
        self.name, self.size, self.end, self.length = name, size, tail.offset, tail.length
        self._digests, self._codecs, self._checks = columns.digests, columns.codecs, columns.checks
        self._offsets, self._stored, self._lengths = (
            _integers("Q", columns.offsets),
            _integers("I", columns.stored),
            _integers("I", columns.lengths),
        )

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int) -> Entry:
        at = range(len(self))[row]
        return Entry(
            Digest(self._digests[32 * at : 32 * at + 32]),
            self._offsets[at],
            self._stored[at],
            self._lengths[at],
            _CODECS[self._codecs[at]],
            self._checks[16 * at : 16 * at + 16],
        )

    def __iter__(self) -> Iterator[Entry]:
        return map(self.__getitem__, range(len(self)))

    @property
    def entries(self) -> list[Entry]:
        """All segments, in order of offset; a new list at each call."""
        return list(self)

    def digests(self) -> Iterator[bytes]:
        """The digests in order of offset, as plain bytes: the cheapest way through a long footer."""
        return map(bytes, map(self._digests.__getitem__, map(slice, *_row_bounds(len(self)))))

    @property
    def raw_bytes(self) -> int:
        """Raw bytes of all segments."""
        return sum(self._lengths)

    @property
    def stored_bytes(self) -> int:
        """Stored bytes of all segments, without gaps and index."""
        return sum(self._stored)

    def fault(self) -> str | None:
        """What breaks the rules of the format, if anything."""
        offsets, stored, lengths = self._offsets, self._stored, self._lengths
        ends = [HEADER_BYTES, *map(add, offsets, stored)]
        starts = [*offsets, self.end]
        if not all(map(le, ends, starts)):
            return "segments overlap or are out of order"
        if any(start - end >= BLOCK for start, end in zip(starts, ends, strict=True)):
            return "a gap is too long"
        if any(offset % alignment(size) for offset, size in zip(offsets, stored, strict=True)):
            return "a segment is not aligned"
        if not all(0 < s <= n <= SEGMENT_BYTES for s, n in zip(stored, lengths, strict=True)):
            return "a length is out of bounds"
        return None


class FooterBuilder:
    """Collects segments in order of offset and gives the last bytes of a pack. Not thread-safe."""

    def __init__(self, id_: bytes) -> None:
        self._id = id_
        self._digests, self._codecs, self._checks = bytearray(), bytearray(), bytearray()
        self._offsets, self._stored, self._lengths = array("Q"), array("I"), array("I")

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, entry: Entry) -> None:
        """Append one segment, which lies behind all others."""
        self._digests += entry.digest
        self._offsets.append(entry.offset)
        self._stored.append(entry.stored)
        self._lengths.append(entry.length)
        self._codecs.append(_CODECS.index(entry.codec))
        self._checks += entry.check

    def finish(self, name: ObjectName, offset: int) -> tuple[Footer, bytes]:
        """The footer, and the bytes from ``offset``, a multiple of 4096, to the end of the pack."""
        columns = _Columns(
            id=self._id,
            digests=bytes(self._digests),
            offsets=_little_endian(self._offsets),
            stored=_little_endian(self._stored),
            lengths=_little_endian(self._lengths),
            codecs=bytes(self._codecs),
            checks=bytes(self._checks),
        )
        body = msgspec.msgpack.encode(columns)
        length = aligned(len(body) + TRAILER_BYTES, BLOCK)
        tail = Tail(offset, len(body), Digest.of(body))
        last = body.ljust(length - TRAILER_BYTES, b"\0") + encode_trailer(tail)
        return Footer(name, offset + length, tail, columns), last


def decode_footer(name: ObjectName, data: bytes, tail: Tail, size: int) -> Footer:
    """The footer of a pack of ``size`` bytes, checked: digest first, then id, codecs and every place and length.

    Raises:
        Corrupt: damaged, malformed, or the footer of another pack.
        UnknownFormat: a codec that this version does not know.
    """
    if Digest.of(data) != tail.digest:
        raise Corrupt(f"{name}: its footer does not match its digest; run 'holdfast verify'")
    columns = _columns(name, data)
    if columns.id != pack_id(name):
        raise Corrupt(f"{name} says that it is {columns.id.hex()}.pack; packs were swapped or renamed")
    if max(columns.codecs, default=0) >= len(_CODECS):
        raise UnknownFormat(f"{name} uses a codec that this holdfast does not know; upgrade holdfast")
    footer = Footer(name, size, tail, columns)
    fault = footer.fault()
    if fault:
        raise Corrupt(f"{name}: its footer makes no sense: {fault}")
    return footer


def _columns(name: ObjectName, data: bytes) -> _Columns:
    try:
        columns = msgspec.msgpack.decode(data, type=_Columns)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{name}: its footer is malformed: {error}") from error
    rows = len(columns.codecs)
    widths = (
        (columns.digests, 32),
        (columns.offsets, 8),
        (columns.stored, 4),
        (columns.lengths, 4),
        (columns.checks, 16),
    )
    if any(len(column) != rows * width for column, width in widths):
        raise Corrupt(f"{name}: the columns of its footer differ in length")
    return columns


def _row_bounds(rows: int) -> tuple[range, range]:
    return range(0, 32 * rows, 32), range(32, 32 * rows + 32, 32)


def _integers(kind: str, data: bytes) -> array[int]:
    column = array(kind, data)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _little_endian(column: array[int]) -> bytes:
    if sys.byteorder == "little":
        return column.tobytes()
    swapped = array(column.typecode, column)
    swapped.byteswap()
    return swapped.tobytes()
