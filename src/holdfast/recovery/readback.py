"""Reading back what a save wrote, and keeping packs that turned out rotten from being reused.

One rotten segment that every later checkpoint shares would be the loss of all
of them, while the good bytes are in memory at every save. So a pack that is
known to be damaged is no source: the next save writes its segments again.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.catalog.marks import add_mark, read_marks
from holdfast.catalog.runs import Run, read_record
from holdfast.catalog.store import Store
from holdfast.errors import Damaged
from holdfast.ids import ObjectName
from holdfast.packs.verify import Problem, verify_pack
from holdfast.records import MarkKind, Record

_KEY = "packs"


def read_back(store: Store, record: Record) -> list[Problem]:
    """What is damaged in the packs that this save wrote; what it reused was read back by the save that wrote it."""
    before = _packs_of_parent(store, record)
    new = [ObjectName(name) for name in record.packs if name not in before]
    return [problem for name in new for problem in verify_pack(store.storage, name)]


def quarantine(store: Store, record: Record, problems: Sequence[Problem]) -> set[ObjectName]:
    """Marks a record as damaged, durably, and gives the packs that must not be reused.

    Raises:
        StorageError: the mark could not be written.
    """
    damaged = {problem.object for problem in problems}
    data = {"why": f"read back after the save: {problems[0].message}", _KEY: sorted(map(str, damaged))}
    add_mark(store, record.address, MarkKind.QUARANTINED, by="saver", data=data)
    return damaged


def quarantined_packs(run: Run) -> set[ObjectName]:
    """The packs that earlier saves of the run found to be damaged."""
    marks = (mark for marks in read_marks(run.store, run.number).values() for mark in marks.of(MarkKind.QUARANTINED))
    return {ObjectName(name) for mark in marks for name in mark.data.get(_KEY, [])}


def _packs_of_parent(store: Store, record: Record) -> frozenset[str]:
    try:
        found = read_record(store, record.parent.address) if record.parent else None
    except Damaged:
        return frozenset()
    return frozenset(found.packs) if isinstance(found, Record) else frozenset()
