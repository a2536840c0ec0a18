"""Which packs are worth repacking: decided from footers and from what records need."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweep_facts import runs_of
from holdfast.catalog.locating import list_packs, read_footers
from holdfast.catalog.manifests import read_reach
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import Damaged
from holdfast.ids import ObjectName, RunNumber
from holdfast.packs.codec import Codec
from holdfast.packs.footer import Footer
from holdfast.records import Record

UNDER = 0.5
"""Packs with a smaller live part than this are repacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepackPlan:
    """What one repack replaces."""

    run: RunNumber | None
    """None: the shared packs."""
    packs: tuple[ObjectName, ...] = ()
    """Packs that go, once what is live in them has been copied."""
    live_bytes: int = 0
    """Stored bytes of what is live in them: at most so many are copied."""
    size: int = 0
    """Length of these packs."""
    unclear: str | None = None
    """Why nothing is repacked: it cannot be told what is live."""
    codec: Codec | None = None
    """The codec of the copies, and one new pack for each old one; None: as they are, and packed together."""

    @property
    def freed(self) -> int:
        """About how many bytes will be free."""
        return self.size - self.live_bytes


class Scope(NamedTuple):
    """The packs of a run or the shared ones, and what they are needed for."""

    own: list[Footer]
    """Those that may be repacked or relied on, by name: not those of saves that are not committed (yet)."""
    others: list[Footer]
    """Other packs in which the same records find segments: the shared ones, for a run."""
    live: frozenset[bytes]
    """Digests that committed records need."""
    unclear: str | None


def read_scope(store: Store, run: Run | None, gone: Collection[ObjectName] = frozenset()) -> Scope:
    """The state of a run's own packs (``run``) or of the shared ones (None), as of now, or as if some were ``gone``."""
    # Packs before records: what a record names that is committed in between is not in these packs.
    shared = read_footers(store.footers, _left(store, layout.SHARED_PACKS, gone)).footers
    if run is None:
        live = read_live(store, run, gone)
        return Scope(shared, [], live.digests, live.unclear)
    listed = _left(store, layout.private_packs(run.number), gone)
    live, copies = read_live(store, run, gone), layout.repacked_packs(run.number)
    # A save that fails takes its packs along, without tombstones.
    own = [name for name in listed if name in live.packs or name.startswith(copies)]
    return Scope(read_footers(store.footers, own).footers, shared, live.digests, live.unclear)


def _left(store: Store, folder: str, gone: Collection[ObjectName]) -> list[ObjectName]:
    return [name for name in list_packs(store, folder) if name not in gone]


class Live(NamedTuple):
    """What committed records need."""

    digests: frozenset[bytes] = frozenset()
    packs: frozenset[str] = frozenset()
    """The packs that they name."""
    unclear: str | None = None
    """Why that cannot be told, if it cannot."""


def read_live(store: Store, run: Run | None, gone: Collection[ObjectName] = frozenset()) -> Live:
    """What the committed records of a run, or of all, need by now, those that are ``gone`` left aside."""
    digests: set[bytes] = set()
    packs: set[str] = set()
    for one in runs_of(store, run):
        published = one.published()
        if damaged := [found for found in published.damaged if found.name not in gone]:
            return Live(unclear=f"{damaged[0].name} is damaged, and nobody can tell what it needs")
        records = [record for record in published.records if record.name not in gone]
        try:
            digests.update(*(_needs(one, record) for record in records))
        except Damaged as error:
            return Live(unclear=str(error))
        packs.update(name for record in records for name in record.packs)
    return Live(frozenset(digests), frozenset(packs))


def _needs(run: Run, record: Record) -> Iterator[bytes]:
    raw = read_reach(run, record.manifest_digest).digests
    return (raw[at : at + 32] for at in range(0, len(raw), 32))


def make_plan(run: RunNumber | None, scope: Scope) -> RepackPlan:
    """The packs of ``scope`` that are under half live; those with nothing live are left to sweeps. Pure.

    The live part is measured in stored bytes of segments, not in the length of the pack: a small pack
    is mostly alignment, and repacking would never change that. A segment that several packs hold
    counts in one of them only, so that copies go.
    """
    if scope.unclear:
        return RepackPlan(run=run, unclear=scope.unclear)
    homes = {digest: footer.name for footer in (*scope.own, *scope.others) for digest in footer.digests()}
    chosen = [(footer, live) for footer in scope.own if (live := _worth(footer, scope.live, homes)) is not None]
    return RepackPlan(
        run=run,
        packs=tuple(footer.name for footer, _ in chosen),
        live_bytes=sum(live for _, live in chosen),
        size=sum(footer.size for footer, _ in chosen),
    )


def _worth(footer: Footer, live: frozenset[bytes], homes: dict[bytes, ObjectName]) -> int | None:
    """Its live bytes, if it is worth repacking."""
    if live.isdisjoint(footer.digests()):
        return None
    at_home = (entry.stored for entry in footer if entry.digest in live and homes[entry.digest] == footer.name)
    alive = sum(at_home)
    return alive if alive < UNDER * footer.stored_bytes else None


def live_in(footers: Iterable[Footer], live: frozenset[bytes]) -> frozenset[bytes]:
    """The live digests that ``footers`` hold."""
    return frozenset(digest for footer in footers for digest in footer.digests() if digest in live)
