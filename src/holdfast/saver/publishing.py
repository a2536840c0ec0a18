"""The record of a save whose packs are written, and how it is published."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from holdfast.catalog.saves import SaveAttempt
from holdfast.clock import utc_now
from holdfast.errors import StorageError, StorageFull
from holdfast.ids import Digest, RecordAddress
from holdfast.records import Record, Sizes, Target, Timing
from holdfast.saver.jobs import SaveRequest, Shape
from holdfast.saver.noticing import describe, nan_inline, noticed
from holdfast.trees import Manifest

PUBLISH_PAUSES = (0.1, 0.5)
"""Seconds before the publication of a record is tried again."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What one process has written of a save."""

    request: SaveRequest
    shape: Shape
    state: Manifest
    """Of what it has written."""
    packs: list[str]
    """Those that hold it."""
    fingerprinted: list[tuple[int, int]]
    """As in a record."""
    nan: list[str]
    """Names of large tensors that hold a NaN."""
    sizes: Sizes
    timing: Timing
    codec: str

    def anomalies(self) -> list[str]:
        """What one process sees without the others."""
        nan = describe("NaN inside", [*self.nan, *nan_inline(self.state)])
        return [*self.shape.anomalies, *self.request.anomalies, *nan]


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """What a record says of the state, of all ranks together."""

    manifest: Digest
    packs: list[str]
    tensors: int
    sizes: Sizes
    anomalies: list[str]
    fingerprinted: list[tuple[int, int]]
    timing: Timing


def alone(
    made: Made, attempt: SaveAttempt, parent: RecordAddress | None, earlier: Manifest | None, *, trained: bool
) -> Record:
    """Commits what one process has made.

    Args:
        made: that.
        attempt: of this save.
        parent: the record before on this line.
        earlier: its manifest, if it can be had.
        trained: whether a step was made since.

    Raises:
        Conflict, SaveFailed, StorageError: it is not committed.
    """
    whole = Whole(
        manifest=attempt.write_manifest(made.state),
        packs=made.packs,
        tensors=len(made.state.skeleton.tensors),
        sizes=made.sizes,
        anomalies=[*made.anomalies(), *noticed(made.state, earlier, trained=trained)],
        fingerprinted=made.fingerprinted,
        timing=made.timing,
    )
    return published(attempt, record_of(made, attempt, parent, whole))


def record_of(made: Made, attempt: SaveAttempt, parent: RecordAddress | None, whole: Whole) -> Record:
    """The record, not yet published."""
    request = made.request
    return Record(
        **attempt.target.fields(),
        epoch=request.epoch,
        parent=Target.of(parent) if parent else None,
        created=utc_now(),
        kind=request.kind,
        reason=request.reason,
        metrics=request.metrics,
        manifest=str(whole.manifest),
        packs=whole.packs,
        tensors=whole.tensors,
        bytes=whole.sizes,
        world=request.world,
        exactness=request.exactness,
        anomalies=whole.anomalies,
        fingerprinted=whole.fingerprinted,
        timing=whole.timing,
        codec=made.codec,
        survives=request.survives,
        environment=request.environment,
        config_digest=request.config_digest,
        owner=attempt.owner,
        attempt=attempt.nonce,
    )


def published(
    attempt: SaveAttempt,
    record: Record,
    sizes: Mapping[str, int] | None = None,
    pauses: Sequence[float] = PUBLISH_PAUSES,
) -> Record:
    """Publishes; a failure that proves nothing is followed by the same request, which finds its own record.

    Given up in between, the name would be taken for good, and the state could not be saved any more.
    """
    for pause in pauses:
        try:
            return attempt.publish(record, sizes)
        except StorageFull:
            raise
        except StorageError:
            time.sleep(pause)
    return attempt.publish(record, sizes)
