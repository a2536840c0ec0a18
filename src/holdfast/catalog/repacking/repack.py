"""Repacking: copies what is live out of packs that are under half live, and then lets those packs go.

One live segment keeps a whole pack. Manifests name digests and no places, so
segments may move: no record, no manifest and no digest changes, and a record's
``packs`` hint grows stale, which readers know. Recoding (`holdfast.catalog.repacking.recode`)
is the same with another codec for the copies.

The order is the protocol. Copies are written, durable and read back before the
old packs are announced (tombstones). Then nobody may be at work who began before
that, everything that records need by now must lie in what was read back, and
none of that may be announced by somebody else, or be gone: two repacks that rely
on each other's victim see each other's tombstones, or what one of them has left.
Otherwise the old packs stay, and the next repack finds the copies.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweeps import standing_holds, working
from holdfast.catalog.holds import Report, find_holds, settle
from holdfast.catalog.keeping import Keeps
from holdfast.catalog.objects import create_once, exists
from holdfast.catalog.repacking.dtypes import UNKNOWN, read_dtypes
from holdfast.catalog.repacking.plans import RepackPlan, live_in, make_plan, read_live, read_scope
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.catalog.tombstones import check_announced, read_tombstones
from holdfast.clock import utc_now
from holdfast.errors import CodecUnavailable, Damaged
from holdfast.ids import Digest, ObjectName, nonce
from holdfast.packs.codec import Codec
from holdfast.packs.footer import Footer
from holdfast.packs.index import Location, SegmentIndex
from holdfast.packs.reader import read_segments
from holdfast.packs.segment import Segment
from holdfast.packs.verify import verify_pack
from holdfast.packs.writer import write_segments
from holdfast.records import Sweep

__all__ = ["RepackPlan", "Repacked", "execute_repack", "foreseen", "plan_repack"]

_log = logging.getLogger(__name__)

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repacked:
    """What a repack has done."""

    written: tuple[ObjectName, ...] = ()
    deleted: tuple[ObjectName, ...] = ()
    kept: tuple[tuple[ObjectName, str], ...] = ()
    """Packs of the plan that stayed, and why."""
    freed: int = 0
    """About how many bytes; below zero where there are copies and what they were made from stays, until the next."""


def plan_repack(store: Store, run: Run | None, gone: Collection[ObjectName] = frozenset()) -> RepackPlan:
    """What a repack of a run's own packs (``run``) or of the shared packs (None) would replace.

    Args:
        store: the store.
        run: the run.
        gone: objects that a sweep is going to delete before.

    Raises:
        StorageError: the store cannot be read.
    """
    return make_plan(None if run is None else run.number, read_scope(store, run, gone))


def execute_repack(
    store: Store,
    plan: RepackPlan,
    *,
    run: Run | None = None,
    seconds: float = 0.0,
    report: Report = _log.info,
    progress: Progress | None = None,
) -> Repacked:
    """Copies and replaces the packs of ``plan``; those that somebody may be using stay.

    Safe at any moment, also if it is killed half-way: at worst some segments are stored twice until the next
    repack. Memory: a few segments of 8 MiB.

    Args:
        store: the store.
        plan: from `plan_repack`; it may be old.
        run: the plan's run, if it is at hand: what it has read before is not read again.
        seconds: how long saves and readers at work may take to finish.
        report: told what is waited for.
        progress: called with stored bytes as they are copied or found elsewhere.

    Raises:
        Damaged, StorageError: nothing is lost; run it again.
    """
    if not plan.packs:
        return Repacked()
    if run is None and plan.run is not None:
        run = store.run(plan.run)
    copies = _copy(store, plan, run, progress or _no_progress)
    return _replace(store, plan, run, copies, lambda: _standing(store, plan, seconds, report))


@dataclass(slots=True)
class _Copies:
    """Where the live segments of the old packs are by now."""

    old: list[Footer]
    safe: set[bytes] = field(default_factory=set)
    """Digests that were read back from packs that stay."""
    relied_on: set[ObjectName] = field(default_factory=set)
    """Those packs."""
    written: list[ObjectName] = field(default_factory=list)


def _copy(store: Store, plan: RepackPlan, run: Run | None, progress: Progress) -> _Copies:
    scope = read_scope(store, run)
    old = [footer for footer in scope.own if footer.name in plan.packs]
    stay = SegmentIndex([footer for footer in scope.own if footer.name not in plan.packs] + scope.others)
    copies = _Copies(old)
    needed = live_in(old, scope.live)
    missing = [digest for digest in map(Digest, sorted(needed)) if not _is_safe(store, stay, digest, copies, progress)]
    index = SegmentIndex(old)
    found = [location for digest in missing if (location := index.get(digest))]
    source = _Source(store, index.get, read_dtypes(store, run, _hinted(plan, found)), progress)
    folder = layout.SHARED_PACKS if run is None else layout.repacked_packs(run.number)
    for codec, wanted in _groups(plan, found):
        _write(store, folder, codec, source.read(wanted), copies)
    return copies


def _hinted(plan: RepackPlan, locations: Iterable[Location]) -> list[Digest]:
    """The segments of which the codec has to know what they are."""
    return [entry.digest for _, entry in locations if Codec.OPENZL in (plan.codec, entry.codec)]


def _groups(plan: RepackPlan, locations: Iterable[Location]) -> Iterator[tuple[Codec, list[Location]]]:
    """What goes into the same new packs, and with which codec."""
    found = defaultdict[tuple[Codec, ObjectName | None], list[Location]](list)
    for location in locations:
        # What was written together is needed together and dies together, so recoding leaves it together.
        key = (location.entry.codec, None) if plan.codec is None else (plan.codec, location.pack)
        found[key].append(location)
    for (codec, _), group in found.items():
        yield codec, sorted(group, key=lambda location: (location.pack, location.entry.offset))


def _is_safe(store: Store, stay: SegmentIndex, digest: Digest, copies: _Copies, progress: Progress) -> bool:
    """Whether a pack that stays holds the segment whole; the copy that is relied on is read, not assumed."""
    location = stay.get(digest)
    if location is None or _raw(store, stay.get, location) is None:
        return False
    copies.safe.add(digest)
    copies.relied_on.add(location.pack)
    progress(location.entry.stored)
    return True


class _Source(NamedTuple):
    """The old packs, as segments to be written."""

    store: Store
    locate: Callable[[Digest], Location | None]
    dtypes: Mapping[bytes, str]
    progress: Progress

    def read(self, wanted: Iterable[Location]) -> Iterator[Segment]:
        """Those that are whole."""
        for location in wanted:
            raw = _raw(self.store, self.locate, location)
            if raw is not None:
                yield Segment(raw, self.dtypes.get(location.entry.digest, UNKNOWN))
            self.progress(location.entry.stored)


def _raw(store: Store, locate: Callable[[Digest], Location | None], location: Location) -> memoryview | None:
    raw = memoryview(bytearray(location.entry.length))
    try:
        read_segments(store.storage, locate, [(location.entry.digest, raw)], threads=1)
    except (Damaged, CodecUnavailable) as error:
        _log.warning("not repacked: %s", error)
        return None
    return raw


def _write(store: Store, folder: str, codec: Codec, segments: Iterator[Segment], copies: _Copies) -> None:
    first = next(segments, None)
    if first is None:
        return
    # Both kinds may be relied on from the moment they are committed, so a failure must not take them back.
    storage = Keeps(store.storage, folder)
    written = write_segments(storage, folder, chain([first], segments), known=lambda _: False, codec=codec, threads=1)
    for footer in written.footers:
        problems = verify_pack(store.storage, footer.name)
        if problems:
            _log.warning("a pack that was just written cannot be read back: %s", problems[0].message)
            continue
        store.footers.add(footer)
        copies.safe.update(footer.digests())
        copies.relied_on.add(footer.name)
        copies.written.append(footer.name)


def _replace(
    store: Store, plan: RepackPlan, run: Run | None, copies: _Copies, standing: Callable[[], str | None]
) -> Repacked:
    """Announces the old packs, looks once more whether anybody needs them, and deletes those that nobody does."""
    if not copies.old:
        return Repacked()
    names = [footer.name for footer in copies.old]
    with working(nonce()) as id_:
        sweep = Sweep(id=id_, created=utc_now(), owner=store.owner, objects=list(map(str, names)))
        create_once(store.storage, layout.sweep(id_), sweep)
        try:
            store.await_visibility()
            obstacle = standing() or _relies_on_others(store, sweep, copies)
            live = read_live(store, run)
            kept = dict(_kept(copies, live.digests, obstacle or live.unclear))
            check_announced(store, id_)
        except BaseException:
            store.storage.delete([layout.sweep(id_)])
            raise
        deleted = tuple(name for name in names if name not in kept)
        store.storage.delete(deleted)  # after an error here a delete may still be under way: the tombstones stay
        store.storage.delete([layout.sweep(id_)])
    freed = sum(footer.size for footer in copies.old if footer.name not in kept)
    freed -= sum(store.footers.get(name).stored_bytes for name in copies.written)
    store.footers.forget(deleted)
    return Repacked(written=tuple(copies.written), deleted=deleted, kept=tuple(kept.items()), freed=freed)


def foreseen(store: Store, plan: RepackPlan, run: Run | None) -> Repacked:
    """What `execute_repack` would come to now if nobody finished meanwhile: for a plan that is only shown."""
    obstacle = f"{standing[0]} may need it" if plan.packs and (standing := standing_holds(store, run)) else None
    if obstacle is None:
        return Repacked(deleted=plan.packs, freed=plan.freed)
    return Repacked(kept=tuple((name, obstacle) for name in plan.packs), freed=-plan.live_bytes)


def _standing(store: Store, plan: RepackPlan, seconds: float, report: Report) -> str | None:
    """Who began before the tombstones and is still at work: he may have chosen an old pack to read from."""
    numbers = store.claimed() if plan.run is None else [plan.run]
    holds = [hold for number in numbers for hold in find_holds(store, number)]
    reason = "its process was gone, and its remains were swept"
    left = settle(store, holds, seconds=seconds, reason=reason, report=report)
    return f"{left[0]} may need it" if left else None


def _relies_on_others(store: Store, own: Sweep, copies: _Copies) -> str | None:
    tombstones = read_tombstones(store)
    if tombstones.damaged:
        return f"{tombstones.damaged[0].name} is damaged, and nobody can tell what it announces"
    announced = {name for sweep in tombstones.sweeps if sweep.id != own.id for name in sweep.objects}
    if shaky := sorted(announced & copies.relied_on):
        return f"the copies in {shaky[0]} are about to be deleted by another sweep"
    # After the tombstones: a repack that deleted it while this one still copied has taken its own back by now.
    gone = (name for name in sorted(copies.relied_on) if not exists(store.storage, name))
    return next((f"the copies in {name} were deleted by another sweep" for name in gone), None)


def _kept(copies: _Copies, live: frozenset[bytes], obstacle: str | None) -> Iterator[tuple[ObjectName, str]]:
    for footer in copies.old:
        if obstacle is not None:
            yield footer.name, obstacle
            continue
        lost = sorted(live_in([footer], live) - copies.safe)
        if lost:
            yield footer.name, f"segment {Digest(lost[0]).short}, which a checkpoint needs, could not be copied"


def _no_progress(_: int) -> None:
    pass
