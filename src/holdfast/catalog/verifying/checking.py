"""The small objects of a store, each read and checked, and what they name among each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar, cast

import msgspec

from holdfast.catalog import layout
from holdfast.catalog.journal.journal import gaps, missing_batches
from holdfast.catalog.objects import load_each
from holdfast.catalog.store import Store
from holdfast.errors import Damaged, Missing, ObjectMissing, Unreadable
from holdfast.ids import ObjectName, RecordAddress, RunNumber
from holdfast.records import (
    Aborted,
    Batch,
    Hold,
    LaunchInfo,
    Mark,
    Record,
    RunInfo,
    StartInfo,
    StoreInfo,
    Sweep,
    Tag,
)

T = TypeVar("T", bound=msgspec.Struct)

MIRROR = "copy it from a mirror of this store"
DISK = "nothing is proven: look into the system's log, the disk may be failing; try again, else copy it from a mirror"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it was written."""

    object: ObjectName
    kind: str
    """``missing``, ``corrupt``, ``unknown-format`` or ``unreadable``."""
    what: str
    remedy: str
    records: tuple[RecordAddress, ...] = ()
    """Checkpoints that cannot be loaded in full because of it."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Type:
    """What lies under which names, and what to do when it is damaged."""

    pattern: re.Pattern[str]
    types: tuple[type[msgspec.Struct], ...]
    remedy: str


_ORDER = r"\d{6,}\.\d{3,}\.\d{12,}"


def _type(pattern: str, *types: type[msgspec.Struct], remedy: str) -> _Type:
    return _Type(
        pattern=re.compile(pattern.replace("RUN", f"catalog/runs/{layout.RUN_FOLDER}")), types=types, remedy=remedy
    )


_TYPES = (
    _type(r"holdfast\.json", StoreInfo, remedy=MIRROR),
    _type(r"RUN/run\.json", RunInfo, remedy=f"{MIRROR}; until then the run cannot be opened"),
    _type(r"RUN/launches/\d+\.json", LaunchInfo, remedy=f"{MIRROR}, or leave it: it only says how the launch began"),
    _type(r"RUN/launches/\d+\.\d+\.json", StartInfo, remedy=f"{MIRROR}; until then the run's head may be told wrongly"),
    _type(
        rf"RUN/records/{_ORDER}-[0-9a-f]{{16}}\.json",
        Record,
        Aborted,
        remedy=f"{MIRROR}, or remove the checkpoint; resume passes it",
    ),
    _type(
        r"RUN/marks/[^/]+/[^/]+\.json", Mark, remedy="delete it and mark again; till then pins and quarantines count"
    ),
    _type(r"RUN/holds/[^/]+\.json", Hold, remedy="delete it if no save and no reader of this run is at work"),
    _type(r"RUN/journal/[^/]+/\d+\.json", Batch, remedy="delete it: its events are lost, and nothing else is"),
    _type(r"catalog/tags/[^/]+\.json", Tag, remedy="delete the tag and make it again; till then retention keeps all"),
    _type(r"catalog/sweeps/[^/]+\.json", Sweep, remedy="delete it if no gc and no training is at work"),
)
_TREE = re.compile(rf"catalog/runs/{layout.RUN_FOLDER}/trees/[0-9a-f]{{64}}")
_PACK = re.compile(rf"data/(shared|runs/{layout.RUN_FOLDER})/(repacked/)?[0-9a-f]{{32}}\.pack")
_RUN = re.compile(rf"catalog/runs/({layout.RUN_FOLDER})/")
_LAUNCH = re.compile(rf"catalog/runs/{layout.RUN_FOLDER}/launches/(\d+)\.json")


@dataclass(slots=True, kw_only=True)
class Small:
    """All small objects, read at one time."""

    read: int = 0
    names: set[ObjectName] = field(default_factory=set)
    _contents: dict[type[msgspec.Struct], list[msgspec.Struct]] = field(default_factory=lambda: defaultdict(list))
    trees: list[ObjectName] = field(default_factory=list)
    unknown: list[ObjectName] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, content: msgspec.Struct) -> None:
        """Takes in one that can be read."""
        self._contents[type(content)].append(content)

    def of(self, type_: type[T]) -> list[T]:
        """Those of one type that can be read."""
        return cast("list[T]", self._contents[type_])

    @property
    def records(self) -> list[Record]:
        """The committed records, by run and order."""
        return sorted(self.of(Record), key=lambda record: record.address)


def problem_of(
    name: ObjectName, error: Damaged, *, remedy: str = MIRROR, records: Iterable[RecordAddress] = ()
) -> Problem:
    """A problem from the error that reading ``name`` raised."""
    told = DISK if isinstance(error, Unreadable) else remedy
    return Problem(object=name, kind=error.kind, what=str(error), remedy=told, records=tuple(records))


def read_small(store: Store) -> Small:
    """Reads and checks every small object; trees and packs are only sorted out by name."""
    small = Small()
    by_type: dict[int, list[ObjectName]] = defaultdict(list)
    for name in (listed.name for listed in store.storage.list("")):
        number = next((n for n, one in enumerate(_TYPES) if one.pattern.fullmatch(name)), None)
        if number is not None:
            by_type[number].append(name)
        elif _TREE.fullmatch(name):
            small.trees.append(name)
        elif not _PACK.fullmatch(name):
            small.unknown.append(name)
    for number, names in sorted(by_type.items()):
        _read(store, _TYPES[number], names, small)
    return small


def _read(store: Store, type_: _Type, names: list[ObjectName], small: Small) -> None:
    found, damaged = load_each(store.storage, names, type_.types)
    small.names |= set(names)
    small.read += len(found) + len(damaged)
    for content in found:
        small.add(content)
    for one in damaged:
        lost = (RecordAddress.from_name(one.name),) if Record in type_.types else ()
        small.problems.append(problem_of(one.name, one.error, remedy=type_.remedy, records=lost))


def links(store: Store, small: Small) -> Iterator[Problem]:
    """What small objects name and what is not there: ``run.json``, launches, starts, tagged and forked records."""
    for name, why in sorted(dict(_named(small)).items()):
        if name not in small.names and not _exists(store, name):
            remedy = next(one.remedy for one in _TYPES if one.pattern.fullmatch(name))
            what = f"{name} is not there, and {why}"
            yield Problem(object=name, kind=Missing.kind, what=what, remedy=remedy)
    yield from _launch_gaps(store, small)
    yield from _journal_gaps(small)


def _journal_gaps(small: Small) -> Iterator[Problem]:
    for number, names in sorted(_by_run(small).items()):
        for gap in missing_batches(names):
            what = f"{gap} is not in the journal of {RunNumber(number)}, and the writer has later ones"
            name = layout.journal(RunNumber(number), gap.writer, gap.first)
            yield Problem(object=name, kind=Missing.kind, what=what, remedy="its events are lost, and nothing else is")


def _launch_gaps(store: Store, small: Small) -> Iterator[Problem]:
    """By the names alone, so that one damaged launch is no gap as well."""
    remedy = next(one.remedy for one in _TYPES if LaunchInfo in one.types)
    for number, names in sorted(_by_run(small).items()):
        launches = (match for match in map(_LAUNCH.fullmatch, names) if match)
        for first, last in gaps(int(match[1]) for match in launches):
            name = layout.launch(RunNumber(number), first)
            if _exists(store, name):
                continue  # made while the names were listed
            which = f"{name} is" if first == last else f"{name} and those up to launch {last} are"
            yield Problem(
                object=name, kind=Missing.kind, what=f"{which} not there, and a later launch is", remedy=remedy
            )


def _by_run(small: Small) -> dict[int, list[ObjectName]]:
    by_run: dict[int, list[ObjectName]] = defaultdict(list)
    for name in small.names:
        number = _run_of(name)
        if number is not None:
            by_run[number].append(name)
    return by_run


def _named(small: Small) -> Iterator[tuple[ObjectName, str]]:
    for name in small.names:
        number = _run_of(name)
        if number is not None:
            yield layout.run_info(RunNumber(number)), "its run has other objects"
    for tag in small.of(Tag):
        yield tag.target.address.name, f"tag {tag.tag} names it"
    for info in small.of(RunInfo):
        if info.forked_from is not None:
            yield info.forked_from.address.name, f"{RunNumber(info.number)} was forked from it"
    yield from _launches(small)


def _launches(small: Small) -> Iterator[tuple[ObjectName, str]]:
    for start in small.of(StartInfo):
        yield layout.launch(RunNumber(start.run), start.launch), "a start of that launch is there"
    for record in small.records:
        run = RunNumber(record.run)
        if record.timeline > 0:
            yield layout.start(run, record.launch, record.timeline), "a record of that timeline is there"


def _run_of(name: ObjectName) -> int | None:
    match = _RUN.match(name)
    return int(match[1]) if match else None


def _exists(store: Store, name: ObjectName) -> bool:
    try:
        store.storage.size(name)
    except ObjectMissing:
        return False
    return True
