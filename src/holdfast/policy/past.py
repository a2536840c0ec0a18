"""A run that is over, or under way, as a replay of policies needs it: what is known of it, and nothing else.

A training tells of itself only where it makes a checkpoint: its record, or, once that is deleted, the line of the
journal, has the time, the cost and the bytes; the record alone has the metrics and the epoch. Of the steps in between
it is known that they were made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.catalog.journal.events import ON_PURPOSE, Ending, Exit
from holdfast.catalog.journal.history import History, Place, Saved, Stretch, said, saves_told, seconds_of, stretches
from holdfast.catalog.marks import NO_MARKS
from holdfast.ids import RecordId
from holdfast.records import Kind, Record, StartInfo

_BY_POLICY = ("every(", "best(", "at(", "auto(", "rank 0 has asked for it")
"""How the reason of a save begins that a policy asked for."""

_ENDS = ("the end: ", "asked to stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSave:
    """A checkpoint that was really made; its record may be gone."""

    step: int
    why: str
    seconds: float | None
    """When the boundary was, in seconds since 1970; None: nothing tells."""
    epoch: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Of the record, late ones included; nothing if that is gone."""
    stall: float = 0.0
    """Seconds for which the loop waited."""
    durable: float = 0.0
    """Seconds until it was durable."""
    logical: int = 0
    new: int = 0
    stored: int = 0
    """Bytes: of the state, those not seen before, and those as stored."""
    there: bool = True
    """Whether its record is still there."""
    meant_to_end: bool = False
    """Whether the training ended here because somebody asked it to, or because it was done."""

    @property
    def by_policy(self) -> bool:
        """Whether a policy asked for it; else it is made whatever the policy: by hand, on a signal, at the end."""
        return self.why.startswith(_BY_POLICY) and not self.meant_to_end

    @property
    def epoch_ended(self) -> bool:
        """Whether it is known that its epoch ended here."""
        return "every(epochs=" in self.why

    @property
    def epochs(self) -> int | None:
        """Epochs completed, as far as is known; None: nothing tells."""
        return None if self.epoch is None else self.epoch + self.epoch_ended


@dataclass(frozen=True, slots=True, kw_only=True)
class PastStretch:
    """Steps in a row: from a start or restore to where the launch ended or went back."""

    place: Place
    begun: int
    """Completed steps at its beginning."""
    reached: int
    """Completed steps at its end, as far as anything tells."""
    exact: bool
    """Whether it has said itself where it ended; else it may have made more steps."""
    began: float | None
    """When, in seconds since 1970; None: nothing tells."""
    elsewhere: bool
    """Whether it goes on from a checkpoint of another run."""
    saves: tuple[KnownSave, ...]
    """By step."""
    on_purpose: bool = False
    """Whether the launch has said that it ended here, and that somebody wanted it to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A run as it went."""

    stretches: tuple[PastStretch, ...]
    """In the order in which they began."""

    @property
    def saves(self) -> list[KnownSave]:
        """All that are known."""
        return [save for stretch in self.stretches for save in stretch.saves]


def past_of(history: History) -> Past:
    """The past of a run. Pure."""
    found = stretches(history)
    records, told = defaultdict[Place, list[Record]](list), defaultdict[Place, list[Saved]](list)
    for record in history.records:
        records[record.launch, record.timeline].append(record)
    for save in saves_told(history):
        told[save.launch, save.timeline].append(save)
    starts = {(start.launch, start.timeline): start for start in history.starts}
    wanted = _ended_on_purpose(history)
    return Past(
        stretches=tuple(
            _past(
                stretch,
                starts.get(place),
                _saves(history, records[place], told[place]),
                run=history.run,
                on_purpose=place in wanted,
            )
            for place, stretch in found.items()
        )
    )


def _ended_on_purpose(history: History) -> set[Place]:
    """Where a launch has ended that somebody wanted to end, by what all of its ranks say."""
    ends = defaultdict[Place, set[Ending]](set)
    for _, one in said(history):
        if isinstance(one, Exit):
            ends[one.launch, one.timeline].add(one.how)
    return {place for place, endings in ends.items() if endings <= ON_PURPOSE}


def _past(
    stretch: Stretch, start: StartInfo | None, saves: Sequence[KnownSave], *, run: int, on_purpose: bool
) -> PastStretch:
    source = start.resumed_from if start is not None else None
    return PastStretch(
        place=stretch.place,
        begun=stretch.begun,
        reached=stretch.reached,
        exact=stretch.exact,
        began=None if start is None else seconds_of(start.created),
        elsewhere=source is not None and source.run != run,
        saves=tuple(saves),
        on_purpose=on_purpose,
    )


def _saves(history: History, records: Sequence[Record], told: Sequence[Saved]) -> list[KnownSave]:
    by_step = {one.step: _told(one) for one in told}
    by_step |= {one.step: _recorded(history, one) for one in records}
    return [by_step[step] for step in sorted(by_step)]


def _recorded(history: History, record: Record) -> KnownSave:
    created, marks = seconds_of(record.created), history.marks.get(RecordId(record.id), NO_MARKS)
    return KnownSave(
        step=record.step,
        why=record.reason,
        seconds=None if created is None else created - record.timing.durable,
        epoch=record.epoch,
        metrics=marks.metrics(record),
        stall=record.timing.stall,
        durable=record.timing.durable,
        logical=record.bytes.logical,
        new=record.bytes.new,
        stored=record.bytes.stored,
        # One that a policy had asked for at the very end is marked instead of being made once more.
        meant_to_end=marks.final or record.kind in (Kind.PREEMPTED, Kind.FINAL),
    )


def _told(save: Saved) -> KnownSave:
    data, noted = save.entry.event.data, seconds_of(save.entry.event.time)
    durable = _number(data, "durable")
    return KnownSave(
        step=save.step,
        why=save.why,
        seconds=None if noted is None else noted - durable,
        stall=save.stall,
        durable=durable,
        logical=int(_number(data, "logical")),
        new=int(_number(data, "new")),
        stored=int(_number(data, "stored")),
        there=False,
        meant_to_end=any(words in save.why for words in _ENDS),
    )


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else 0.0
