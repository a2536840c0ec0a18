"""What a sweep has to know, read from the store at one time and in the one order that is safe.

Holds come first and what they turn into (records, tags, forks, pins) later: a
save that finishes in between is then seen twice, never not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from holdfast.catalog import layout
from holdfast.catalog.holds import FoundHold
from holdfast.catalog.marks import read_marks
from holdfast.catalog.objects import DamagedObject
from holdfast.catalog.owners import Liveness
from holdfast.catalog.reach import Holders, Reached
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.catalog.tags import read_tags
from holdfast.errors import Damaged
from holdfast.ids import RecordAddress, RecordId, RunNumber
from holdfast.packs.footer import Footer
from holdfast.records import Record
from holdfast.storage.protocol import Listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """A record that something names."""

    address: RecordAddress
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFacts:
    """The state of one scope: the private objects of a run, or the shared packs."""

    run: RunNumber | None
    """None: ``data/shared``."""
    records: dict[RecordAddress, Record]
    given_up: frozenset[RecordAddress]
    """Given-up saves whose saver is provably gone: nobody needs the name to be taken any more."""
    unreadable: tuple[DamagedObject, ...]
    """Records, tags, forks and footers that cannot be read; what they need is unknown."""
    reached: dict[RecordAddress, Reached]
    """By record; one that is missing here cannot be told."""
    packs: tuple[Listed, ...]
    trees: tuple[Listed, ...]
    marks: tuple[Listed, ...]
    needed: tuple[Needed, ...]
    """Records that tags, pins, forks and the newest start name."""
    standing: tuple[FoundHold, ...]
    """Saves in flight and readers at work."""


def read_facts(
    store: Store, run: Run | None, *, standing: Collection[FoundHold], holders: Holders | None = None
) -> SweepFacts:
    """The facts of a run's own objects (``run``) or of the shared packs (None).

    Args:
        store: the store.
        run: the run, or None.
        standing: its holds, listed before this is called.
        holders: from an earlier call for the same scope, to read less.
    """
    runs = [run] if run is not None else [store.run(number) for number in store.numbers()]
    published = [(one, one.published()) for one in runs]
    packs = tuple(store.storage.list(layout.SHARED_PACKS if run is None else layout.private_packs(run.number)))
    footers, broken = _footers(store, packs)
    holders = holders or Holders()
    holders.add(footers)
    named, unnamed = _needed(store, run)
    reached, lost = _reached(holders, ((one, record) for one, found in published for record in found.records))
    return SweepFacts(
        run=None if run is None else run.number,
        records={record.address: record for _, found in published for record in found.records},
        given_up=frozenset(
            one.address
            for _, found in published
            for one in found.aborted
            if one.saver is not None and store.liveness(one.saver) is Liveness.DEAD
        ),
        unreadable=(*(bad for _, found in published for bad in found.damaged), *unnamed, *broken, *lost),
        reached=reached,
        packs=packs,
        trees=() if run is None else tuple(store.storage.list(layout.trees_folder(run.number))),
        marks=() if run is None else tuple(store.storage.list(layout.marks_folder(run.number))),
        needed=tuple(named),
        standing=tuple(standing),
    )


def _footers(store: Store, packs: Iterable[Listed]) -> tuple[list[Footer], list[DamagedObject]]:
    found, broken = [], []
    for pack in packs:
        try:
            found.append(store.footers.get(pack.name))
        except Damaged as error:
            broken.append(DamagedObject(pack.name, error))
    return found, broken


def _reached(
    holders: Holders, records: Iterable[tuple[Run, Record]]
) -> tuple[dict[RecordAddress, Reached], list[DamagedObject]]:
    reached, lost = {}, []
    for run, record in records:
        try:
            reached[record.address] = holders.reached(run, record)
        except Damaged as error:
            lost.append(DamagedObject(layout.tree(run.number, record.manifest_digest), error))
    return reached, lost


def _needed(store: Store, run: Run | None) -> tuple[list[Needed], list[DamagedObject]]:
    """Who names records of ``run``, and who might but cannot be read."""
    if run is None:
        return [], []  # no record goes in a sweep of the shared packs
    tags = read_tags(store)
    named = [Needed(address=tag.target.address, by=f"tag {tag.tag!r}") for tag in tags.tags]
    named += _forks(store)
    named += _pins(store, run)
    starts = run.starts()
    if starts and starts[-1].resumed_from is not None:
        named.append(Needed(address=starts[-1].resumed_from.address, by="the newest start of the run"))
    return named, [*tags.damaged, *store.damaged()]


def _forks(store: Store) -> Iterator[Needed]:
    for info in store.runs():
        if info.forked_from is not None:
            yield Needed(address=info.forked_from.address, by=f"{RunNumber(info.number)}, which was forked from it")


def _pins(store: Store, run: Run) -> Iterator[Needed]:
    pinned = {id_ for id_, marks in read_marks(store, run.number).items() if marks.pinned}
    for address in run.addresses():
        if RecordId(address.id) in pinned:
            yield Needed(address=address, by="a pin")


