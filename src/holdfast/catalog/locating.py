"""Where the segments of a record lie now: by its hint where that still holds, by listing the packs where not.

A repack moves segments and leaves records as they are, so what a record says
about packs may be out of date. Only the digests count.
"""

from __future__ import annotations

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


def locate_in(store: Store, record: Record, digests: Collection[Digest], footers: Footers) -> SegmentIndex:
    """As `locate`, also where the run itself cannot be opened."""
    announced = read_tombstones(store).names
    names = [name for folder in pack_folders(RunNumber(record.run)) for name in list_packs(store, folder)]
    hinted = [name for name in names if name in record.packs and name not in announced]
    index = SegmentIndex(read_footers(footers, hinted).footers)
    if all(digest in index for digest in digests):
        return index
    names.sort(key=lambda name: name not in announced)  # of several copies the index gives the last
    return SegmentIndex(read_footers(footers, names).footers)
