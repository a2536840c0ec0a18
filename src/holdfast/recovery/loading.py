"""From a record to live objects: locate the segments, read and verify them, fill, compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from holdfast.catalog.locating import Copies, locate
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.readers import reading
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import Damaged, Missing
from holdfast.ids import Digest
from holdfast.packs.reader import read_segments
from holdfast.records import Record
from holdfast.recovery.whole import Whole
from holdfast.state import Restored, Stored, Wanted, restore
from holdfast.storage.blocks import drop_buffers
from holdfast.storage.protocol import Storage
from holdfast.trees import Manifest, segment_count, segments


class Loaded(NamedTuple):
    """What a load leaves for the caller to apply last."""

    rng: dict[str, Any] | None
    data: dict[str, Any] | None
    """Position of the loader."""
    not_loaded: list[str]


@dataclass(frozen=True, slots=True)
class PackReader:
    """The bytes of a manifest's tensors, out of packs, every segment verified."""

    storage: Storage
    copies: Copies
    manifest: Manifest
    starts: Sequence[int]
    """Per tensor, the position of its first segment."""

    @classmethod
    def of(cls, storage: Storage, copies: Copies, manifest: Manifest) -> PackReader:
        """For a manifest whose segments ``copies`` knows."""
        starts, at = [], 0
        for spec in manifest.skeleton.tensors:
            starts.append(at)
            at += segment_count(spec)
        return cls(storage, copies, manifest, starts)

    def read(self, wanted: Sequence[Wanted]) -> None:
        """Fills every view, from another copy where one is rotten; errors as in `read_segments`."""
        while True:
            pieces = (piece for one in wanted for piece in self._pieces(one))
            try:
                return read_segments(self.storage, self.copies.index.get, pieces)
            except Damaged as error:
                if not self.copies.try_another(error):
                    raise

    def _pieces(self, one: Wanted) -> Iterator[tuple[Digest, memoryview]]:
        spec, raw = self.manifest.skeleton.tensors[one.entry], self.manifest.digests
        for number, span in enumerate(segments(spec), self.starts[one.entry]):
            begin = span.start - one.start
            if 0 <= begin < one.into.nbytes:
                yield Digest(raw[32 * number : 32 * number + 32]), one.into[begin : begin + span.length]


def load(store: Store, record: Record, whole: Whole, *, only: Sequence[str] | None = None) -> Loaded:
    """Brings the objects of ``whole`` into the state of ``record``; its values follow when all else has worked.

    Raises:
        Damaged: the checkpoint cannot be read in full; the objects hold anything, load another one into them.
        StateMismatch: it does not fit; nothing has changed.
        RestoreFailed: the live state differs from what was stored; the objects must not be used.
        BeingDeleted, StorageError: it cannot be read now.
    """
    restored = load_objects(store, record, whole.objects, only=only)
    if only is not None:
        return Loaded(None, None, list(restored.not_loaded))
    parts = restored.values
    whole.take(parts)
    return Loaded(parts.get("rng"), parts.get("data"), [])


def load_objects(
    store: Store, record: Record, objects: Mapping[str, object], *, only: Sequence[str] | None = None
) -> Restored:
    """As `load`, for the objects alone."""
    with reading(store, [record.address]):
        run = Run.by_number(store, record.run)  # what it holds can be read whether or not its run.json can
        manifest = read_manifest(run, record.manifest_digest)
        digests = set(manifest.segment_digests())
        index = locate(run, record, digests)
        lost = [digest for digest in digests if digest not in index]
        if lost:
            raise Missing(
                f"{len(lost)} of {len(digests)} segments of {record.address} are in no pack, "
                f"{lost[0].short} among them; run 'holdfast verify'"
            )
        reader = PackReader.of(store.storage, Copies(store, record, index, store.footers), manifest)
        try:
            return restore(objects, Stored.of(manifest, reader), only=only)
        finally:
            drop_buffers()  # a training that goes on needs no more memory than one that began
