"""Checking what is stored: every small object, what names what, and, if asked, every byte.

The shallow check reads all small objects, manifests and the footers of all
packs. It finds any changed bit in those, and anything missing, swapped or
truncated. The deep check also reads every segment. Both tell which checkpoints
are hurt. Nothing is written, so a store on read-only media can be checked; what
is saved or deleted meanwhile is not taken for damage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from holdfast.catalog import layout
from holdfast.catalog.locating import Copies, locate, locate_in, pack_folders
from holdfast.catalog.marks import read_record_marks
from holdfast.catalog.naming.grammar import Reference
from holdfast.catalog.naming.references import resolve
from holdfast.catalog.runs import Run, read_record
from holdfast.catalog.store import Store
from holdfast.catalog.verifying.checking import DISK, MIRROR, Problem, links, problem_of, read_small
from holdfast.catalog.verifying.packs import Packs, check_packs
from holdfast.catalog.verifying.trees import Trees
from holdfast.errors import Damaged, Missing, UnknownReference, Unreadable
from holdfast.ids import Digest, ObjectName, RecordAddress, RunNumber
from holdfast.packs.footer import Entry
from holdfast.packs.index import Footers, Location, SegmentIndex
from holdfast.packs.reader import read_segments
from holdfast.packs.verify import Problem as PackProblem
from holdfast.records import Record

__all__ = ["Problem", "Report", "verify"]

Progress = Callable[[int], None]

REPAIR = "a training that runs on writes lost segments again at its next save; else copy the pack from a mirror"
HARMLESS = "no checkpoint is hurt: another pack has the same whole, or nobody needs it; gc removes the pack in time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check has found."""

    problems: tuple[Problem, ...]
    objects: int
    """Small objects and manifests that were read."""
    records: int
    packs: int
    bytes: int
    """Bytes that were read of packs; 0 unless deep."""
    unknown: tuple[ObjectName, ...] = ()
    """Objects that holdfast did not write; they do no harm."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def affected(self) -> tuple[RecordAddress, ...]:
        """The checkpoints that cannot be loaded in full, by run and order."""
        return tuple(sorted({address for problem in self.problems for address in problem.records}))


def verify(
    store: Store,
    *,
    reference: Reference | str | None = None,
    default_run: RunNumber | None = None,
    deep: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Checks the whole store, or one checkpoint and all that it needs.

    Args:
        store: what to check.
        reference: the checkpoint; None: everything.
        default_run: as in `resolve`.
        deep: also read every segment: all packs from end to end, or all segments of the checkpoint.
        progress: called with the bytes of packs or segments as they are checked.

    Raises:
        UnknownReference: nothing answers to ``reference``, or it was deleted meanwhile.
        Damaged: the record that ``reference`` means cannot be read.
        StorageError: it cannot be read, which proves nothing about its bytes.
    """
    told = progress or _no_progress
    if reference is not None:
        return _verify_record(store, resolve(store, reference, default_run), deep=deep, progress=told)
    return _verify_store(store, deep=deep, progress=told)


def _verify_record(store: Store, record: Record, *, deep: bool, progress: Progress) -> Report:
    report = _checked_record(store, record, deep=deep, progress=progress)
    if report.problems and not _is_there(store, record):
        raise UnknownReference(f"{record.address} was deleted meanwhile; list what there is with 'holdfast ls'")
    return report


def _checked_record(store: Store, record: Record, *, deep: bool, progress: Progress) -> Report:
    run, address = Run.by_number(store, record.run), record.address
    marks = read_record_marks(store, address)
    report = Report(problems=(), objects=3 + len(marks.marks), records=1, packs=0, bytes=0)
    problems = [problem_of(one.name, one.error) for one in marks.damaged]
    try:
        digests = dict.fromkeys(_named_segments(store, record))
    except Damaged as error:
        broken = problem_of(record.name, error, records=[address])
        return replace(report, problems=(*problems, broken))
    index = locate(run, record, digests, fresh=True)
    found = [location for digest in digests if (location := index.get(digest))]
    problems += _lost(record, [digest for digest in digests if digest not in index])
    problems += _damaged_segments(store, record, index, found, progress) if deep else []
    return replace(
        report,
        problems=tuple(problems),
        packs=len({location.pack for location in found}),
        bytes=sum(location.entry.stored for location in found) if deep else 0,
    )


def _named_segments(store: Store, record: Record) -> tuple[Digest, ...]:
    """What the manifest of a record names; it and its skeleton are checked as in a check of everything."""
    trees = Trees(store, (), lambda _, digests: list(digests))
    return trees.needs(layout.tree(RunNumber(record.run), record.manifest_digest)).lost


def _damaged_segments(
    store: Store, record: Record, index: SegmentIndex, found: Iterable[Location], progress: Progress
) -> Iterator[Problem]:
    for _, entry in found:
        yield from _damaged_copies(Copies(store, record, index, store.footers), store, entry, record.address)
        progress(entry.stored)


def _damaged_copies(copies: Copies, store: Store, entry: Entry, address: RecordAddress) -> Iterator[Problem]:
    """As a load does it: other packs are tried, and only if none has the segment whole is the checkpoint hurt."""
    into = memoryview(bytearray(entry.length))
    while (location := copies.index.get(entry.digest)) is not None:
        try:
            return read_segments(store.storage, copies.index.get, [(entry.digest, into)], threads=1)
        except Damaged as error:
            hurt = not copies.try_another(error)
            remedy, records = (REPAIR, [address]) if hurt else (HARMLESS, [])
            yield problem_of(location.pack, error, remedy=remedy, records=records)
            if hurt:
                return None
    return None


def _verify_store(store: Store, *, deep: bool, progress: Progress) -> Report:
    packs = check_packs(store, deep=deep, progress=progress)
    small = read_small(store)
    trees = Trees(store, small.trees, lambda name, digests: packs.lacks(_folders(name), digests))
    hurt = [one for record in small.records if (one := _hurt(store, record, trees, packs)) is not None]
    return Report(
        problems=(
            *small.problems,
            *links(store, small),
            *_tree_problems(trees, hurt),
            *(problem for one in hurt if (problem := one.problem()) is not None),
            *(_pack_problem(problem, hurt) for problem in packs.problems),
        ),
        objects=small.read + len(small.trees),
        records=len(small.records),
        packs=len(packs.names),
        bytes=packs.read,
        unknown=tuple(small.unknown),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hurt:
    """A record that cannot be loaded in full."""

    record: Record
    error: Damaged | None
    """Of its manifest or skeleton."""
    lost: tuple[Digest, ...] = ()

    def problem(self) -> Problem | None:
        if self.error is not None:
            return problem_of(self.record.name, self.error, remedy=MIRROR, records=[self.record.address])
        return next(_lost(self.record, self.lost), None)


def _hurt(store: Store, record: Record, trees: Trees, packs: Packs) -> _Hurt | None:
    manifest = layout.tree(RunNumber(record.run), record.manifest_digest)
    try:
        lost = _still_lost(store, record, trees.needs(manifest).lost, packs)
    except Damaged as error:
        hurt = _Hurt(record=record, error=error)
    else:
        hurt = _Hurt(record=record, error=None, lost=lost)
    # Retention may have deleted the record and then what it named, after the listing.
    return hurt if (hurt.error or hurt.lost) and _is_there(store, record) else None


def _still_lost(store: Store, record: Record, lost: tuple[Digest, ...], packs: Packs) -> tuple[Digest, ...]:
    """Without those that lie in packs which were written since the listing."""
    if not lost:
        return ()
    fresh = locate_in(store, record, lost, Footers(store.storage))
    found = ((digest, fresh.get(digest)) for digest in lost)
    return tuple(digest for digest, location in found if location is None or location.pack in packs.names)


def _is_there(store: Store, record: Record) -> bool:
    try:
        return read_record(store, record.address) is not None
    except Damaged:
        return True


def _lost(record: Record, lost: Collection[Digest]) -> Iterator[Problem]:
    if lost:
        first = min(lost).short
        what = f"{len(lost)} segments of {record.address} are whole in no pack, the first is {first}"
        yield Problem(object=record.name, kind=Missing.kind, what=what, remedy=REPAIR, records=(record.address,))


def _tree_problems(trees: Trees, hurt: Collection[_Hurt]) -> Iterator[Problem]:
    """Damaged trees; those that a record needs are that record's problem too."""
    for name, error in sorted(trees.damaged.items()):
        users = [one.record.address for one in hurt if one.error is error]
        yield problem_of(
            name, error, remedy=f"a next save of equal state writes it again; else {MIRROR}", records=users
        )


def _pack_problem(found: PackProblem, hurt: Collection[_Hurt]) -> Problem:
    records = [one.record.address for one in hurt if _needs_pack(one, found)]
    remedy = DISK if found.kind == Unreadable.kind else REPAIR if records else HARMLESS
    return Problem(object=found.object, kind=found.kind, what=found.message, remedy=remedy, records=tuple(records))


def _needs_pack(one: _Hurt, found: PackProblem) -> bool:
    if found.digest is not None:
        return found.digest in one.lost
    # Nobody can read what is in it, so the record's hint is all there is.
    return bool(one.lost) and found.object in one.record.packs


def _folders(tree: ObjectName) -> list[str]:
    return pack_folders(RunNumber(int(tree.split("/")[2])))


def _no_progress(_: int) -> None:
    pass
