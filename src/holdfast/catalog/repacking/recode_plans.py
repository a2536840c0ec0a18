"""Which packs are worth another codec: decided from samples of what is live in them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.catalog.manifests import read_reach
from holdfast.catalog.repacking.dtypes import UNKNOWN, read_dtypes
from holdfast.catalog.repacking.plans import RepackPlan, Scope, read_scope
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import Damaged, ObjectMissing
from holdfast.ids import ObjectName, RunNumber
from holdfast.packs.codec import Codec, expected, sample_places
from holdfast.packs.footer import Entry, Footer
from holdfast.packs.index import SegmentIndex, open_pack
from holdfast.packs.reader import read_segments
from holdfast.records import Record
from holdfast.storage.protocol import Source

_log = logging.getLogger(__name__)

WORTH = 1 / 32
"""A pack that gets shorter by less of what is live in it is left alone."""

_MAKES = {
    Codec.RAW: (Codec.RAW,),
    Codec.ZSTD: (Codec.RAW, Codec.ZSTD),
    Codec.OPENZL: (Codec.RAW, Codec.ZSTD, Codec.OPENZL),
}
"""What a save with a codec may store: each leaves to others what it does not suit."""


class Part(NamedTuple):
    """The live segments that one codec stores, and what is expected to become of them."""

    segments: int = 0
    stored: int = 0
    expected: int = 0

    def plus(self, other: Part) -> Part:
        """Both together."""
        return Part(*(mine + more for mine, more in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan:
    """What is live in a pack, by the codec that stores it now."""

    name: ObjectName
    size: int
    """Length of the pack."""
    parts: Mapping[Codec, Part]

    @property
    def total(self) -> Part:
        """All of it."""
        return _sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RecodePlan:
    """What a recode replaces: a new pack for each old one."""

    run: RunNumber | None
    """None: the shared packs."""
    codec: Codec
    packs: tuple[PackPlan, ...] = ()
    unclear: str | None = None
    """Why nothing is recoded: it cannot be told what is live."""

    @property
    def parts(self) -> dict[Codec, Part]:
        """What is live in those packs, by the codec that stores it now."""
        found = defaultdict[Codec, list[Part]](list)
        for pack in self.packs:
            for codec, part in pack.parts.items():
                found[codec].append(part)
        return {codec: _sum(found[codec]) for codec in Codec if codec in found}

    @property
    def total(self) -> Part:
        """All of it."""
        return _sum(pack.total for pack in self.packs)

    def repack(self, packs: Iterable[PackPlan]) -> RepackPlan:
        """The plan that does some of it."""
        chosen = tuple(packs)
        return RepackPlan(
            run=self.run,
            codec=self.codec,
            packs=tuple(pack.name for pack in chosen),
            live_bytes=sum(pack.total.stored for pack in chosen),
            size=sum(pack.size for pack in chosen),
        )


def plan_recode(
    store: Store,
    run: Run | None,
    codec: Codec,
    *,
    record: Record | None = None,
    progress: Callable[[int], None] | None = None,
) -> RecodePlan:
    """What another codec would do to a run's own packs (``run``) or to the shared packs (None).

    Reads a sample of 64 KiB of each segment that is stored raw, and others whole. Nothing is changed.

    Args:
        store: the store.
        run: the run, or None.
        codec: the one that is wanted; see `holdfast.packs.codec.check_available`.
        record: only packs that hold segments of this one.
        progress: called with stored bytes of live segments as they were looked at.

    Raises:
        CodecUnavailable: segments are stored with a codec that is not installed here.
        Damaged: ``record`` needs a manifest that cannot be read.
        StorageError: the store cannot be read.
    """
    scope = read_scope(store, run)
    number = None if run is None else run.number
    if scope.unclear:
        return RecodePlan(run=number, codec=codec, unclear=scope.unclear)
    packs = list(_chosen(_at_home(scope), _reach(run, record)))
    samples = _Samples(store, codec, _dtypes(store, run, packs), progress or _no_progress)
    looked_at = (samples.look(footer, entries) for footer, entries in packs)
    return RecodePlan(run=number, codec=codec, packs=tuple(pack for pack in looked_at if pack and _worth(pack, codec)))


def _at_home(scope: Scope) -> Iterator[tuple[Footer, list[Entry]]]:
    """Per pack that holds anything live, what it is the home of: a segment that several packs hold counts in one.

    What has none left is a copy that a recode, killed or disturbed, did not come to delete.
    """
    homes = {digest: footer.name for footer in (*scope.own, *scope.others) for digest in footer.digests()}
    for footer in scope.own:
        if not scope.live.isdisjoint(footer.digests()):
            yield (
                footer,
                [entry for entry in footer if entry.digest in scope.live and homes[entry.digest] == footer.name],
            )


def _reach(run: Run | None, record: Record | None) -> frozenset[bytes] | None:
    if run is None or record is None:
        return None
    raw = read_reach(run, record.manifest_digest).digests
    return frozenset(raw[at : at + 32] for at in range(0, len(raw), 32))


def _chosen(
    packs: Iterable[tuple[Footer, list[Entry]]], needed: frozenset[bytes] | None
) -> Iterator[tuple[Footer, list[Entry]]]:
    for footer, entries in packs:
        if needed is None or not needed.isdisjoint(footer.digests()):
            yield footer, entries


def _dtypes(store: Store, run: Run | None, packs: Iterable[tuple[Footer, list[Entry]]]) -> dict[bytes, str]:
    return read_dtypes(store, run, {bytes(entry.digest) for _, entries in packs for entry in entries})


class _Samples(NamedTuple):
    """Looks at packs."""

    store: Store
    codec: Codec
    dtypes: Mapping[bytes, str]
    progress: Callable[[int], None]

    def look(self, footer: Footer, entries: list[Entry]) -> PackPlan | None:
        """What would become of a pack; None: it cannot be read."""
        parts = defaultdict[Codec, Part](Part)
        index = SegmentIndex([footer])
        try:
            with open_pack(self.store.storage, footer.name) as source:
                for entry in entries:
                    stored = self._expected(source, index, entry)
                    parts[entry.codec] = parts[entry.codec].plus(Part(1, entry.stored, stored))
                    self.progress(entry.stored)
        except (Damaged, ObjectMissing) as error:
            _log.warning("not recoded: %s", error)
            return None
        return PackPlan(name=footer.name, size=footer.size, parts=dict(parts))

    def _expected(self, source: Source, index: SegmentIndex, entry: Entry) -> int:
        if entry.codec is self.codec:
            return entry.stored
        if self.codec is Codec.RAW:
            return entry.length
        sample = self._sample(source, index, entry)
        codec, ratio = expected(self.codec, sample, entry.length, self.dtypes.get(entry.digest, UNKNOWN))
        return entry.stored if codec is entry.codec else round(ratio * entry.length)

    def _sample(self, source: Source, index: SegmentIndex, entry: Entry) -> bytes:
        places = sample_places(entry.length)
        if entry.codec is not Codec.RAW:
            raw = memoryview(bytearray(entry.length))
            read_segments(self.store.storage, index.get, [(entry.digest, raw)], threads=1)
            return b"".join([raw[place] for place in places])
        pieces = [bytearray(place.stop - place.start) for place in places]
        for place, piece in zip(places, pieces, strict=True):
            source.read_into(entry.offset + place.start, memoryview(piece))
        return b"".join(pieces)


def _worth(pack: PackPlan, codec: Codec) -> bool:
    if not pack.parts:
        return True  # nothing needs it
    if not set(pack.parts) <= set(_MAKES[codec]):
        return True  # somebody wants to read it without the package of the codec that it has
    return pack.total.stored - pack.total.expected > WORTH * pack.total.stored


def _sum(parts: Iterable[Part]) -> Part:
    total = Part()
    for part in parts:
        total = total.plus(part)
    return total


def _no_progress(_: int) -> None:
    pass
