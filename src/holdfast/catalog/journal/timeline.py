"""The life of a run as a timeline: what happened when, launch by launch, and what became of its time.

Example:
    >>> timeline = timeline_of(History(store="s", run=1))
    >>> timeline.moments, timeline.total.goodput
    ((), None)
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from holdfast.catalog.journal.accounts import MAY_RUN, NO_WORD, Account, Total, accounts_of, total_of
from holdfast.catalog.journal.attempts import CRASH_LOOP, LOAD_FAILED, LOADING, MISMATCH, PASSED_OVER
from holdfast.catalog.journal.events import ENDED, EXIT, HUNG, PROGRESS, RECOVERED, SPARED, Ending
from holdfast.catalog.journal.history import History, is_trainer, launch_of, saves_told, seconds_of
from holdfast.records import MarkKind, StartInfo

LAUNCH, START, RESUME, ROLLBACK = "launch", "start", "resume", "rollback"
SAVE, GIVEN_UP, SILENCE = "save", "given up", "silence"
"""Kinds of moments that are no events of a journal; those keep their own kind."""

_NOT_TOLD = ("saved", "resumed")
"""Kinds of events that say what a record or a start says, too."""
FAILED_SAVE = "save failed"
_MARKS = (MarkKind.GOOD, MarkKind.QUARANTINED, MarkKind.PINNED, MarkKind.UNPINNED, MarkKind.NOTE)

_WATCHED = (EXIT, PROGRESS, HUNG, RECOVERED, SPARED, ENDED)
_LOADED = (LOADING, LOAD_FAILED, PASSED_OVER, MISMATCH, CRASH_LOOP)
_SAVED = ("anomaly", "codec", "damaged", "failed", "left", "not noted", "not saved", FAILED_SAVE, "saver", "skipped")
_CARED = ("check-failed", "not told", "notify", "passed", "rate-set-back", "remedy", "used-up", "verdict")
_OWN = (LAUNCH, START, RESUME, ROLLBACK, SAVE, GIVEN_UP, SILENCE, *map(str, _MARKS))
KINDS = frozenset((*_OWN, *_WATCHED, *_LOADED, *_SAVED, *_CARED, "dropped", "preempted", "resharded", "stopped"))
"""All that a timeline of this version may have; a later one may have more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One thing that happened."""

    time: str
    """As noted by whoever noted it."""
    kind: str
    text: str
    launch: int
    """The launch that it belongs to; where nothing tells, the one that was there at that time; 0: none was."""
    step: int | None = None
    """Completed steps, where it is about a certain one."""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """See `timeline_of`."""

    moments: tuple[Moment, ...]
    """Launch by launch; within one by time, and what one process has noted in its own order."""
    accounts: tuple[Account, ...]
    """By launch."""
    total: Total

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the clocks say that cannot be."""
        return tuple(doubt for account in self.accounts for doubt in account.doubts)


def timeline_of(history: History) -> Timeline:
    """The timeline of a run. Pure, and deterministic."""
    accounts = accounts_of(history)
    placing = _Placing(
        begins=[(one.began, one.launch) for one in accounts if one.began is not None],
        starts=sorted((one.launch, seconds_of(one.created) or 0.0, one.timeline) for one in history.starts),
    )
    rolled = _rolled(history)
    found = [*_launches(history, accounts), *_starts(history, rolled.values()), *_saves(history), *_aborted(history)]
    found += [*_marks(history, placing), *_silences(accounts)]
    placed = [(_key(moment), moment) for moment in found] + list(_events(history, placing, rolled))
    placed.sort(key=lambda pair: pair[0])
    return Timeline(moments=tuple(moment for _, moment in placed), accounts=tuple(accounts), total=total_of(accounts))


_Key = tuple[int, float, int, int, int, str, int, str]
"""Launch, seconds, timeline, rank of the kind, step, writer, place among its events, text."""

_RANKS = {LAUNCH: 0, LOADING: 1, START: 2, RESUME: 2, EXIT: 4, SILENCE: 5}
_OTHERS = 3
_LAST = 1 << 62


def _key(moment: Moment) -> _Key:
    """Within one second: what a launch resumed from, what it saved, by step; then what is in its journal."""
    at, rank, timeline = seconds_of(moment.time) or 0.0, _rank(moment), moment.data.get("timeline", _LAST)
    return moment.launch, at, -1 if rank == 0 else timeline, rank, moment.step or 0, "", 0, moment.text


def _rank(moment: Moment) -> int:
    if moment.kind == ROLLBACK and "why" in moment.data:
        return _RANKS[RESUME]  # a start, which the steps after it follow; that of the journal comes before it
    return _RANKS.get(moment.kind, _OTHERS)


@dataclass(slots=True)
class _Writer:
    """One writer within one launch: whatever its clock says, its events stay in their order."""

    name: str
    latest: tuple[float, int, int] = (0.0, 0, 0)

    def key(self, place: int, moment: Moment, timeline: int) -> _Key:
        sign = (seconds_of(moment.time) or 0.0, timeline, _rank(moment))
        at, timeline, rank = self.latest = _highest(self.latest, sign)
        return moment.launch, at, timeline, rank, _LAST, self.name, place, ""


def _highest(one: tuple[float, int, int], other: tuple[float, int, int]) -> tuple[float, int, int]:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])


@dataclass(frozen=True, slots=True)
class _Placing:
    """Finds the launch of what only has a time."""

    begins: list[tuple[float, int]]
    """When each launch began."""
    starts: list[tuple[int, float, int]]
    """By launch, when each of its timelines began."""

    def timeline(self, launch: int, time: str) -> int:
        """The timeline of a launch that was there at a time."""
        at = bisect_right(self.starts, (launch, seconds_of(time) or 0.0, _LAST))
        return self.starts[at - 1][2] if at and self.starts[at - 1][0] == launch else 0

    def launch(self, time: str) -> int:
        """The launch that was there at a time; 0: none."""
        at = seconds_of(time)
        there = (launch for began, launch in reversed(self.begins) if at is not None and began <= at)
        return next(there, 0)


def _launches(history: History, accounts: Iterable[Account]) -> Iterator[Moment]:
    before = {account.launch: account.before for account in accounts}
    for one in history.launches:
        gap = before.get(one.number, 0.0)
        later = f", {gap:.0f} s after the one before" if one.number > 1 else ""
        host = one.owner.host.partition("/")[0]  # what follows tells machines of one name apart
        text = f"launch {one.number} by pid {one.owner.pid} on {host}{later}"
        yield Moment(time=one.created, kind=LAUNCH, text=text, launch=one.number, data={"seconds_before": gap})


def _rolled(history: History) -> dict[int, StartInfo]:
    """By place in the journal: rollbacks that it tells of, and the start that followed each of them."""
    told: dict[tuple[int | None, object], list[int]] = defaultdict(list)
    for place, entry in enumerate(history.entries):
        if entry.event.kind == ROLLBACK and is_trainer(entry):
            told[launch_of(entry), entry.event.data.get("target")].append(place)
    found = {}
    for start in sorted(history.starts, key=lambda one: (one.launch, one.timeline)):
        places = told.get((start.launch, start.resumed_from and start.resumed_from.id))
        if start.timeline > 0 and places:
            found[places.pop(0)] = start
    return found


def _starts(history: History, told: Iterable[StartInfo]) -> Iterator[Moment]:
    by_journal = {(one.launch, one.timeline) for one in told}
    first: dict[int, int] = {}
    for one in sorted(history.starts, key=lambda start: start.timeline):
        again = first.setdefault(one.launch, one.timeline) != one.timeline
        if again and (one.launch, one.timeline) in by_journal:
            continue
        target = one.resumed_from
        where = "zero" if target is None else str(target.address)
        text = f"launch {one.launch} " + (f"went back to {where}" if again else _begun(target is None, where))
        yield Moment(
            time=one.created,
            kind=ROLLBACK if again else RESUME if target else START,
            text=f"{text}: {one.why}",
            launch=one.launch,
            step=target.step if target else 0,
            data={"timeline": one.timeline, "why": one.why},
        )


def _begun(fresh: bool, where: str) -> str:
    return "started from zero" if fresh else f"resumed from {where}"


def _saves(history: History) -> Iterator[Moment]:
    for record in history.records:
        cost = {"new": record.bytes.new, "stall": record.timing.stall, "durable": record.timing.durable}
        data = {"timeline": record.timeline, "id": record.id, "gone": False, **cost}
        text = f"step {record.step} ({record.id[:8]}): {record.reason}"
        yield Moment(time=record.created, kind=SAVE, text=text, launch=record.launch, step=record.step, data=data)
    there = {record.id for record in history.records}
    for one in saves_told(history):
        if one.id not in there:
            there.add(one.id)
            data = {"timeline": one.timeline, "id": one.id, "gone": True, "stall": one.stall}
            text = f"step {one.step} ({one.id[:8]}): {one.why}; deleted since"
            time = one.entry.event.time
            yield Moment(time=time, kind=SAVE, text=text, launch=one.launch, step=one.step, data=data)


def _aborted(history: History) -> Iterator[Moment]:
    for one in history.aborted:
        text = f"step {one.step} ({one.id[:8]}): {one.reason}"
        yield Moment(time=one.created, kind=GIVEN_UP, text=text, launch=one.launch, step=one.step)


def _marks(history: History, placing: _Placing) -> Iterator[Moment]:
    for mark in (mark for marks in history.marks.values() for mark in marks.marks if mark.kind in _MARKS):
        said = mark.data.get("text") or mark.data.get("why") or ""
        text = f"step {mark.target.step} ({mark.target.id[:8]}), by {mark.by}" + (f": {said}" if said else "")
        launch = placing.launch(mark.created)
        yield Moment(time=mark.created, kind=str(mark.kind), text=text, launch=launch, step=mark.target.step)


def _silences(accounts: Iterable[Account]) -> Iterator[Moment]:
    """Where a launch was last heard of that has not said how it ended."""
    for one in accounts:
        if one.ending in (Ending.KILLED, Ending.UNKNOWN) and one.ended is not None:
            why = {NO_WORD: "", MAY_RUN: "; it may still run"}.get(one.why, f": {one.why}")
            text = f"nothing more was heard of launch {one.launch}{why}; {one.done} steps are known of"
            time = datetime.fromtimestamp(one.ended, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            yield Moment(time=time, kind=SILENCE, text=text, launch=one.launch)


def _untold(history: History) -> set[int]:
    """Places in the journal that say what another one says: a save that failed, by the saver and by the trainer."""
    by_saver: dict[tuple[int | None, str], list[int]] = defaultdict(list)
    failed = [(place, one) for place, one in enumerate(history.entries) if one.event.kind == FAILED_SAVE]
    for place, entry in failed:
        if not is_trainer(entry):
            by_saver[launch_of(entry), entry.event.message].append(place)
    found = set()
    for _, entry in failed:
        places = by_saver.get((launch_of(entry), entry.event.message.partition(": ")[2]))
        if is_trainer(entry) and places:
            found.add(places.pop(0))
    return found


def _before(history: History, rolled: Mapping[int, StartInfo]) -> dict[int, int]:
    """By place in the journal: the timeline that was there, of what was noted before a rollback in its very second."""
    found: dict[int, int] = {}
    upto: dict[str, int] = {}
    for place in reversed(range(len(history.entries))):
        writer = history.entries[place].writer
        if place in rolled:
            upto[writer] = rolled[place].timeline - 1
        found[place] = upto.get(writer, _LAST)
    return found


def _events(history: History, placing: _Placing, rolled: Mapping[int, StartInfo]) -> Iterator[tuple[_Key, Moment]]:
    writers: dict[tuple[str, int], _Writer] = {}
    known = {launch for _, launch in placing.begins}
    untold, before = _untold(history), _before(history, rolled)
    for place, entry in enumerate(history.entries):
        event, own = entry.event, launch_of(entry)
        if event.kind in _NOT_TOLD or place in untold:
            continue
        launch = own if own in known else placing.launch(event.time)
        step = event.data.get("step")
        moment = Moment(
            time=event.time,
            kind=event.kind,
            text=event.message,
            launch=launch,
            step=step if isinstance(step, int) else None,
            data=dict(event.data),
        )
        told = event.data.get("timeline")
        timeline = told if isinstance(told, int) else min(placing.timeline(launch, event.time), before[place])
        writer = writers.setdefault((entry.writer, launch), _Writer(entry.writer))
        yield writer.key(place, moment, timeline), moment
