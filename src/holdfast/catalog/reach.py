"""What a record reaches: its manifest, its skeleton, and every pack that holds any of its segments.

Every pack, not one per segment: the first copy of a segment may turn out to be
rotten, and then the second one is what the record lives on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from threading import RLock
from typing import TYPE_CHECKING, NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.manifests import read_reach
from holdfast.ids import ObjectName
from holdfast.packs.footer import Footer
from holdfast.records import Record

if TYPE_CHECKING:
    from holdfast.catalog.runs import Run
    from holdfast.catalog.store import Store


class Reached(NamedTuple):
    """What must stay as long as a record does."""

    trees: frozenset[ObjectName]
    packs: frozenset[ObjectName]


class Holders:
    """Which packs hold a segment, and what records reach; remembers, so that each manifest is read once.

    Grows with the packs and manifests that are there, given that those which go are forgotten. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._packs: dict[ObjectName, Footer] = {}
        self._holders: dict[bytes, list[ObjectName]] = defaultdict(list)
        self._reached: dict[ObjectName, Reached] = {}
        self._elsewhere: set[bytes] = set()

    def add(self, footers: Iterable[Footer]) -> None:
        """Takes in packs; what it said of a record before is forgotten if a pack holds old segments again."""
        with self._lock:
            for footer in footers:
                if footer.name not in self._packs:
                    self._add(footer)

    def reached(self, run: Run, record: Record) -> Reached:
        """What ``record`` of ``run`` reaches among the packs taken in.

        Raises:
            Damaged: its manifest cannot be read, so nobody can tell.
        """
        name = layout.tree(run.number, record.manifest_digest)
        with self._lock:
            if name not in self._reached:
                self._reached[name] = self._read(run, record, name)
            return self._reached[name]

    def forget(self, names: Iterable[ObjectName]) -> None:
        """Packs and manifests that were deleted."""
        gone = frozenset(names)
        with self._lock:
            packs = self._packs.keys() & gone
            for name in packs:
                self._remove(self._packs.pop(name))
            self._reached = {name: one for name, one in self._reached.items() if name not in gone}
            if any(packs & one.packs for one in self._reached.values()):
                self._reached.clear()  # a repack has moved what they reach
                self._elsewhere.clear()

    def _remove(self, footer: Footer) -> None:
        for digest in set(footer.digests()):
            self._holders[digest].remove(footer.name)
            if not self._holders[digest]:
                del self._holders[digest]

    def _add(self, footer: Footer) -> None:
        digests = set(footer.digests())
        if not (digests.isdisjoint(self._holders) and digests.isdisjoint(self._elsewhere)):
            self._reached.clear()
            self._elsewhere.clear()
        self._packs[footer.name] = footer
        for digest in digests:
            self._holders[digest].append(footer.name)

    def _read(self, run: Run, record: Record, manifest: ObjectName) -> Reached:
        reach = read_reach(run, record.manifest_digest)
        digests = {reach.digests[at : at + 32] for at in range(0, len(reach.digests), 32)}
        self._elsewhere.update(digests - self._holders.keys())
        packs = {name for digest in digests & self._holders.keys() for name in self._holders[digest]}
        return Reached(frozenset([manifest, layout.tree(run.number, reach.skeleton)]), frozenset(packs))


def forget(store: Store, run: Run | None, names: Iterable[ObjectName]) -> None:
    """What a sweep has deleted need not be remembered: memory must not grow with every save."""
    gone = list(names)
    store.footers.forget(gone)
    if run is not None:
        run.holders.forget(gone)
