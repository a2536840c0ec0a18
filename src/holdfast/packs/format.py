"""Format 1 of a pack: many segments in one immutable object, with their index at its end.

All integers are unsigned and little-endian. A *digest* is BLAKE3-256, 32
bytes; a *check* is the first 16 bytes of one. In this order, without holes::

    header      64 bytes at offset 0
                  16  magic, the ASCII text "holdfast pack", CR, LF, LF
                   4  format version, 1
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
                  codecs   N x  1 byte : 0 raw, 1 zstd (one frame, content size stated), 2 openzl (frames)
                  checks   N x 16 bytes: of the stored bytes
    trailer     96 bytes at the very end
                   8  offset of the footer
                   8  length of the footer
                  32  digest of the footer
                   4  format version, 1
                  12  zero
                  16  check of the 64 bytes before
                  16  magic, as above

Every byte between these is zero, and no gap reaches 4096 bytes, so every byte
of a pack is known or covered by a digest. A pack's length is a multiple of 4096.
The object's name ends in the id, as 32 hexadecimal digits, and ``.pack``: two
packs that were swapped are found. A later version keeps the trailer's shape.

Stored as *openzl*, a segment is a sequence of frames of OpenZL's format 21, each behind
its length in 4 bytes and with one output; the contents of the outputs, one after the
other, are the raw bytes. A writer makes a frame of every 256 KiB of raw bytes, the last
one perhaps shorter, without OpenZL's own checksums.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from holdfast.errors import Corrupt, UnknownFormat
from holdfast.ids import Digest, ObjectName

VERSION = 1
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


class Tail(NamedTuple):
    """What a trailer says."""

    offset: int
    length: int
    digest: Digest


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


def _fits(tail: Tail, size: int) -> bool:
    end = tail.offset + tail.length + TRAILER_BYTES
    return size % BLOCK == tail.offset % BLOCK == 0 and tail.offset >= HEADER_BYTES and aligned(end, BLOCK) == size
