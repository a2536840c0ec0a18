"""Checking what is stored: every small object, what names what, and, if asked, every byte.

The shallow check reads all small objects and the footers of all packs. It finds
any changed bit of a small object or footer, anything missing, swapped or
truncated. The deep check also reads every segment. Both tell which checkpoints
are hurt. Nothing is written, so a store on read-only media can be checked; what
retention deletes meanwhile is not taken for damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from holdfast.catalog.checking import Checked, Problem, check_small, check_tree_object, gaps, problem_of, wrong_names
from holdfast.catalog.grammar import Reference
from holdfast.catalog.locating import list_packs, locate, pack_folders, read_footers
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.marks import read_record_marks
from holdfast.catalog.references import resolve
from holdfast.catalog.runs import Run, read_record
from holdfast.catalog.store import Store
from holdfast.errors import Damaged
from holdfast.ids import Digest, ObjectName, RecordAddress, RunNumber
from holdfast.packs.index import SegmentIndex
from holdfast.packs.reader import read_segments
from holdfast.packs.verify import verify_pack
from holdfast.records import Record

__all__ = ["Problem", "Report", "verify"]

Progress = Callable[[int], None]

REPAIR = "a running training writes lost segments again at its next save; else copy the pack from a mirror"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check has found."""

    problems: tuple[Problem, ...]
    objects: int
    """Small objects that were read."""
    records: int
    packs: int
    bytes: int
    """Bytes of packs that were read; 0 unless deep."""
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
        progress: called with the bytes of segments as they are checked.

    Raises:
        UnknownReference: nothing answers to ``reference``.
        StorageError: it cannot be read, which proves nothing about its bytes.
    """
    told = progress or (lambda _: None)
    if reference is not None:
        return _verify_record(store, resolve(store, reference, default_run), deep=deep, progress=told)
    return _Whole(store, deep, told).report()


def _verify_record(store: Store, record: Record, *, deep: bool, progress: Progress) -> Report:
    run = store.run(record.run)
    marks = read_record_marks(store, record.address)
    problems = [problem_of(one.name, one.error) for one in marks.damaged]
    report = Report(problems=(), objects=1 + len(marks.marks), records=1, packs=0, bytes=0)
    try:
        digests = list(dict.fromkeys(read_manifest(run, record.manifest_digest).segment_digests()))
    except Damaged as error:
        broken = problem_of(record.name, error, records=(record.address,))
        return replace(report, problems=(*problems, broken))
    index = locate(run, record, digests)
    problems += _lost(record, (digest for digest in digests if digest not in index))
    there = [digest for digest in digests if digest in index]
    if deep:
        problems += _damaged_segments(store, index, there, record.address, progress)
    found = [location for digest in there if (location := index.get(digest))]
    return replace(
        report,
        problems=tuple(problems),
        packs=len({location.pack for location in found}),
        bytes=sum(location.entry.length for location in found) if deep else 0,
    )


def _lost(record: Record, missing: Iterable[Digest]) -> Iterator[Problem]:
    lost = sorted(missing)
    if lost:
        what = f"{len(lost)} segments of {record.address} are in no readable pack, the first is {lost[0].short}"
        yield Problem(object=record.name, kind="missing", what=what, remedy=REPAIR, records=(record.address,))


def _damaged_segments(
    store: Store, index: SegmentIndex, digests: Iterable[Digest], address: RecordAddress, progress: Progress
) -> Iterator[Problem]:
    for digest in digests:
        location = index.get(digest)
        assert location is not None
        try:
            read_segments(store.storage, index.get, [(digest, memoryview(bytearray(location.entry.length)))], threads=1)
        except Damaged as error:
            yield problem_of(location.pack, error, remedy=REPAIR, records=(address,))
        progress(location.entry.length)


@dataclass(slots=True)
class _Whole:
    """The check of a whole store, in the one order that is safe beside running saves: what names, then what is named."""

    store: Store
    deep: bool
    progress: Progress
    problems: list[Problem] = field(default_factory=list)
    objects: int = 0
    packs: int = 0
    bytes: int = 0

    def report(self) -> Report:
        small = check_small(self.store)
        self.problems += small.problems
        self.objects += small.read
        self.problems += [*wrong_names(self.store, small), *gaps(small)]
        shared = self._packs(pack_folders(None))
        runs = {run.number: run for run in map(self.store.run, self._readable_runs(small))}
        for number, run in runs.items():
            self._run(run, [record for record in small.records if record.run == number], shared)
        self._stray_trees(small, runs)
        return Report(
            problems=tuple(self.problems),
            objects=self.objects,
            records=len(small.records),
            packs=self.packs,
            bytes=self.bytes,
            unknown=small.unknown,
        )
