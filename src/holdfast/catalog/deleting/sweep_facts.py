"""What a sweep has to know, read from the store in the one order that is safe.

Holds are listed before this, and what they turn into (records, tags, forks,
pins) here: a save that finishes in between is seen twice, never not at all.
Packs, trees and marks come before the records that need them, for the same
reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from holdfast.catalog import layout
from holdfast.catalog.holds import FoundHold, find_saves
from holdfast.catalog.locating import list_packs, read_footers
from holdfast.catalog.manifests import read_reach
from holdfast.catalog.marks import marks_of
from holdfast.catalog.naming.tags import read_tags
from holdfast.catalog.objects import DamagedObject
from holdfast.catalog.owners import Liveness
from holdfast.catalog.reach import Holders, Reached
from holdfast.catalog.runs import Published, Run
from holdfast.catalog.starts import NewestStarts, is_superseded, newest_starts
from holdfast.catalog.store import Store
from holdfast.errors import Corrupt, Damaged
from holdfast.ids import ObjectName, RecordAddress, RunNumber
from holdfast.packs.footer import Footer
from holdfast.records import Aborted, Record, RunInfo
from holdfast.storage.protocol import Listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """A record, and what names it."""

    address: RecordAddress
    by: str
    lasting: bool = True
    """Whether a person has to let go first; else time will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFacts:
    """The state of one scope: a run's own objects, or the shared packs."""

    run: RunNumber | None
    """None: ``data/shared``."""
    packs: tuple[Listed, ...]
    trees: tuple[Listed, ...]
    marks: tuple[Listed, ...]
    records: dict[RecordAddress, Record]
    given_up: frozenset[RecordAddress]
    """Given-up saves whose savers are provably gone: their names need not be taken any longer."""
    reached: dict[RecordAddress, Reached]
    """By record; what a record that is missing here reaches cannot be told."""
    needed: tuple[Needed, ...]
    standing: tuple[FoundHold, ...]
    """Saves in flight and readers at work."""
    damaged_records: tuple[DamagedObject, ...]
    damaged_names: tuple[DamagedObject, ...]
    """Tags, ``run.json`` and newest starts that might name any record."""
    damaged_packs: frozenset[ObjectName]
    """Packs whose content cannot be told."""
    rotten_packs: frozenset[ObjectName] = frozenset()
    """Those of them whose own index is damaged, which no other version and no other attempt could read."""
    lacking: frozenset[RecordAddress] = frozenset()
    """If there are any: records of which some segment is in no pack that can be read."""


def read_facts(store: Store, run: Run | None, *, standing: Iterable[FoundHold] = ()) -> SweepFacts:
    """The facts of a run's own objects (``run``) or of the shared packs (None).

    Args:
        store: the store.
        run: the run, or None.
        standing: the holds of that scope, listed before this is called.
    """
    packs, trees, marks = _bulk(store, run)
    published = [(one, one.published()) for one in runs_of(store, run)]
    named, unclear = _needed(store, run, marks)
    footers, broken = _footers(store, packs)
    holders = Holders() if run is None else run.holders
    holders.add(footers)
    lacking = _lacking(store, run, published, footers) if broken else frozenset()
    return SweepFacts(
        run=None if run is None else run.number,
        packs=packs,
        trees=trees,
        marks=marks,
        records={record.address: record for _, found in published for record in found.records},
        given_up=_over(store, (one for _, found in published for one in found.aborted)),
        reached=_reached(holders, published),
        needed=tuple(named),
        standing=tuple(standing),
        damaged_records=tuple(one for _, found in published for one in found.damaged),
        damaged_names=tuple(unclear),
        damaged_packs=frozenset(broken),
        rotten_packs=frozenset(name for name, error in broken.items() if isinstance(error, Corrupt)),
        lacking=lacking,
    )


def runs_of(store: Store, run: Run | None) -> list[Run]:
    """The runs of a scope: ``run``, or all for the shared packs."""
    if run is not None:
        return [run]
    # Also those whose run.json is damaged or lost: their records need shared packs all the same.
    return [Run.by_number(store, number) for number in store.claimed()]


def _bulk(store: Store, run: Run | None) -> tuple[tuple[Listed, ...], tuple[Listed, ...], tuple[Listed, ...]]:
    listing = store.storage.list
    if run is None:
        return tuple(listing(layout.SHARED_PACKS)), (), ()
    number = run.number
    return (
        tuple(listing(layout.private_packs(number))),
        tuple(listing(layout.trees_folder(number))),
        tuple(listing(layout.marks_folder(number))),
    )


def _over(store: Store, aborted: Iterable[Aborted]) -> frozenset[RecordAddress]:
    """Those that nobody races for any more: several ranks, and a saver's successor, race for one name."""
    over = {one.address for one in aborted if one.saver is not None and store.liveness(one.saver) is Liveness.DEAD}
    holds = [hold for number in {one.run for one in over} for hold in find_saves(store, number)]
    return frozenset(over - {hold.publishes for hold in holds if hold.liveness is not Liveness.DEAD})


def _footers(store: Store, packs: Iterable[Listed]) -> tuple[list[Footer], dict[ObjectName, Damaged]]:
    found = read_footers(store.footers, [pack.name for pack in packs])
    return found.footers, {one.name: one.error for one in found.damaged}


def _reached(holders: Holders, published: Iterable[tuple[Run, Published]]) -> dict[RecordAddress, Reached]:
    reached = {}
    for run, found in published:
        for record in found.records:
            try:
                reached[record.address] = holders.reached(run, record)
            except Damaged:
                continue
    return reached


def _lacking(
    store: Store, run: Run | None, published: Iterable[tuple[Run, Published]], footers: list[Footer]
) -> frozenset[RecordAddress]:
    """What a record lacks may be in a pack that cannot be read now, and can be when it is copied back."""
    own = {digest for footer in footers for digest in footer.digests()}
    lacking = set[RecordAddress]()
    for one, found in published:
        folder = layout.SHARED_PACKS if run is not None else layout.private_packs(one.number)
        others = read_footers(store.footers, list_packs(store, folder)).footers
        held = own.union(*(footer.digests() for footer in others))
        lacking |= {record.address for record in found.records if not _is_held(one, record, held)}
    return frozenset(lacking)


def _is_held(run: Run, record: Record, held: set[bytes]) -> bool:
    try:
        raw = read_reach(run, record.manifest_digest).digests
    except Damaged:
        return False
    return all(raw[at : at + 32] in held for at in range(0, len(raw), 32))


def _needed(store: Store, run: Run | None, marks: Iterable[Listed]) -> tuple[list[Needed], list[DamagedObject]]:
    """What names records of ``run``, and what might but cannot be read."""
    if run is None:
        return [], []  # no record goes in a sweep of the shared packs
    tags = read_tags(store)
    infos, broken = store.run_infos()
    starts = newest_starts(store)
    named = [Needed(address=tag.target.address, by=f"tag {tag.tag!r}") for tag in tags.tags]
    named += [*_forks(infos), *_pins(store, run, marks), *_starts(store, run, starts)]
    return named, [*tags.damaged, *broken, *starts.damaged]


def _forks(infos: Iterable[RunInfo]) -> Iterator[Needed]:
    for info in infos:
        if info.forked_from is not None:
            yield Needed(address=info.forked_from.address, by=f"{RunNumber(info.number)}, which was forked from it")


def _pins(store: Store, run: Run, listing: Iterable[Listed]) -> Iterator[Needed]:
    # The listing is as good as one made now: a pin that it does not have was made after the tombstones, and sees them.
    pinned = {id_ for id_, marks in marks_of(store, run.number, listing).items() if marks.pinned}
    if not pinned:
        return
    yield from (Needed(address=address, by="a pin") for address in run.addresses() if address.id in pinned)


def _starts(store: Store, run: Run, newest: NewestStarts) -> Iterator[Needed]:
    """Until its first save, what a launch resumed from is all that it has, whichever run that lies in."""
    for start in newest.resumed(run.number):
        if start.resumed_from is None:
            continue
        own = start.run == run.number
        by = "the newest start of the run" if own else f"the newest start of {RunNumber(start.run)}"
        lasting = not own and not is_superseded(store, start)
        yield Needed(address=start.resumed_from.address, by=by, lasting=lasting)
