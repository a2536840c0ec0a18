"""What a run has left behind, gathered once, and its stretches: steps in a row of one launch and timeline."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeVar

from holdfast.catalog.journal.events import ENDED, HUNG, RECOVERED, SPARED, Ending, Exit, Progress, read_event
from holdfast.catalog.journal.journal import Entry
from holdfast.catalog.marks import RecordMarks
from holdfast.ids import Order, RecordId, RunNumber
from holdfast.records import Aborted, LaunchInfo, Record, StartInfo, Target

_SAVER = re.compile(r"saver-(\d+)-")
_TRAINER = re.compile(r".*-(\d+)")
_SAVED = re.compile(r"run-(\d+)@(\d+) \(([0-9a-f]{16})\)(?:: (.*))?", re.DOTALL)
"""How an event speaks of a save: the address, and why it was made."""
_FAILED = re.compile(r" at step (\d+)$")

T = TypeVar("T")
Place = tuple[int, int]
"""Launch and timeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The facts of one run. Pure: no storage, no clock."""

    store: str
    """The id of the store, from which the ids of records follow."""
    run: int
    launches: Sequence[LaunchInfo] = ()
    starts: Sequence[StartInfo] = ()
    records: Sequence[Record] = ()
    aborted: Sequence[Aborted] = ()
    entries: Sequence[Entry] = ()
    """By writer, and for each in its own order."""
    marks: Mapping[RecordId, RecordMarks] = field(default_factory=dict)
    alive: Mapping[int, bool | None] = field(default_factory=dict)
    """By launch, whether its process is there; None, or not there: nobody here can tell."""
    now: str = ""
    """The time at which all this was read; empty: nothing lasts until now."""


class Saved(NamedTuple):
    """A save of which the journal tells; its record may be gone."""

    launch: int
    timeline: int
    step: int
    id: str
    why: str
    stall: float
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Steps in a row: from a start to where the launch ended or went back."""

    place: Place
    begun: int
    """Completed steps at its beginning."""
    continues: Target | None
    """The checkpoint of this run whose steps it goes on counting; None: it began with none, or with another run's."""
    reached: int
    """Completed steps at its end, as far as anything tells."""
    exact: bool
    """Whether it has said itself where it ended; else it may have made more steps."""
    kept: int
    """Completed steps of its newest record that is there; ``begun`` if there is none."""
    points: tuple[tuple[int, float], ...]
    """Steps, and the seconds in steps that they took since the beginning; ascending in both."""
    measured: bool
    """Whether the seconds were measured by the loop; else they are what has passed, less the stalls of saves."""

    @property
    def done(self) -> int:
        """Steps made."""
        return self.reached - self.begun

    def seconds(self, step: int) -> float:
        """Seconds in steps from the beginning up to ``step``: by proportion between points, at the mean pace after."""
        points = [(self.begun, 0.0), *self.points]
        at = bisect_left(points, step, key=lambda point: point[0])
        if at < len(points):
            (first, before), (last, after) = points[max(0, at - 1)], points[at]
            return (
                after if last <= step or last == first else before + (after - before) * (step - first) / (last - first)
            )
        last, after = points[-1]
        return after if last <= self.begun else after * (step - self.begun) / (last - self.begun)


def seconds_of(time: str) -> float | None:
    """A time of an object or an event in seconds since the epoch; None: it is none.

    Example:
        >>> seconds_of("1970-01-01T00:01:00Z"), seconds_of("yesterday")
        (60.0, None)
    """
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return None


def launch_of(entry: Entry) -> int | None:
    """The launch that an entry belongs to, by the name of its writer; None: that does not tell."""
    match = _SAVER.match(entry.writer) or _TRAINER.fullmatch(entry.writer)
    return int(match[1]) if match else None


def is_trainer(entry: Entry) -> bool:
    """Whether the training process has written it: a saver may outlive that."""
    return _SAVER.match(entry.writer) is None


def by_launch(history: History) -> dict[int, History]:
    """What each launch has left: its own launches, starts, records and entries; the rest is empty."""
    launches, starts = _grouped(history.launches, lambda one: one.number), _grouped(history.starts, _launch)
    records, entries = _grouped(history.records, _launch), _grouped(history.entries, launch_of)
    numbers = {number for number in (*launches, *starts, *records) if number is not None}
    return {
        number: History(
            store=history.store,
            run=history.run,
            launches=launches.get(number, ()),
            starts=starts.get(number, ()),
            records=records.get(number, ()),
            entries=entries.get(number, ()),
        )
        for number in sorted(numbers)
    }


def _launch(one: StartInfo | Record) -> int:
    return one.launch


def _grouped(all_: Iterable[T], key: Callable[[T], int | None]) -> dict[int | None, list[T]]:
    found: dict[int | None, list[T]] = defaultdict(list)
    for one in all_:
        found[key(one)].append(one)
    return found


def said(history: History) -> Iterator[tuple[Entry, Progress | Exit]]:
    """What the launches have said of their steps, in the order of each writer."""
    places = _places_by_launch(history)
    for entry in history.entries:
        launch = launch_of(entry) or 0
        newest = places.get(launch, [0])[-1]
        if (found := read_event(entry.event.kind, entry.event.data, launch, newest)) is not None:
            yield entry, found


def saves_told(history: History) -> list[Saved]:
    """The saves of which the journal tells."""
    places = _places_by_launch(history)
    found = (_saved(history, places, entry) for entry in history.entries if entry.event.kind == "saved")
    return [one for one in found if one is not None]


def _saved(history: History, places: Mapping[int, Sequence[int]], entry: Entry) -> Saved | None:
    match, launch = _SAVED.match(entry.event.message), launch_of(entry)
    if match is None or launch is None or int(match[1]) != history.run:
        return None
    step, id_ = int(match[2]), match[3]
    for timeline in places.get(launch, ()):
        if RecordId.derive(history.store, RunNumber(history.run), Order(launch, timeline, step)) == id_:
            stall = entry.event.data.get("stall", 0.0)
            seconds = float(stall) if isinstance(stall, int | float) and 0 <= stall < float("inf") else 0.0
            return Saved(launch, timeline, step, id_, match[4] or "", seconds, entry)
    return None


def _places_by_launch(history: History) -> dict[int, list[int]]:
    found: dict[int, set[int]] = defaultdict(set)
    for launch, timeline in (
        *((start.launch, start.timeline) for start in history.starts),
        *((record.launch, record.timeline) for record in history.records),
    ):
        found[launch].add(timeline)
    return {launch: sorted(timelines) for launch, timelines in found.items()}


@dataclass(slots=True)
class _Signs:
    """What tells of one place."""

    start: StartInfo | None = None
    records: list[Record] = field(default_factory=list)
    said: list[Progress | Exit] = field(default_factory=list)
    measured: list[tuple[int, float]] = field(default_factory=list)
    """Steps, and the seconds in steps up to there."""
    steps: list[int] = field(default_factory=list)
    """Steps that were completed, for something says so."""
    failed: bool = False
    """Whether the note of an exception, or of the watchdog, says where it ended."""

    @property
    def begun(self) -> bool:
        """Whether anything tells that it began: a launch whose restore has failed only says how it ended."""
        worked = any(isinstance(one, Progress) for one in self.said)
        return worked or bool(self.start or self.records or self.steps)


def stretches(history: History) -> dict[Place, Stretch]:
    """The stretches of a run, by place."""
    signs = _signs(history)
    _count_from_their_beginning(signs)
    return {place: _stretch(history.run, place, signs[place]) for place in sorted(signs)}


def _count_from_their_beginning(signs: Mapping[Place, _Signs]) -> None:
    """Launches count their seconds from launch to exit; a stretch counts from where the one before has ended."""
    passed: dict[int, float] = defaultdict(float)
    for place in sorted(signs):
        before = passed[place[0]]
        for one in signs[place].said:
            signs[place].measured.append((one.step, max(0.0, one.step_seconds - before)))
            passed[place[0]] = max(passed[place[0]], one.step_seconds)


def _signs(history: History) -> dict[Place, _Signs]:
    signs: dict[Place, _Signs] = defaultdict(_Signs)
    for start in history.starts:
        signs[start.launch, start.timeline].start = start
    for record in sorted(history.records, key=lambda one: one.step):
        signs[record.launch, record.timeline].records.append(record)
    for _, one in said(history):
        if one.rank == 0:
            signs[one.launch, one.timeline].said.append(one)
    for save in saves_told(history):
        signs[save.launch, save.timeline].steps.append(save.step)
    for place, step in _failures(history):
        signs[place].steps.append(step)
        signs[place].failed = True
    for place, step, over in _hangs(history):
        signs[place].steps.append(step)
        signs[place].failed |= over
    for target in _named(history):
        if target.run == history.run and (target.launch, target.timeline) in signs:
            signs[target.launch, target.timeline].steps.append(target.step)
    return {place: one for place, one in signs.items() if one.begun}


def _failures(history: History) -> Iterator[tuple[Place, int]]:
    """Where launches ended that only noted the exception, as they did before there were exit events."""
    places = _places_by_launch(history)
    for entry in history.entries:
        launch, match = launch_of(entry), _FAILED.search(entry.event.message)
        if entry.event.kind in (Ending.FAILED, Ending.LEFT) and match and launch in places:
            yield (launch, places[launch][-1]), int(match[1])


def hung_last(entries: Iterable[Entry]) -> list[Entry]:
    """Silences after which nothing more was heard, those that the watchdog has ended last; one of each writer."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.event.kind in (RECOVERED, SPARED):
            found.pop(entry.writer, None)
        elif entry.event.kind in (HUNG, ENDED):
            found[entry.writer] = entry
    return sorted(found.values(), key=lambda entry: entry.event.kind == ENDED)


def _hangs(history: History) -> Iterator[tuple[Place, int, bool]]:
    """Where launches were that made no step any more, and whether they were ended there."""
    places = _places_by_launch(history)
    for entry in hung_last(history.entries):
        launch, step = launch_of(entry), entry.event.data.get("step")
        if launch in places and entry.event.data.get("rank", 0) == 0 and isinstance(step, int) and step >= 0:
            yield (launch, places[launch][-1]), step, entry.event.kind == ENDED


def _named(history: History) -> Iterator[Target]:
    """Records that must have been there, for others name them."""
    yield from (start.resumed_from for start in history.starts if start.resumed_from)
    yield from (record.parent for record in history.records if record.parent)


def _stretch(run: int, place: Place, signs: _Signs) -> Stretch:
    steps = [*signs.steps, *(record.step for record in signs.records), *(one.step for one in signs.said)]
    origin = _origin(place, signs)
    begun = min([origin.step if origin else 0, *steps])
    points = [(step, seconds) for step, seconds in signs.measured if step > begun]
    return Stretch(
        place=place,
        begun=begun,
        continues=origin if origin and origin.run == run and origin.step == begun else None,
        reached=max([begun, *steps]),
        exact=signs.failed or any(isinstance(one, Exit) or one.left for one in signs.said),
        kept=max([begun, *(record.step for record in signs.records)]),
        points=_ascending(points or _estimated(begun, signs)),
        measured=bool(points),
    )


def _origin(place: Place, signs: _Signs) -> Target | None:
    """The checkpoint from which it counts its steps; where its start is lost, the parent of its first record tells."""
    if signs.start is not None:
        why = signs.start.why
        # A start with parts of a checkpoint counts from zero; only its reason tells.
        return None if why.startswith("only ") and why.endswith(" of it, as asked for") else signs.start.resumed_from
    parents = (record.parent for record in signs.records if record.parent)
    return next((parent for parent in parents if (parent.launch, parent.timeline) != place), None)


def _estimated(begun: int, signs: _Signs) -> list[tuple[int, float]]:
    """From the times at which records were made, as whole seconds of wall clocks: all but the stalls are steps."""
    began = seconds_of(signs.start.created) if signs.start else None
    if began is None:
        return []
    found, stalls = [], 0.0
    for record in signs.records:
        made = seconds_of(record.created)
        if made is not None and record.step > begun:
            found.append((record.step, made - record.timing.durable - began - stalls))
        stalls += record.timing.stall
    return found


def _ascending(points: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """By step, one for each, with seconds that never decrease: clocks jump, and entries may come late."""
    highest, found = 0.0, dict[int, float]()
    for step, seconds in sorted(points):
        highest = found[step] = max(highest, seconds)
    return tuple(found.items())
