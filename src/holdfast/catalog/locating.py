"""Where the segments of a record lie now: by its hint where that still holds, by listing the packs where not.

A repack moves segments and leaves records as they are, so what a record says
about packs may be out of date. Only the digests count.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.objects import DamagedObject
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.catalog.tombstones import read_tombstones
from holdfast.errors import Damaged
from holdfast.ids import Digest, ObjectName, RunNumber
from holdfast.packs.footer import Footer
from holdfast.packs.index import Footers, SegmentIndex
from holdfast.records import Record

_log = logging.getLogger(__name__)


class Footed(NamedTuple):
    """Packs by their footers."""

    footers: list[Footer]
    damaged: list[DamagedObject]
    """Packs whose footer cannot be read, or that are gone."""


def pack_folders(run: RunNumber) -> list[str]:
    """Where the segments of a run's records may lie."""
    return [layout.private_packs(run), layout.SHARED_PACKS]


def list_packs(store: Store, folder: str) -> list[ObjectName]:
    """The packs of a folder, by name."""
    return [listed.name for listed in store.storage.list(folder) if listed.name.endswith(".pack")]


def read_footers(known: Footers, names: Iterable[ObjectName]) -> Footed:
    """The footers of packs; what is damaged is part of the answer, never raised."""
    footers, damaged = [], []
    for name in names:
        try:
            footers.append(known.get(name))
        except Damaged as error:
            damaged.append(DamagedObject(name, error))
    return Footed(footers, damaged)


def locate(run: Run, record: Record, digests: Collection[Digest], *, fresh: bool = False) -> SegmentIndex:
    """An index in which ``digests``, those of ``record``, are found if any readable pack holds them.

    Call it while a `holdfast.catalog.readers.reading` protects the record. Packs that a sweep has
    announced are used for what no other pack holds only, for a sweep that did not see the hold may
    be deleting them.

    Args:
        run: the run of the record.
        record: whose hint is tried first.
        digests: what is wanted.
        fresh: read all footers again, even those that this store has read before.

    Raises:
        StorageError: the store cannot be read.
    """
    return locate_in(run.store, record, digests, Footers(run.store.storage) if fresh else run.store.footers)


def locate_in(
    store: Store,
    record: Record,
    digests: Collection[Digest],
    footers: Footers,
    *,
    avoid: Collection[ObjectName] = (),
) -> SegmentIndex:
    """As `locate`, also where the run itself cannot be opened; packs in ``avoid`` are left out."""
    announced = read_tombstones(store).names
    found = [name for folder in pack_folders(RunNumber(record.run)) for name in list_packs(store, folder)]
    names = [name for name in found if name not in avoid]
    hinted = [name for name in names if name in record.packs and name not in announced]
    index = SegmentIndex(read_footers(footers, hinted).footers)
    if all(digest in index for digest in digests):
        return index
    names.sort(key=lambda name: name not in announced)  # of several copies the index gives the last
    return SegmentIndex(read_footers(footers, names).footers)


class Copies:
    """Where to read each segment of a record, past the copies that have turned out rotten. Not thread-safe.

    Args:
        store: where the record lies.
        record: whose segments are read.
        index: where they lie, from `locate`.
        footers: of the store's packs.
    """

    def __init__(self, store: Store, record: Record, index: SegmentIndex, footers: Footers) -> None:
        self.index = index
        self._store, self._record, self._footers = store, record, footers
        self._rotten: dict[Digest, set[ObjectName]] = defaultdict(set)

    def try_another(self, error: Damaged) -> bool:
        """Whether the damaged segment is read elsewhere from now on, with its neighbours as far as they lie there too.

        False: ``error`` is about no segment, or no other pack holds that one.
        """
        if error.pack is None or error.digest is None:
            return False
        digest, pack = Digest(error.digest), ObjectName(error.pack)
        self._rotten[digest].add(pack)
        others = locate_in(self._store, self._record, [digest], self._footers, avoid=self._rotten[digest])
        if digest not in others:
            return False
        _log.error("%s; the copy in %s is used instead", error, _pack(others, digest))
        here = [one for one in self.index if _pack(self.index, one) == pack]
        moved = [one for one in here if one in others and _pack(others, one) not in self._rotten.get(one, ())]
        self.index = self.index.merged(others.only(moved))
        return True


def _pack(index: SegmentIndex, digest: Digest) -> ObjectName | None:
    location = index.get(digest)
    return None if location is None else location.pack
