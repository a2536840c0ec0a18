"""What a sweep deletes, decided from facts alone.

Whatever cannot be told is decided for keeping: a damaged record may need any
pack of its run, a damaged tag may name any record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain

from holdfast.catalog.deleting.sweep_facts import SweepFacts
from holdfast.catalog.holds import FoundHold
from holdfast.ids import ObjectName, RecordAddress, RunNumber
from holdfast.storage.protocol import Listed


class OnNeed(StrEnum):
    """What becomes of a record that was to be deleted and is still needed."""

    KEEP = "keep"
    """It stays, and the plan says why (retention, gc)."""
    REFUSE = "refuse"
    """Nothing at all is deleted (rm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Something that was asked for, or that nothing needs, and that stays all the same."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What one sweep deletes, in this order: records, marks, trees, packs."""

    run: RunNumber | None
    """None: the shared packs."""
    requested: frozenset[RecordAddress] = frozenset()
    on_need: OnNeed = OnNeed.KEEP
    records: tuple[RecordAddress, ...] = ()
    given_up: tuple[RecordAddress, ...] = ()
    """Names that were taken from saves whose process is gone."""
    marks: tuple[Listed, ...] = ()
    trees: tuple[Listed, ...] = ()
    packs: tuple[Listed, ...] = ()
    kept: tuple[Kept, ...] = ()

    @property
    def names(self) -> list[ObjectName]:
        """All objects, in the order in which they go."""
        return [*self.record_names, *(one.name for one in chain(self.marks, self.trees, self.packs))]

    @property
    def record_names(self) -> list[ObjectName]:
        """The objects that go first: records and given-up saves."""
        return [address.name for address in (*self.records, *self.given_up)]

    @property
    def freed(self) -> int:
        """Bytes of marks, trees and packs."""
        return sum(one.size for one in chain(self.marks, self.trees, self.packs))

    def within(self, other: SweepPlan) -> SweepPlan:
        """What is in both plans: for what was announced before and is still unneeded."""
        names = set(other.names)
        return replace(
            self,
            records=tuple(one for one in self.records if one.name in names),
            given_up=tuple(one for one in self.given_up if one.name in names),
            marks=tuple(one for one in self.marks if one.name in names),
            trees=tuple(one for one in self.trees if one.name in names),
            packs=tuple(one for one in self.packs if one.name in names),
        )


def make_plan(facts: SweepFacts, requested: Collection[RecordAddress] = (), on_need: OnNeed = OnNeed.KEEP) -> SweepPlan:
    """The plan that deletes ``requested`` and everything in the scope that nothing reaches then."""
    existing = {*facts.records, *_damaged(facts)} & set(requested)
    needs = {address: _need(facts, address, on_need) for address in sorted(existing)}
    records = {address for address, why in needs.items() if why is None}
    garbage = _Garbage(facts, records)
    unclear, blocker = _unclear(facts, records), _pack_blocker(facts)
    blocked = {pack.name: why for pack in garbage.packs() if (why := unclear or blocker(pack.name))}
    return SweepPlan(
        run=facts.run,
        requested=frozenset(requested),
        on_need=on_need,
        records=tuple(sorted(records)),
        given_up=_given_up(facts),
        marks=tuple(garbage.marks()),
        trees=() if unclear or _blocks_trees(facts) else tuple(garbage.trees()),
        packs=tuple(pack for pack in garbage.packs() if pack.name not in blocked),
        kept=(
            *(Kept(name=str(address), why=f"{why} needs it") for address, why in needs.items() if why),
            *(Kept(name=name, why=why) for name, why in blocked.items()),
        ),
    )


class _Garbage:
    """What nothing reaches any more once ``gone`` has gone."""

    def __init__(self, facts: SweepFacts, gone: set[RecordAddress]) -> None:
        surviving = [facts.reached[address] for address in facts.records.keys() - gone if address in facts.reached]
        self._facts = facts
        self._packs = frozenset[ObjectName]().union(_unknown_packs(facts, gone), *(reach.packs for reach in surviving))
        self._trees = frozenset[ObjectName]().union(*(reach.trees for reach in surviving))
        there = {*facts.records, *_damaged(facts), *_publishing(facts)} - gone
        self._ids = {str(address.id) for address in there}

    def packs(self) -> Iterator[Listed]:
        return (pack for pack in self._facts.packs if pack.name not in self._packs)

    def trees(self) -> Iterator[Listed]:
        return (tree for tree in self._facts.trees if tree.name not in self._trees)

    def marks(self) -> Iterator[Listed]:
        return (mark for mark in self._facts.marks if mark.name.split("/")[-2] not in self._ids)


def _unknown_packs(facts: SweepFacts, gone: set[RecordAddress]) -> frozenset[ObjectName]:
    """Packs that cannot be read and may be needed; one is not if all records have all that they need elsewhere."""
    surviving = facts.records.keys() - gone
    if surviving & facts.lacking:
        return facts.damaged_packs
    hinted = {name for address in surviving for name in facts.records[address].packs}
    return frozenset(name for name in facts.damaged_packs if name in hinted or name not in facts.rotten_packs)


def _damaged(facts: SweepFacts) -> set[RecordAddress]:
    return {RecordAddress.from_name(one.name) for one in facts.damaged_records}


def _publishing(facts: SweepFacts) -> set[RecordAddress]:
    return {hold.publishes for hold in facts.standing if hold.publishes is not None}


def _need(facts: SweepFacts, address: RecordAddress, on_need: OnNeed) -> str | None:
    """What needs a record; None: nothing."""
    for needed in facts.needed:
        if needed.address == address and (needed.lasting or on_need is OnNeed.KEEP):
            return needed.by
    holder = next((hold for hold in facts.standing if _holds(hold, address)), None)
    if holder is not None:
        return str(holder)
    unclear = next(iter(facts.damaged_names), None)
    return None if unclear is None else f"{unclear.name} is damaged and perhaps"


def _holds(hold: FoundHold, address: RecordAddress) -> bool:
    if hold.hold is None or hold.publishes == address:
        return True
    return any(target.address == address for target in hold.hold.reads)


def _unclear(facts: SweepFacts, gone: set[RecordAddress]) -> str | None:
    """Why no pack and no tree may go; None: it is known what is needed."""
    for name in sorted(one.name for one in facts.damaged_records):
        if RecordAddress.from_name(name) not in gone:
            return f"{name} is damaged, and nobody can tell what it needs; delete or repair it first"
    for address in sorted(facts.records.keys() - gone - facts.reached.keys()):
        return f"the manifest of {address} cannot be read, and nobody can tell what it needs; delete or repair it first"
    broken = next((hold for hold in facts.standing if hold.hold is None), None)
    return None if broken is None else f"the hold {broken.name} is damaged, and nobody can tell what it needs"


def _blocks_trees(facts: SweepFacts) -> bool:
    """Trees are named by content, so a save in flight may be about to rely on any of them."""
    return any(hold.publishes is not None for hold in facts.standing)


def _pack_blocker(facts: SweepFacts) -> Callable[[ObjectName], str | None]:
    """Why a pack that nothing reaches may not go yet: a save in flight may have written it, or be about to reuse it."""
    saves = [hold for hold in facts.standing if hold.publishes is not None]
    if facts.run is None:
        users = [hold for hold in facts.standing if hold.hold is None or hold.hold.reads_shared]
        return lambda pack: f"{users[0]} may need it" if users else None
    # What a committed record names cannot be the unfinished work of somebody else.
    committed = {name for record in facts.records.values() for name in record.packs}
    return lambda pack: f"{saves[0]} may have written it" if saves and pack not in committed else None


def _given_up(facts: SweepFacts) -> tuple[RecordAddress, ...]:
    return tuple(sorted(facts.given_up - _publishing(facts)))
