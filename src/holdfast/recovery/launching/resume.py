"""Which checkpoints a launch may resume from, in which order, and why others were passed over."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from holdfast.catalog.marks import NO_MARKS, read_marks
from holdfast.catalog.runs import Run, read_record
from holdfast.catalog.store import Store
from holdfast.errors import Damaged
from holdfast.ids import ObjectName, RecordAddress
from holdfast.records import Record, Target

# The last record may be the very one that a rollback has left.
_UNKNOWN_HEAD = "only it says where the run stands; copy it back from a mirror, or name a checkpoint with resume="


@dataclass(slots=True)
class Rejected:
    """What was not used, and why; for the log, the journal and the error."""

    reasons: list[str] = field(default_factory=list)

    def add(self, what: object, why: object) -> None:
        """Notes one rejection."""
        self.reasons.append(f"{what}: {why}")

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "none was found"


def candidates(store: Store, run: Run, rejected: Rejected, begin: RecordAddress | None = None) -> Iterator[Record]:
    """The records to try, best first: the head (or ``begin``), then its ancestors, into the runs it was forked from.

    Damaged and quarantined ones are noted in ``rejected`` and passed over. There is none while the newest start
    cannot be read: then nobody can tell which line is the run's.
    """
    lineage = run.lineage()
    at: Target | None = Target.of(begin) if begin else lineage.head
    # Also where there is no head: with all records damaged or gone a run looks as if it had none.
    _note_lost(store, run, at, rejected)
    if lineage.hidden is not None and begin is None:
        rejected.add(lineage.hidden.name, f"{lineage.hidden.error}; {_UNKNOWN_HEAD}")
        return
    while at is not None:
        # Its number is all that is needed: a damaged run.json of the origin takes nothing from a fork.
        here = run if at.run == run.number else Run.by_number(store, at.run)
        if here.number != run.number:
            _note_lost(store, here, at, rejected)
        at = yield from _line(store, here, at, rejected)


def _note_lost(store: Store, run: Run, begin: Target | None, rejected: Rejected) -> None:
    """What is damaged, and what must have been there: named by a launch that began with it, or marked."""
    published = run.published()
    for one in published.damaged:
        rejected.add(one.name, one.error)
    there = {one.name for part in (published.records, published.aborted, published.damaged) for one in part}
    for name in sorted(_named(store, run, begin) - there):
        rejected.add(name, "it is not there; if it was deleted on purpose, 'holdfast gc' removes what is left of it")


def _named(store: Store, run: Run, begin: Target | None) -> set[ObjectName]:
    """The records of a run that must be there: ``begin`` and those with marks that came after it."""
    marks = (mark.target for one in read_marks(store, run.number).values() for mark in one.marks)
    found = {target.address for target in marks if target.run == run.number}
    if begin is None or begin.run != run.number:
        return {address.name for address in found}
    return {begin.address.name, *(address.name for address in found if address.order > begin.address.order)}


def _line(store: Store, run: Run, begin: Target, rejected: Rejected) -> Generator[Record, None, Target | None]:
    """The candidates within one run; returns where the line goes on in another run, if it does."""
    marks = read_marks(store, run.number)
    for target in run.lineage().ancestors(begin):
        if target.run != run.number:
            return target
        if marks.get(target.address.id, NO_MARKS).quarantined:
            rejected.add(target.address, "quarantined")
        elif (record := _read(store, target, rejected)) is not None:
            yield record
    return None


def _read(store: Store, target: Target, rejected: Rejected) -> Record | None:
    try:
        content = read_record(store, target.address)
    except Damaged as error:
        rejected.add(target.address, error)
        return None
    return content if isinstance(content, Record) else None
