"""From a record to live objects: locate the segments, read and verify them, fill, compare."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any, NamedTuple

from holdfast.boxes import cuts
from holdfast.catalog.locating import Copies, locate
from holdfast.catalog.manifests import OpenManifest
from holdfast.catalog.readers import reading
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import Damaged, Missing
from holdfast.ids import Digest
from holdfast.packs.index import SegmentIndex
from holdfast.packs.reader import read_segments
from holdfast.payload import Places
from holdfast.records import Record
from holdfast.recovery.ranks.group import Alone, Group
from holdfast.recovery.restoring.whole import Whole
from holdfast.state import Restored, Stored, Wanted
from holdfast.state.restore import Comparison
from holdfast.state.rng import derived
from holdfast.storage.blocks import drop_buffers
from holdfast.trees import item_bytes

LOAD_SECONDS = 900.0
"""How much longer ranks wait for each other while they load: the slowest disk counts."""


class Loaded(NamedTuple):
    """What a load leaves for the caller to apply last."""

    rng: dict[str, Any] | None
    data: dict[str, Any] | None
    """Position of the loader."""
    not_loaded: list[str]


class PackReader:
    """The bytes of a checkpoint's tensors, out of packs, every segment verified. Not thread-safe.

    Of the manifest those parts are read that are needed.

    Args:
        run: where it is.
        record: of the checkpoint.
        manifest: opened.
    """

    def __init__(self, run: Run, record: Record, manifest: OpenManifest) -> None:
        self._run, self._record, self._manifest = run, record, manifest
        self._counts = manifest.head.counts()
        self._begins = [0, *accumulate(self._counts)]
        self._pages: dict[int, bytes] = {}
        self._places: Places | None = None
        self._copies = Copies(run.store, record, SegmentIndex(), run.store.footers)

    def stored(self, part: int) -> Stored:
        """The checkpoint, with the values of one part for this process's own."""
        manifest = self._manifest
        return Stored(
            skeleton=manifest.skeleton,
            values=manifest.values,
            inline=manifest.inline,
            own=manifest.own(part),
            counts=self._counts,
            digest=self._digest,
            reader=self,
        )

    def need(self, parts: Iterable[int]) -> None:
        """Finds the segments of parts, before anything is changed.

        Raises:
            Missing: some are in no pack.
        """
        new = sorted(set(parts) - self._pages.keys())
        self._pages.update((part, self._manifest.digests(part)) for part in new)
        wanted = {Digest(raw[at : at + 32]) for raw in self._pages.values() for at in range(0, len(raw), 32)}
        self._copies.index = index = locate(self._run, self._record, wanted)
        if lost := [digest for digest in wanted if digest not in index]:
            raise Missing(
                f"{len(lost)} of {len(wanted)} segments of {self._record.address} are in no pack, "
                f"{lost[0].short} among them; run 'holdfast verify'"
            )

    def read(self, wanted: Sequence[Wanted]) -> None:
        """Fills every view, from another copy where one is rotten; errors as in `read_segments`."""
        while True:
            pieces = [piece for one in wanted for piece in self._pieces(one)]  # may find more packs
            try:
                return read_segments(self._run.store.storage, self._copies.index.get, pieces)
            except Damaged as error:
                if not self._copies.try_another(error):
                    raise

    def _pieces(self, one: Wanted) -> Iterator[tuple[Digest, memoryview]]:
        self._places = self._places or Places(self._manifest.skeleton, self._counts)
        spec, at = self._manifest.skeleton.tensors[one.entry], self._places.of(one.entry, one.box)
        for number, span in zip(at, cuts(spec.boxes[one.box], item_bytes(spec.dtype)), strict=True):
            begin = span.start - one.start
            if 0 <= begin < one.into.nbytes:
                yield self._digest(number), one.into[begin : begin + span.length]

    def _digest(self, place: int) -> Digest:
        part = bisect_right(self._begins, place) - 1
        if part not in self._pages:
            self.need([part])
        at = 32 * (place - self._begins[part])
        return Digest(self._pages[part][at : at + 32])


def load(
    store: Store,
    record: Record,
    whole: Whole,
    group: Group,
    *,
    only: Sequence[str] | None = None,
    left: Collection[str] = (),
) -> Loaded:
    """Brings the objects of ``whole`` into the state of ``record``; its values follow when all else has worked.

    What fails on one rank fails on all. With ``only``, these objects alone; those that are ``left`` are not changed,
    and everything else is.

    Raises:
        Damaged: the checkpoint cannot be read in full; the objects hold anything, load another one into them.
        StateMismatch: it does not fit; nothing has changed.
        RestoreFailed: the live state differs from what was stored; the objects must not be used.
        BeingDeleted, StorageError: it cannot be read now.
    """
    parts = {"user": whole.values}
    restored = load_objects(store, record, whole.objects, group, only=only, left=left, values=parts)
    if only is not None:
        return Loaded(None, None, list(restored.not_loaded))
    whole.take(restored.values)
    rng = restored.own.get("rng") if record.world == group.size else derived(record.id, group.rank)
    return Loaded(rng, restored.own.get("data"), [])


def load_objects(
    store: Store,
    record: Record,
    objects: Mapping[str, object],
    group: Group | None = None,
    *,
    only: Sequence[str] | None = None,
    left: Collection[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Restored:
    """As `load`, for the objects alone; without ``group`` this process is alone."""
    group, text = group or Alone(), f"the load of {record.address}"
    part = group.rank if record.world == group.size else 0

    def compare() -> Comparison:
        run = Run.by_number(store, record.run)  # what it holds can be read whether or not its run.json can
        reader = PackReader(run, record, OpenManifest(run, record.manifest_digest))
        return Comparison(objects, reader.stored(part), only=only, left=left, values=values)

    with ExitStack() as stack:
        stack.enter_context(group.longer(LOAD_SECONDS))
        stack.callback(drop_buffers)  # a training that goes on needs no more memory than one that began
        group.agreed(lambda: stack.enter_context(reading(store, [record.address])), text)
        comparison = group.agreed(compare, text)
        nowhere = group.everywhere(comparison.lacking, text)
        plan = group.agreed(lambda: comparison.plan(nowhere), text)
        return group.agreed(plan.execute, text)
