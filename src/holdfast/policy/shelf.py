"""The checkpoints that there would be during a replay, and what retention would do with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from holdfast.catalog.deleting.retention import RetentionFacts, plan_retention
from holdfast.catalog.journal.history import Place
from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import RecordMarks
from holdfast.ids import Order, RecordId, RunNumber
from holdfast.policy.base import Policy
from holdfast.policy.past import Past
from holdfast.records import Kind, Mark, MarkKind, Owner, Record, Sizes, StartInfo, Target, Timing

_RUN = RunNumber(1)
_NOBODY = Owner(host="", boot="", pid=0, started="")
_BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A checkpoint of a replay."""

    step: int
    why: str
    seconds: float
    """Since 1970, not later than it was; 0.0: nothing tells."""
    epoch: int | None
    metrics: Mapping[str, Any]
    own: int
    """Bytes that only it needs."""


@dataclass(slots=True, kw_only=True)
class Shelf:
    """What is there at one time of a replay.

    Bytes: what no save but the first has written again belongs to all checkpoints (`base`); the rest of what a save
    has written goes with it.
    """

    base: int
    first: tuple[Place, int] | None
    """The save that has written `base`."""
    peak: int = 0
    """Most bytes so far: a new checkpoint is there before an old one goes."""
    _place: Place = (1, 0)
    _records: dict[RecordId, Record] = field(default_factory=dict)
    _made: dict[RecordId, Made] = field(default_factory=dict)
    _marks: dict[RecordId, RecordMarks] = field(default_factory=dict)
    _starts: list[StartInfo] = field(default_factory=list)
    _parent: Record | None = None
    _reasons: dict[RecordId, str] = field(default_factory=dict)

    @classmethod
    def of(cls, past: Past) -> Shelf:
        """An empty one, for the bytes of a run."""
        saves = past.saves
        places = [(stretch.place, one.step) for stretch in past.stretches for one in stretch.saves]
        reused = min((max(0, one.logical - one.new) for one in saves[1:]), default=0)
        return cls(base=min(reused, saves[0].stored) if saves else 0, first=places[0] if places else None)

    def own(self, stored: int, place: Place, step: int) -> int:
        """Of what a save has stored, the bytes that go with it."""
        return stored - self.base if (place, step) == self.first else stored

    @property
    def bytes(self) -> int:
        """Of what is there now."""
        return sum(one.own for one in self._made.values()) + (self.base if self._made else 0)

    def begin(self, place: Place, origin: Record | None) -> None:
        """A stretch begins, from a checkpoint that is there or from zero."""
        self._place, self._parent = place, origin
        launch, timeline = place
        self._starts.append(
            StartInfo(
                run=int(_RUN),
                launch=launch,
                timeline=timeline,
                created="",
                resumed_from=None if origin is None else Target.of(origin.address),
                why="",
                attempt="",
            )
        )

    def newest(self, upto: int) -> Record | None:
        """The newest one of the line with at most so many steps."""
        targets = (self._records.get(RecordId(target.id)) for target in self._lineage().line())
        return next((one for one in targets if one is not None and one.step <= upto), None)

    def metrics(self) -> dict[str, Sequence[Any]]:
        """Per metric, its values in what is there."""
        found: dict[str, Sequence[Any]] = {}
        for made in self._made.values():
            for name, value in made.metrics.items():
                found[name] = [*found.get(name, ()), value]
        return dict(found)

    def kept(self) -> tuple[tuple[int, str], ...]:
        """Steps of what is there, oldest first, and why, as of the newest plan."""
        return tuple((self._made[id_].step, why) for id_, why in self._reasons.items())

    def add(self, made: Made, keep: Policy) -> None:
        """A checkpoint is made, verified, and retention follows."""
        record = _record(self._place, made, self._parent, self.base)
        id_ = RecordId(record.id)
        self._records[id_], self._made[id_], self._marks[id_] = record, made, _verified(record)
        self._parent, self.peak = record, max(self.peak, self.bytes)
        plan = plan_retention(keep.kept, self._facts(), keep.limit)
        for address in plan.delete:
            for kept in (self._records, self._made, self._marks):
                kept.pop(address.id)
        self._reasons = {one: "; ".join(why) for one, why in plan.keep.items()}

    def _facts(self) -> RetentionFacts:
        packs = {pack: self._made[id_].own for id_, one in self._records.items() for pack in one.packs if pack != _BASE}
        origin = self._starts[-1].resumed_from if self._starts else None
        return RetentionFacts(
            lineage=self._lineage(), marks=self._marks, resumed_from=origin, packs=packs | {_BASE: self.base}
        )

    def _lineage(self) -> Lineage:
        return Lineage.of(self._records.values(), self._starts)


def _record(place: Place, made: Made, parent: Record | None, base: int) -> Record:
    order = Order(*place, made.step)
    id_ = str(RecordId.derive("", _RUN, order))
    return Record(
        id=id_,
        run=int(_RUN),
        **order._asdict(),
        epoch=made.epoch,
        parent=None if parent is None else Target.of(parent.address),
        created=datetime.fromtimestamp(made.seconds, UTC).isoformat(),
        kind=Kind.REGULAR,
        reason=made.why,
        metrics=dict(made.metrics),
        manifest="00" * 32,
        packs=[_BASE, id_],
        tensors=0,
        bytes=Sizes(logical=base + made.own, new=made.own, stored=made.own),
        timing=Timing(stall=0.0, staging=0.0, hashing=0.0, writing=0.0),
        codec="raw",
        owner=_NOBODY,
        attempt="",
    )


def _verified(record: Record) -> RecordMarks:
    mark = Mark(kind=MarkKind.VERIFIED, target=Target.of(record.address), created="", by="", attempt="")
    return RecordMarks(marks=(mark,))
