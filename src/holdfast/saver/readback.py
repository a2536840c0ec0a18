"""Reading back what a save wrote, and keeping packs that turned out rotten from being reused.

One rotten segment that every later checkpoint shares would be the loss of all
of them, while the good bytes are in memory at every save. So a pack that is
known to be damaged is no source: the next save writes its segments again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence

from holdfast.catalog import layout
from holdfast.catalog.marks import add_mark, read_record_marks
from holdfast.catalog.objects import load_each
from holdfast.catalog.runs import read_record
from holdfast.catalog.store import Store
from holdfast.errors import BeingDeleted, Damaged, StorageError
from holdfast.ids import ObjectName
from holdfast.packs.parallel import Pace
from holdfast.packs.verify import Problem, verify_pack
from holdfast.records import Mark, MarkKind, Record, Target

logger = logging.getLogger(__name__)

_KEY = "packs"
_MARK = re.compile(rf".*/marks/.*/({MarkKind.QUARANTINED}|{MarkKind.NOTE})-[^/]*\.json")


def read_back(
    store: Store,
    record: Record,
    packs: Collection[str],
    progress: Callable[[int], None] | None = None,
    pace: Pace | None = None,
) -> list[Problem]:
    """What is damaged in packs of a record; those of a verified parent were read back before.

    Args:
        store: where the record lies.
        record: a committed one.
        packs: which of its packs.
        progress: told of bytes as they are checked.
        pace: whether to leave the processor to others, and until when.
    """
    before = _packs_verified(store, record.parent)
    new = [ObjectName(name) for name in packs if name not in before]
    return [problem for name in new for problem in verify_pack(store.storage, name, progress, pace)]


def quarantine(store: Store, record: Record, problems: Sequence[Problem]) -> set[ObjectName]:
    """Marks a record as damaged, durably, and gives the packs that must not be reused.

    Raises:
        StorageError: the mark could not be written.
    """
    damaged = {problem.object for problem in problems}
    data = {"why": f"read back after the save: {problems[0].message}", _KEY: sorted(map(str, damaged))}
    add_mark(store, record.address, MarkKind.QUARANTINED, by="saver", data=data)
    return damaged


def note_damage(store: Store, record: Record, problems: Sequence[Problem]) -> None:
    """Notes that packs which a record relies on have rotted, so that no later save relies on them.

    The record is not quarantined: another copy of what they held makes it whole again. Never raises, for the finding
    counts, whether it can be written down or not.
    """
    damaged = sorted({str(problem.object) for problem in problems})
    data = {"text": f"rotten, to be written again: {problems[0].message}", _KEY: damaged}
    try:
        add_mark(store, record.address, MarkKind.NOTE, by="saver", data=data)
    except (StorageError, BeingDeleted, Damaged) as error:
        logger.warning("%s: that %s is rotten could not be noted: %s", record.address, damaged[0], error)


def quarantined_packs(store: Store) -> set[ObjectName]:
    """The packs that earlier saves, of whichever run, found to be damaged: shared ones concern all runs."""
    listed = store.storage.list(layout.RUNS)
    marks, _ = load_each(store.storage, [one.name for one in listed if _MARK.fullmatch(one.name)], Mark)
    return {ObjectName(name) for mark in marks for name in mark.data.get(_KEY, [])}


def _packs_verified(store: Store, parent: Target | None) -> frozenset[str]:
    """The packs of the parent, if it was read back: it may have been killed, or failed, before it was."""
    try:
        if parent is None or not read_record_marks(store, parent.address).verified:
            return frozenset()
        found = read_record(store, parent.address)
    except Damaged:
        return frozenset()
    return frozenset(found.packs) if isinstance(found, Record) else frozenset()
