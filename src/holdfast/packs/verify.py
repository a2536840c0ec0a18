"""Check every byte of a pack: both ends, every segment as stored and as raw bytes, and the zeros between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from holdfast.boxes import SEGMENT_BYTES
from holdfast.errors import Corrupt, Damaged
from holdfast.ids import Digest, ObjectName
from holdfast.packs.footer import Entry, Footer
from holdfast.packs.format import HEADER_BYTES, TRAILER_BYTES, encode_header, pack_id
from holdfast.packs.index import footer_of, open_pack
from holdfast.packs.parallel import Pace, Stop, run_threads
from holdfast.packs.reader import check_segment
from holdfast.storage.blocks import lent_buffer
from holdfast.storage.protocol import Source, Storage


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it was written."""

    object: ObjectName
    kind: str
    """Of the error that reading it would raise: ``missing``, ``corrupt`` or ``unknown-format``."""
    offset: int
    length: int
    digest: Digest | None = None
    """The segment that is lost, if it is one."""
    message: str


def verify_pack(
    storage: Storage,
    name: ObjectName,
    progress: Callable[[int], None] | None = None,
    pace: Pace | None = None,
) -> list[Problem]:
    """Everything that is wrong with a pack; an empty list means that no bit of it has changed.

    Reads it once from end to end, on the calling thread (with ``pace`` on one of its own), through 8 MiB of memory.

    Args:
        storage: where it is.
        name: which one.
        progress: called with bytes of the pack as they are checked.
        pace: whether to leave the processor to others, and until when.

    Raises:
        CodecUnavailable: the package that decodes a segment is not installed.
        StorageError: it cannot be read, which proves nothing about its bytes.
    """
    try:
        with open_pack(storage, name) as source, lent_buffer() as buffer:
            scan = _Scan(source, footer_of(source, name), buffer, progress or _no_progress)
            if pace is None:
                scan.run(threading.Event())
            else:
                run_threads(1, scan.run, pace)
            return scan.problems
    except Damaged as error:
        return [Problem(object=name, kind=error.kind, offset=0, length=0, message=str(error))]


class _Region(NamedTuple):
    """Bytes between two boundaries: a segment, or what must hold exactly ``literal``."""

    start: int
    end: int
    entry: Entry | None
    literal: bytes = b""


def _regions(footer: Footer) -> Iterator[_Region]:
    yield _Region(0, HEADER_BYTES, None, encode_header(pack_id(footer.name)))
    end = HEADER_BYTES
    for entry in footer:
        yield from _gap(end, entry.offset)
        end = entry.offset + entry.stored
        yield _Region(entry.offset, end, entry)
    yield from _gap(end, footer.end)
    yield from _gap(footer.end + footer.length, footer.size - TRAILER_BYTES)


def _gap(start: int, end: int) -> Iterator[_Region]:
    if start < end:
        yield _Region(start, end, None, bytes(end - start))


class _Scan:
    """One pass over a pack; whoever runs it goes on where the one before stopped."""

    def __init__(self, source: Source, footer: Footer, buffer: memoryview, progress: Callable[[int], None]) -> None:
        self._source, self._name, self._progress = source, footer.name, progress
        self._batches = _batches(_regions(footer))
        self._buffer = buffer
        self.problems: list[Problem] = []

    def run(self, stop: Stop) -> None:
        while not stop.is_set() and (regions := next(self._batches, None)):
            start, end = regions[0].start, regions[-1].end
            self._source.read_into(start, self._buffer[: end - start])
            for region in regions:
                data = self._buffer[region.start - start : region.end - start]
                self.problems.extend(_check(self._name, region, data))
            self._progress(end - start)


def _batches(regions: Iterator[_Region]) -> Iterator[list[_Region]]:
    batch: list[_Region] = []
    for region in regions:
        if batch and region.end - batch[0].start > SEGMENT_BYTES:
            yield batch
            batch = []
        batch.append(region)
    yield batch


def _check(name: ObjectName, region: _Region, data: memoryview) -> Iterator[Problem]:
    if region.entry is None:
        if data != region.literal:
            yield _problem(name, region, f"{name}: bytes {region.start} to {region.end} are not what they must be")
        return
    try:
        check_segment(name, region.entry, data)
    except Corrupt as error:
        yield _problem(name, region, str(error))


def _problem(name: ObjectName, region: _Region, message: str) -> Problem:
    digest = region.entry.digest if region.entry else None
    length = region.end - region.start
    return Problem(object=name, kind=Corrupt.kind, offset=region.start, length=length, digest=digest, message=message)


def _no_progress(_: int) -> None:
    pass
