"""Saving in the trainer's own process: `save` returns when the record is durable.

The saver process that takes this over works from staged memory; the order of
things is the same: hold, packs, manifest, record, and only then what follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from holdfast.catalog import layout
from holdfast.catalog.launches import Launch
from holdfast.catalog.saves import SaveAttempt, begin_save
from holdfast.clock import utc_now
from holdfast.ids import Digest, ObjectName, RecordAddress
from holdfast.packs.codec import Codec
from holdfast.packs.parallel import THREADS
from holdfast.packs.writer import Written, write_segments
from holdfast.records import Exactness, Kind, Record, Sizes, Target, Timing
from holdfast.state import Snapshot
from holdfast.trees import Lifetime, segments


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """Everything about a save that is not the state itself."""

    timeline: int
    step: int
    epoch: int | None
    parent: RecordAddress | None
    kind: Kind
    reason: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    exactness: Mapping[str, Exactness] = field(default_factory=dict)
    anomalies: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    config_digest: str | None = None


class InlineSaver:
    """Saves a snapshot while the caller waits. Not thread-safe: one save at a time per launch."""

    def __init__(
        self,
        launch: Launch,
        *,
        codec: Codec = Codec.RAW,
        threads: int = THREADS,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._launch = launch
        self._codec = codec
        self._threads = threads
        self._progress = progress
        self._damaged: set[ObjectName] = set()

    def distrust(self, packs: Iterable[ObjectName]) -> None:
        """These packs are damaged: what only they have, the next save writes again."""
        self._damaged |= set(packs)

    def save(self, snapshot: Snapshot, request: SaveRequest) -> Record:
        """A committed record: complete, durable and visible when this returns; else nothing is visible.

        Raises:
            Fenced: a newer launch owns the run.
            RecordConflict: this very save was published by somebody else.
            StorageError: it could not be written; what was written of it is removed.
        """
        began = time.perf_counter()
        bases = [request.parent] if request.parent else []
        frozen = any(spec.lifetime is Lifetime.FROZEN for spec, _ in snapshot.tensors)
        at = (self._launch, request.timeline, request.step)
        with begin_save(*at, bases=bases, shared=frozen, quarantined=self._damaged) as attempt:
            written = self._write(snapshot, attempt)
            manifest = attempt.write_manifest(
                snapshot.skeleton, snapshot.values_bytes, snapshot.inline, written.digests
            )
            record = self._record(snapshot, request, attempt, written, manifest, time.perf_counter() - began)
            return attempt.publish(record)

    def _write(self, snapshot: Snapshot, attempt: SaveAttempt) -> Written:
        """Writes the segments, lifetime by lifetime, and puts their digests back into skeleton order."""
        positions = _positions(snapshot)
        written: dict[Lifetime, Written] = {}
        for lifetime in positions:
            part = write_segments(
                attempt.storage,
                self._folder(lifetime),
                snapshot.segments(lifetime),
                known=attempt.known,
                codec=self._codec,
                threads=self._threads,
                progress=self._progress,
            )
            attempt.wrote(part.footers)
            written[lifetime] = part
        return _merged(positions, written)

    def _folder(self, lifetime: Lifetime) -> str:
        run = self._launch.run.number
        return layout.SHARED_PACKS if lifetime is Lifetime.FROZEN else layout.private_packs(run)

    def _record(
        self,
        snapshot: Snapshot,
        request: SaveRequest,
        attempt: SaveAttempt,
        written: Written,
        manifest: Digest,
        seconds: float,
    ) -> Record:
        target = attempt.target
        return Record(
            id=target.id,
            run=target.run,
            launch=target.launch,
            timeline=target.timeline,
            step=target.step,
            epoch=request.epoch,
            parent=Target.of(request.parent) if request.parent else None,
            created=utc_now(),
            kind=request.kind,
            reason=request.reason,
            metrics=dict(request.metrics),
            manifest=str(manifest),
            packs=attempt.packs(written.digests),
            tensors=len(snapshot.skeleton.tensors),
            bytes=Sizes(logical=snapshot.logical_bytes, new=written.new_bytes, stored=written.stored_bytes),
            exactness=dict(request.exactness),
            anomalies=[*snapshot.anomalies, *request.anomalies],
            timing=Timing(stall=seconds, staging=0.0, hashing=written.hash_seconds, writing=written.write_seconds),
            codec=str(self._codec),
            environment=dict(request.environment),
            config_digest=request.config_digest,
            owner=attempt.owner,
            attempt=attempt.nonce,
        )


def _positions(snapshot: Snapshot) -> dict[Lifetime, list[int]]:
    """Per lifetime, the places of its segments in skeleton order."""
    found: dict[Lifetime, list[int]] = {}
    at = 0
    for spec, _ in snapshot.tensors:
        count = sum(1 for _ in segments(spec))
        found.setdefault(spec.lifetime, []).extend(range(at, at + count))
        at += count
    return found


def _merged(positions: Mapping[Lifetime, list[int]], written: Mapping[Lifetime, Written]) -> Written:
    digests: dict[int, Digest] = {}
    for lifetime, places in positions.items():
        digests.update(zip(places, written[lifetime].digests, strict=True))
    return Written(
        digests=[digests[place] for place in range(len(digests))],
        packs=[pack for part in written.values() for pack in part.packs],
        footers=[footer for part in written.values() for footer in part.footers],
        new_bytes=sum(part.new_bytes for part in written.values()),
        stored_bytes=sum(part.stored_bytes for part in written.values()),
        hash_seconds=sum(part.hash_seconds for part in written.values()),
        write_seconds=sum(part.write_seconds for part in written.values()),
    )
