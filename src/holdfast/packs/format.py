"""Format 0 of a pack: many segments in one immutable object, with their index at its end.

All integers are unsigned and little-endian. A *digest* is BLAKE3-256, 32
bytes; a *check* is the first 16 bytes of one. In this order, without holes::

    header      64 bytes at offset 0
                  16  magic, the ASCII text "holdfast pack", CR, LF, LF
                   4  format version, 0
                  12  zero
                  16  id of the pack: 16 random bytes
                  16  zero
    segments    each at a multiple of 4096 if 64 KiB or more are stored, else of 64
    footer      at a multiple of 4096: msgpack, a map with exactly these keys, N = number of segments
                  id       16 bytes, the id again
                  digests  N x 32 bytes: of the raw bytes
                  offsets  N x  8 bytes: where the stored bytes begin, ascending
                  stored   N x  4 bytes: length as stored, 1 to `length`
                  lengths  N x  4 bytes: length of the raw bytes, 1 to 8 MiB
                  codecs   N x  1 byte : 0 raw, 1 zstd (one frame, content size stated)
                  checks   N x 16 bytes: of the stored bytes
    trailer     96 bytes at the very end
                   8  offset of the footer
                   8  length of the footer
                  32  digest of the footer
                   4  format version, 0
                  12  zero
                  16  check of the 64 bytes before
                  16  magic, as above

Every byte between these is zero, and no gap reaches 4096 bytes, so every byte
of a pack is known or covered by a digest. A pack's length is a multiple of 4096.
The object's name ends in the id, as 32 hexadecimal digits, and ``.pack``: two
packs that were swapped are found. A later version keeps the trailer's shape.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterator
from operator import add, le
from typing import NamedTuple

import msgspec

from holdfast.errors import Corrupt, UnknownFormat
from holdfast.ids import Digest, ObjectName
from holdfast.packs.codec import Codec
from holdfast.trees import SEGMENT_BYTES

VERSION = 0
BLOCK = 4096
"""Alignment of long segments, of the footer and of a pack's length: what direct I/O wants."""
SMALL_ALIGNMENT = 64
ALIGNED_FROM = 64 * 1024
"""Segments of this stored length and more are aligned to `BLOCK`."""
PACK_BYTES = 512 * 1024 * 1024
"""No pack is longer."""
CHECK_BYTES = 16

MAGIC = b"holdfast pack\r\n\n"
HEADER_BYTES = 64
TRAILER_BYTES = 96

_HEADER = struct.Struct("<16sI12x16s16x")
_TRAILER_BODY = struct.Struct("<QQ32sI12x")
_NAME = re.compile(r"([0-9a-f]{32})\.pack")
_ROW_BYTES = 32 + 8 + 4 + 4 + 1 + 16
_CODECS = (Codec.RAW, Codec.ZSTD)


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


class Tail(NamedTuple):
    """What a trailer says."""

    offset: int
    length: int
    digest: Digest


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

    __slots__ = ("_checks", "_codecs", "_digests", "_lengths", "_offsets", "_stored", "end", "name", "size")

    name: ObjectName
    size: int
    """Length of the whole pack."""
    end: int
    """Where the footer begins: the segments end before it."""

    def __init__(self, name: ObjectName, size: int, end: int, columns: _Columns) -> None:
        self.name, self.size, self.end = name, size, end
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
        tail = encode_trailer(Tail(offset, len(body), Digest.of(body)))
        return Footer(name, offset + length, offset, columns), body.ljust(length - TRAILER_BYTES, b"\0") + tail


def aligned(offset: int, to: int) -> int:
    """The next multiple of ``to``, or ``offset`` if it is one."""
    return -(-offset // to) * to


def alignment(stored: int) -> int:
    """To what a segment of so many stored bytes is aligned."""
    return BLOCK if stored >= ALIGNED_FROM else SMALL_ALIGNMENT


def tail_bytes(segments: int) -> int:
    """At most so many bytes follow the segments of a pack."""
    return aligned(segments * _ROW_BYTES + 256 + TRAILER_BYTES, BLOCK)


def pack_name(folder: str, id_: bytes) -> ObjectName:
    """The object name of a pack in a folder, which ends in ``/``."""
    return ObjectName(f"{folder}{id_.hex()}.pack")


def pack_id(name: ObjectName) -> bytes:
    """The id that the name of a pack states.

    Raises:
        Corrupt: not the name of a pack.
    """
    match = _NAME.fullmatch(name.leaf)
    if match is None:
        raise Corrupt(f"{name} is not the name of a pack; something else was put there")
    return bytes.fromhex(match[1])


def encode_header(id_: bytes) -> bytes:
    """The first 64 bytes of a pack: fixed but for the id."""
    return _HEADER.pack(MAGIC, VERSION, id_)


def encode_trailer(tail: Tail, version: int = VERSION) -> bytes:
    """The last 96 bytes of a pack."""
    body = _TRAILER_BODY.pack(tail.offset, tail.length, tail.digest, version)
    return body + Digest.of(body)[:CHECK_BYTES] + MAGIC


def decode_trailer(name: ObjectName, data: bytes, size: int) -> Tail:
    """What the last 96 bytes of a pack of ``size`` bytes say, checked.

    Raises:
        Corrupt: not the end of a pack, or not of one of this size.
        UnknownFormat: the end of a pack of a version that this one cannot read.
    """
    body = data[: _TRAILER_BODY.size]
    if len(data) != TRAILER_BYTES or data[_TRAILER_BODY.size :] != Digest.of(body)[:CHECK_BYTES] + MAGIC:
        raise Corrupt(f"{name} does not end like a pack: truncated or damaged; run 'holdfast verify'")
    offset, length, digest, version = _TRAILER_BODY.unpack(body)
    if version != VERSION:
        raise UnknownFormat(f"{name} is a pack of format {version}; this holdfast reads {VERSION}; upgrade holdfast")
    tail = Tail(offset, length, Digest(digest))
    if body != encode_trailer(tail)[: len(body)] or not _fits(tail, size):
        raise Corrupt(f"{name}: its trailer does not fit its {size} bytes; run 'holdfast verify'")
    return tail


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
    footer = Footer(name, size, tail.offset, columns)
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
    widths = (columns.digests, 32), (columns.offsets, 8), (columns.stored, 4), (columns.lengths, 4), (columns.checks, 16)
    if any(len(column) != rows * width for column, width in widths):
        raise Corrupt(f"{name}: the columns of its footer differ in length")
    return columns


def _fits(tail: Tail, size: int) -> bool:
    end = tail.offset + tail.length + TRAILER_BYTES
    return size % BLOCK == tail.offset % BLOCK == 0 and tail.offset >= HEADER_BYTES and aligned(end, BLOCK) == size


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
