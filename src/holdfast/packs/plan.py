"""Decide how stored segments are read: in the order of packs and offsets, neighbours together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from holdfast.boxes import SEGMENT_BYTES
from holdfast.ids import ObjectName
from holdfast.packs.footer import Entry
from holdfast.packs.format import BLOCK, aligned
from holdfast.packs.index import Location

GAP_BYTES = 64 * 1024
"""Reading so much for nothing costs less than another request."""


class Wanted(NamedTuple):
    """A stored segment and the memory that its raw bytes shall fill."""

    location: Location
    target: memoryview


class Piece(NamedTuple):
    """One read: whole blocks of one pack, and the segments in it."""

    pack: ObjectName
    offset: int
    length: int
    parts: list[tuple[Entry, memoryview]]


def read_plan(wanted: Iterable[Wanted]) -> list[Piece]:
    """The reads that fetch all of ``wanted``: each at most 8 MiB, at multiples of 4096, sorted."""
    return list(_pieces(sorted(wanted, key=lambda want: (want.location.pack, want.location.entry.offset))))


def _pieces(ordered: list[Wanted]) -> Iterator[Piece]:
    piece: Piece | None = None
    for (pack, entry), target in ordered:
        grown = _grown(piece, pack, entry) if piece else None
        if piece and grown is None:
            yield piece
        if piece is None or grown is None:
            start = entry.offset // BLOCK * BLOCK
            piece = Piece(pack, start, aligned(entry.offset + entry.stored, BLOCK) - start, [])
        else:
            piece = piece._replace(length=grown)
        piece.parts.append((entry, target))
    if piece:
        yield piece


def _grown(piece: Piece, pack: ObjectName, entry: Entry) -> int | None:
    """The length of a piece that also holds ``entry``, or None if that is not worth it."""
    end = piece.offset + piece.length
    length = max(end, aligned(entry.offset + entry.stored, BLOCK)) - piece.offset
    near = pack == piece.pack and entry.offset <= end + GAP_BYTES
    return length if near and length <= SEGMENT_BYTES else None
