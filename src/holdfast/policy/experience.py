"""What a run has learned about itself: what its saves cost, and how often it had to go back. For `auto`.

Example:
    >>> known = Experience().with_save(2.0, 9.0).with_save(4.0, 11.0)
    >>> known.save_seconds, known.durable_seconds, known.failures
    (3.0, 10.0, 0)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median

from holdfast.records import Kind, LaunchInfo, Record, StartInfo, Timing

RECENT = 9
"""Saves whose median counts: enough that one that met a busy disk does not, few enough to follow a change."""

_ASKED = frozenset({Kind.PREEMPTED, Kind.FINAL})
"""How a training ends that was meant to end there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """Plain facts of a run. Pure: no clock, no storage."""

    saves: tuple[tuple[float, float], ...] = ()
    """Of the newest saves, newest last: seconds that the loop waited, and seconds until they were durable."""
    failures: int = 0
    """Restarts and rollbacks, without ends that somebody had asked for."""
    seconds: float = 0.0
    """How long earlier launches have lasted, as far as is known."""

    @property
    def save_seconds(self) -> float | None:
        """The median of what recent saves kept the loop waiting; None: there was none."""
        return median(stall for stall, _ in self.saves) if self.saves else None

    @property
    def durable_seconds(self) -> float | None:
        """The median of the seconds until recent saves were durable; None: there was none."""
        return median(durable for _, durable in self.saves) if self.saves else None

    def with_save(self, stall: float, durable: float) -> Experience:
        """After one more save."""
        return replace(self, saves=(*self.saves, (stall, durable))[-RECENT:])

    def with_timings(self, timings: Iterable[Timing]) -> Experience:
        """After these saves, oldest first."""
        known = self
        for one in timings:
            known = known.with_save(one.stall, one.durable)
        return known


def experience_of(
    launches: Iterable[LaunchInfo],
    starts: Iterable[StartInfo],
    records: Iterable[Record],
    *,
    now: tuple[int, int],
    on_purpose: Collection[int] = (),
) -> Experience:
    """What the past of a run teaches, when a stretch of work (launch and timeline) begins or has just begun.

    Every earlier stretch that is in ``starts`` or ``records`` is over. It ended well if its newest checkpoint was made
    because somebody asked it to stop, or because it was done, or if it is the last one of a launch that has said so;
    else it counts as a failure, also where nobody can tell: too many failures make `auto` save too often, as far as its
    share allows, too few would lose work. An earlier launch has lasted from its beginning to the last start or
    checkpoint in it that is there; if nothing of it is there, to the beginning of the next. By wall clocks, and no
    launch lasts less than nothing.

    Args:
        launches: of the run.
        starts: its completed restores and fresh starts.
        records: its checkpoints.
        now: launch and timeline of the stretch that begins.
        on_purpose: launches that have said that somebody wanted them to end; see `untold`.
    """
    starts = list(starts)
    records = sorted(records, key=lambda one: (_place(one), one.step))
    failed = _not_told(starts, records, now)
    last = {launch: timeline for launch, timeline in sorted(_over(starts, records, now)) if launch in on_purpose}
    failures = sum(last.get(launch) != timeline for launch, timeline in failed)
    seconds = _lasted({one.number: one.created for one in launches}, [*starts, *records], now[0])
    return Experience(failures=failures, seconds=seconds).with_timings(one.timing for one in records[-RECENT:])


def untold(starts: Sequence[StartInfo], records: Sequence[Record], *, now: tuple[int, int]) -> list[int]:
    """Earlier launches, newest first, of which no checkpoint tells that they were meant to end; they may say so."""
    last = dict(sorted(_over(starts, records, now)))
    launches = {launch for launch, timeline in _not_told(starts, records, now) if last[launch] == timeline}
    return sorted(launches - {now[0]}, reverse=True)


def _over(starts: Sequence[StartInfo], records: Sequence[Record], now: tuple[int, int]) -> set[tuple[int, int]]:
    return {place for place in (*map(_place, records), *map(_place, starts)) if place < now}


def _not_told(starts: Sequence[StartInfo], records: Sequence[Record], now: tuple[int, int]) -> set[tuple[int, int]]:
    """Stretches that are over, and have not ended with a checkpoint that was asked for."""
    newest: dict[tuple[int, int], Record] = {}
    for record in sorted(records, key=lambda one: one.step):
        newest[_place(record)] = record
    over = _over(starts, records, now)
    return {place for place in over if place not in newest or newest[place].kind not in _ASKED}


def _place(one: StartInfo | Record) -> tuple[int, int]:
    return one.launch, one.timeline


def _lasted(begun: Mapping[int, str], signs: Iterable[StartInfo | Record], newest: int) -> float:
    last: dict[int, float] = {}
    for one in signs:
        last[one.launch] = max(last.get(one.launch, 0.0), _seconds(one.created))
    numbers = sorted(begun)
    total = 0.0
    for number, after in zip(numbers, [*numbers[1:], None], strict=True):
        if number < newest:
            end = last.get(number, 0.0 if after is None else _seconds(begun[after]))
            total += max(0.0, end - _seconds(begun[number]))
    return total


def _seconds(created: str) -> float:
    return datetime.fromisoformat(created).timestamp()
