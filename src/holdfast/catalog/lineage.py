"""Where a run stands and where it came from, decided from records and starts alone.

Records are in total order by (launch, timeline, step). A start (a completed
restore, or a fresh start) comes before all records of its timeline. The head
is the newest of both: after a rollback it is the record that was rolled back
to, not the poisoned one with the higher step.

Ancestors follow parent links. Retention removes records from the middle of a
line, so a link may lead to a record that is gone; then the line goes on at the
newest remaining record of that timeline before it, or where the timeline
started.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from holdfast.catalog.objects import DamagedObject
from holdfast.records import Record, StartInfo, Target

_Key = tuple[int, int, int, int, str]
_Place = tuple[int, int]
"""Launch and timeline."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The family tree of one run. Pure: no storage, no clock."""

    head: Target | None
    """The newest state: a record, or the one that the newest start resumed from; None: nothing, or fresh."""
    order: tuple[Record, ...]
    """All records, oldest first, whatever line they are on."""
    _starts: dict[_Place, StartInfo] = field(repr=False)
    _steps: dict[_Place, list[Record]] = field(repr=False)
    """By timeline, in ascending order of steps."""
    hidden: DamagedObject | None = None
    """A start that cannot be read and is newer than all else: what it resumed from is the head, and `head` only what
    that was before."""

    @property
    def run(self) -> int | None:
        """The number of the run; None: nothing has happened in it."""
        runs = [record.run for record in self.order[:1]] + [start.run for start in self._starts.values()]
        return runs[0] if runs else None

    @classmethod
    def of(
        cls,
        records: Iterable[Record],
        starts: Iterable[StartInfo],
        forked_from: Target | None = None,
        *,
        unreadable: Iterable[DamagedObject] = (),
    ) -> Lineage:
        """The lineage of a run.

        Args:
            records: its committed records.
            starts: its starts.
            forked_from: another run's record from which it was forked; the head while there is nothing else.
            unreadable: its starts that cannot be read.
        """
        order = tuple(sorted(records, key=lambda record: (record.launch, record.timeline, record.step)))
        begun = {(start.launch, start.timeline): start for start in starts}
        steps: dict[_Place, list[Record]] = defaultdict(list)
        for record in order:
            steps[record.launch, record.timeline].append(record)
        newest = max((*begun, *steps), default=(0, 0))
        return cls(_head(order, begun, forked_from), order, begun, dict(steps), _hidden(unreadable, newest))

    def ancestors(self, target: Target) -> Iterator[Target]:
        """``target`` and what it came from, newest first; only records that are there.

        A target in another run (the fork's origin) ends the line: its ancestors are in that run's lineage.
        """
        records = {_key(record): record for record in self.order}
        at: Target | None = target
        seen: set[_Key] = set()
        while at is not None and (key := _key(at)) not in seen:
            seen.add(key)
            if at.run != self.run:
                yield at
                return
            record = records.get(key)
            if record is not None:
                yield at
            at = self._before(at) if record is None else record.parent

    def line(self) -> list[Target]:
        """The head and its ancestors, newest first."""
        return [] if self.head is None else list(self.ancestors(self.head))

    def _before(self, gone: Target) -> Target | None:
        """What remains on the line of a record that is gone."""
        place = (gone.launch, gone.timeline)
        remaining = self._steps.get(place, [])
        earlier = bisect_left(remaining, gone.step, key=lambda record: record.step)
        if earlier:
            return Target.of(remaining[earlier - 1].address)
        start = self._starts.get(place)
        return None if start is None else start.resumed_from


def _key(one: Record | Target) -> _Key:
    """As its address, but without checking each field once more: a line may have ten thousand records."""
    return one.run, one.launch, one.timeline, one.step, one.id


def _hidden(unreadable: Iterable[DamagedObject], newest: _Place) -> DamagedObject | None:
    """The name of a start says where it belongs, even if nothing else of it can be read."""
    places = {_place(one): one for one in unreadable}
    last = max(places, default=None)
    return places[last] if last is not None and last > newest else None


def _place(start: DamagedObject) -> _Place:
    launch, timeline, _ = start.name.leaf.split(".")
    return int(launch), int(timeline)


def _head(
    order: tuple[Record, ...], starts: dict[tuple[int, int], StartInfo], forked_from: Target | None
) -> Target | None:
    last = order[-1] if order else None
    newest = max(starts, default=None)
    if newest is not None and (last is None or newest > (last.launch, last.timeline)):
        return starts[newest].resumed_from
    return forked_from if last is None else Target.of(last.address)
