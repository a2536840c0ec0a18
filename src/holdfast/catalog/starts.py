"""What runs stand on: the newest start of each, which may have resumed from a record of another run.

A fork says so in its ``run.json``. A restore by hand says so in its start only,
and until the first save after it that record is all that the run has.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from holdfast.catalog.objects import READERS, DamagedObject, load_each
from holdfast.catalog.runs import Run
from holdfast.ids import ObjectName, RecordId, RunNumber
from holdfast.records import StartInfo

if TYPE_CHECKING:
    from holdfast.catalog.store import Store


class NewestStarts(NamedTuple):
    """The newest start of every run that has one, read at one time."""

    starts: list[StartInfo]
    damaged: list[DamagedObject]
    """Those that cannot be read: they may have resumed from any record."""

    def resumed(self, run: RunNumber) -> list[StartInfo]:
        """Those that resumed from a record of ``run``."""
        return [start for start in self.starts if start.resumed_from is not None and start.resumed_from.run == run]

    def elsewhere(self, run: RunNumber) -> dict[RecordId, list[RunNumber]]:
        """For records of ``run``, the other runs that resumed from them."""
        found: dict[RecordId, list[RunNumber]] = defaultdict(list)
        for start in self.resumed(run):
            if start.resumed_from is not None and start.run != run:
                found[RecordId(start.resumed_from.id)].append(RunNumber(start.run))
        return dict(found)


def newest_starts(store: Store) -> NewestStarts:
    """The newest start of every run, also of those whose ``run.json`` is damaged or lost."""
    numbers = store.claimed()
    if not numbers:
        return NewestStarts([], [])
    with ThreadPoolExecutor(min(READERS, len(numbers)), "holdfast-starts") as pool:
        names = pool.map(lambda number: _newest(store, number), numbers)
        found, damaged = load_each(store.storage, [name for name in names if name is not None], StartInfo)
    return NewestStarts(found, damaged)


def is_superseded(store: Store, start: StartInfo) -> bool:
    """Whether its run has saved since, so that it stands on a record of its own."""
    place = (start.launch, start.timeline)
    return any(address.order[:2] >= place for address in Run.by_number(store, start.run).addresses())


def _newest(store: Store, number: RunNumber) -> ObjectName | None:
    return Run.by_number(store, number).newest_start()
