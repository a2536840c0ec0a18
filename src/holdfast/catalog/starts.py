"""What runs stand on: the newest start of each, which may have resumed from a record of another run.

A fork says so in its ``run.json``. A restore by hand says so in its start only,
and until the first save after it that record is all that the run has.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.objects import DamagedObject, ListsFolders, load_each
from holdfast.catalog.runs import Run
from holdfast.ids import ObjectName, RecordId, RunNumber
from holdfast.records import StartInfo

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

_START = re.compile(rf"catalog/runs/({layout.RUN_FOLDER})/launches/(\d{{6,}})\.(\d{{3,}})\.json")


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
    # By name, so that a damaged one does not pass the word to the one before it.
    newest: dict[int, tuple[int, int, ObjectName]] = {}
    for name in _names(store):
        match = _START.fullmatch(name)
        if match is not None:
            run, launch, timeline = map(int, match.groups())
            newest[run] = max(newest.get(run, (0, 0, name)), (launch, timeline, name))
    found, damaged = load_each(store.storage, [name for *_, name in newest.values()], StartInfo)
    return NewestStarts(found, damaged)


def is_superseded(store: Store, start: StartInfo) -> bool:
    """Whether its run has saved since, so that it stands on a record of its own."""
    place = (start.launch, start.timeline)
    return any(address.order[:2] >= place for address in Run.by_number(store, start.run).addresses())


def _names(store: Store) -> Iterator[ObjectName]:
    """Names among which all starts are: of the launches of each run where that is cheap, else all in one listing."""
    one_by_one = isinstance(store.storage, ListsFolders)
    prefixes = [layout.launches_folder(number) for number in store.claimed()] if one_by_one else [layout.RUNS]
    return (listed.name for prefix in prefixes for listed in store.storage.list(prefix))
