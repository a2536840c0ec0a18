"""The checkpoints that there would be during a replay, and what retention would do with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from holdfast.catalog.deleting.retention import Candidate, RetentionFacts, plan_retention
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

PLAN = 20
"""How many looks at each checkpoint a plan of retention takes the time of."""


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


class _Seen(NamedTuple):
    """A checkpoint as policies see it: that of a `Candidate`, looked up once."""

    id: RecordId
    step: int
    epoch: int | None
    seconds: float
    metrics: Mapping[str, Any]


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
    _keep: Policy | None = None
    """The policy by which `_reasons` are to be found anew; None: they are as of the newest plan."""
    _line: list[_Seen] = field(default_factory=list)
    """What is on the line of the head, oldest first."""
    _metrics: dict[str, list[Any]] | None = None
    looks: int = 0
    """How often a checkpoint was looked at, as a measure of the time that all this has taken."""

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

    def __len__(self) -> int:
        return len(self._records)

    @property
    def bytes(self) -> int:
        """Of what is there now."""
        return sum(one.own for one in self._made.values()) + (self.base if self._made else 0)

    def begin(self, place: Place, origin: Record | None) -> None:
        """A stretch begins, from a checkpoint that is there or from zero."""
        self._explain()
        at = -1 if origin is None else next(n for n, one in enumerate(self._line) if one.id == origin.id)
        del self._line[at + 1 :]
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
        if self._metrics is None:
            self._metrics = {}
            for made in self._made.values():
                for name, value in made.metrics.items():
                    self._metrics.setdefault(name, []).append(value)
        return dict(self._metrics)

    def kept(self) -> tuple[tuple[int, str], ...]:
        """Steps of what is there, oldest first, and why, as of the newest plan."""
        self._explain()
        return tuple((self._made[id_].step, why) for id_, why in self._reasons.items())

    def add(self, made: Made, keep: Policy) -> None:
        """A checkpoint is made, verified, and retention follows."""
        record = _record(self._place, made, self._parent, self.base)
        id_ = RecordId(record.id)
        self._records[id_], self._made[id_], self._marks[id_] = record, made, _verified(record)
        self._line.append(_seen(id_, record, self._marks[id_]))
        bytes_ = self.bytes
        self._parent, self._metrics, self.peak = record, None, max(self.peak, bytes_)
        self._keep = keep
        limit = keep.limit
        if len(self._line) == len(self._records) and (limit is None or bytes_ <= limit.bytes):
            self.looks += len(self._line)
            self._drop(self._unwanted(keep))
        else:
            self._explain()

    def _unwanted(self, keep: Policy) -> set[RecordId]:
        """What retention deletes where all is verified and on one line, and no limit is reached: a plan takes longer.

        The test that this is what a plan deletes is in tests/policy/test_replay.py.
        """
        origin = self._starts[-1].resumed_from if self._starts else None
        always = {self._line[-1].id, *([] if origin is None else [origin.id])}
        wanted = keep.kept(self._line[::-1])
        return {one.id for one in self._line if one.id not in wanted and one.id not in always}

    def _explain(self) -> None:
        """Plans what is there, deletes what the plan does, and knows the reasons for the rest."""
        if self._keep is None:
            return
        self.looks += PLAN * len(self._records)
        plan = plan_retention(self._keep.kept, self._facts(), self._keep.limit)
        self._drop({address.id for address in plan.delete})
        self._reasons = {one: "; ".join(why) for one, why in plan.keep.items()}
        self._keep = None

    def _drop(self, gone: Collection[RecordId]) -> None:
        for id_ in gone:
            for kept in (self._records, self._made, self._marks):
                kept.pop(id_)
        if gone:
            self._line = [one for one in self._line if one.id not in gone]

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


def _seen(id_: RecordId, record: Record, marks: RecordMarks) -> _Seen:
    one = Candidate(id=id_, record=record, marks=marks)
    return _Seen(id_, one.step, one.epoch, one.seconds, one.metrics)


def _verified(record: Record) -> RecordMarks:
    mark = Mark(kind=MarkKind.VERIFIED, target=Target.of(record.address), created="", by="", attempt="")
    return RecordMarks(marks=(mark,))
