"""Where a save may take segments from instead of writing them again.

Only packs that nobody removes behind its back: those that the committed bases
name or that a repack made of them, and shared ones. Packs of a save that is
not committed may vanish with it, so they are no sources, even if they hold the
right bytes. The hold protects exactly what is found here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from holdfast.catalog import layout
from holdfast.catalog.manifests import read_reach
from holdfast.catalog.objects import exists
from holdfast.catalog.runs import Run, read_record
from holdfast.catalog.tombstones import Tombstones
from holdfast.errors import Damaged
from holdfast.ids import ObjectName, RecordAddress
from holdfast.packs.footer import Footer
from holdfast.packs.index import SegmentIndex
from holdfast.records import Record

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

_log = logging.getLogger(__name__)


def read_sources(
    run: Run,
    *,
    bases: Iterable[RecordAddress],
    shared: bool,
    tombstones: Tombstones,
    quarantined: Collection[ObjectName] = (),
) -> SegmentIndex:
    """The segments that a save may reuse; read after its hold was made and after the tombstones.

    Args:
        run: the run that saves.
        bases: committed records; those of other runs and those that are gone contribute nothing.
        shared: whether all shared packs are sources.
        tombstones: what sweeps have announced; none of it is a source.
        quarantined: packs known to be damaged, which are no source.
    """
    if tombstones.damaged:
        return SegmentIndex()  # nobody knows what they announce
    found = (_committed(run, base, tombstones) for base in bases)
    records = [record for record in found if record is not None]
    footers = _private(run, records, tombstones.names)
    if shared:
        footers += _footers(run.store, _present(run.store, layout.SHARED_PACKS, tombstones.names))
    return SegmentIndex([footer for footer in footers if footer.name not in quarantined])


def _committed(run: Run, base: RecordAddress, tombstones: Tombstones) -> Record | None:
    if base.run != run.number or base.name in tombstones.names:
        return None
    try:
        found = read_record(run.store, base)
    except Damaged as error:
        _log.warning("nothing is reused from %s: %s", base, error)
        return None
    return found if isinstance(found, Record) else None


def _private(run: Run, records: list[Record], announced: frozenset[str]) -> list[Footer]:
    """Packs that the records name, and repacked ones that hold any of their segments."""
    if not records:
        return []
    packs = [name for record in records for name in record.packs if not name.startswith(layout.SHARED_PACKS)]
    hinted = sorted({ObjectName(name) for name in packs})
    # Asked one by one: a run may have ten thousand packs, and a save needs those of its parent.
    present = [name for name in hinted if name not in announced and exists(run.store.storage, name)]
    footers = _footers(run.store, present)
    if present == hinted:
        return footers
    needed = _digests(run, records)
    others = _present(run.store, layout.repacked_packs(run.number), announced)
    repacked = _footers(run.store, [name for name in others if name not in hinted])
    return footers + [footer for footer in repacked if not needed.isdisjoint(footer.digests())]


def _digests(run: Run, records: Iterable[Record]) -> set[bytes]:
    found: set[bytes] = set()
    for record in records:
        try:
            raw = read_reach(run, record.manifest_digest).digests
        except Damaged as error:
            _log.warning("nothing repacked is reused from %s: %s", record.address, error)
            continue
        found.update(raw[at : at + 32] for at in range(0, len(raw), 32))
    return found


def _present(store: Store, folder: str, announced: frozenset[str]) -> list[ObjectName]:
    return [listed.name for listed in store.storage.list(folder) if listed.name not in announced]


def _footers(store: Store, names: Iterable[ObjectName]) -> list[Footer]:
    found = []
    for name in names:
        try:
            found.append(store.footers.get(name))
        except Damaged as error:
            _log.warning("nothing is reused from %s: %s", name, error)
    return found
