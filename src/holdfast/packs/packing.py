"""The packs that one call writes: who writes where, when a pack is full, and that all of them go if one fails."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from holdfast.errors import ObjectExists, StorageError
from holdfast.ids import ObjectName
from holdfast.packs.footer import Entry, Footer, FooterBuilder
from holdfast.packs.format import BLOCK, aligned, encode_header, pack_name, tail_bytes
from holdfast.storage.blocks import aligned_buffer
from holdfast.storage.protocol import Sink, Storage

log = logging.getLogger(__name__)


class Place:
    """Where a piece goes: an open pack and an offset in it."""

    __slots__ = ("offset", "pack")

    def __init__(self, pack: OpenPack, offset: int) -> None:
        self.pack, self.offset = pack, offset


class OpenPack:
    """A pack being written."""

    def __init__(self, storage: Storage, folder: str, reserve: int) -> None:
        self.id = secrets.token_bytes(16)
        self.name = pack_name(folder, self.id)
        self.storage = storage
        self.sink: Sink = storage.sink(self.name, reserve)
        self.index = FooterBuilder(self.id)
        self.cursor = BLOCK
        self.pending = 0
        self.full = False

    def fits(self, length: int, segments: int, cap: int) -> bool:
        """Whether a piece has room; an empty pack takes any."""
        return not len(self.index) or self.cursor + length + tail_bytes(len(self.index) + segments) <= cap

    def commit(self) -> Footer:
        """Write both ends and make the pack visible, durably."""
        self._write_block(0, encode_header(self.id))
        footer, tail = self.index.finish(self.name, self.cursor)
        self._write_block(self.cursor, tail)
        try:
            self.sink.commit(footer.size)
        except ObjectExists:
            self._claim(footer.size, tail)
        return footer

    def _claim(self, size: int, tail: bytes) -> None:
        # The name is 128 random bits, so what exists is this very pack, committed by an attempt whose answer was lost.
        with self.storage.source(self.name) as source:
            found = bytearray(len(tail))
            if source.size == size:
                source.read_into(size - len(tail), memoryview(found))
            if found != tail:
                raise ObjectExists(f"{self.name} exists and is not the pack being written; save again")

    def _write_block(self, offset: int, data: bytes) -> None:
        block = aligned_buffer(aligned(len(data), BLOCK))
        block[: len(data)] = data
        self.sink.write(offset, block)


class Packing:
    """All packs of one call, as a context: left by an exception, it removes every one of them. Thread-safe."""

    def __init__(self, storage: Storage, folder: str, *, cap: int, expected: int | None) -> None:
        self._storage, self._folder, self._cap = storage, folder, cap
        self._expected = expected or 0
        self._lock = threading.Lock()
        self._open: OpenPack | None = None
        self._unfinished: list[OpenPack] = []
        self.footers: list[Footer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if e is not None:
            self._abandon()

    def place(self, entries: Sequence[Entry], length: int) -> Place:
        """Set a range of ``length`` bytes, a multiple of 4096, aside for segments with offsets within that range.

        Raises:
            StorageError: no pack could be begun, or the full one not committed.
        """
        with self._lock:
            full = self._roll_over(length, len(entries))
            place = self._append(entries, length)
        if full is not None:
            self._commit(full)
        return place

    def done(self, place: Place) -> None:
        """The range was written; the last one of a full pack commits it, while others write on."""
        with self._lock:
            place.pack.pending -= 1
            complete = place.pack.full and not place.pack.pending
        if complete:
            self._commit(place.pack)

    def finish(self) -> None:
        """Commit what is still open; no range may be outstanding."""
        if self._open is not None:
            self._commit(self._open)
            self._open = None

    def _roll_over(self, length: int, segments: int) -> OpenPack | None:
        """Make sure that the open pack has room; gives the previous one if it is full and nobody writes to it."""
        previous = self._open
        if previous is not None and previous.fits(length, segments, self._cap):
            return None
        self._open = OpenPack(self._storage, self._folder, self._reserve(length))
        self._unfinished.append(self._open)
        if previous is not None:
            previous.full = True
        return previous if previous is not None and not previous.pending else None

    def _append(self, entries: Sequence[Entry], length: int) -> Place:
        pack = self._open
        assert pack is not None
        place = Place(pack, pack.cursor)
        for entry in entries:
            pack.index.add(entry._replace(offset=entry.offset + place.offset))
        pack.cursor += length
        pack.pending += 1
        self._expected = max(0, self._expected - length)
        return place

    def _reserve(self, length: int) -> int:
        # Only what is expected: a save that reuses nearly everything must not fail for want of 512 MiB.
        return min(self._cap, BLOCK + max(self._expected, length) + tail_bytes(1))

    def _commit(self, pack: OpenPack) -> None:
        footer = pack.commit()
        with self._lock:
            self._unfinished.remove(pack)
            self.footers.append(footer)

    def _abandon(self) -> None:
        for pack in self._unfinished:
            pack.sink.abort()
        committed: list[ObjectName] = [footer.name for footer in self.footers]
        committed += [pack.name for pack in self._unfinished]
        try:
            self._storage.delete(committed)
        except StorageError as error:
            log.warning("packs of a failed save stay until the next sweep: %s", error)
