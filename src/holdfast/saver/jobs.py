"""What is to be saved: a request, the structure of the state, and where its bytes are.

A job is complete in itself: whoever has the job and the memory that it speaks
of can make the checkpoint, the trainer need not be there any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from holdfast.catalog.parts import Prints
from holdfast.errors import Corrupt
from holdfast.ids import Digest, ObjectName, Order, RecordAddress, RecordId, RunNumber
from holdfast.packs.segment import Segment
from holdfast.records import Exactness, Kind, Target
from holdfast.seals import seal, unseal
from holdfast.trees import Lifetime, Skeleton, TensorSpec, decode_skeleton, segment_count

_REQUEST = ObjectName("saver/request")


class SaveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a save that is not the state itself."""

    timeline: int
    step: int
    """Completed optimizer steps."""
    epoch: int | None
    parent: Target | None
    """The newest record of the line, as far as the trainer knows."""
    kind: Kind
    reason: str
    metrics: dict[str, Any] = {}
    exactness: dict[str, Exactness] = {}
    anomalies: list[str] = []
    environment: dict[str, str] = {}
    config_digest: str | None = None
    tags: list[str] = []
    """Names that the record gets once it is durable."""
    rank: int = 0
    """Of the trainer, among those that save together."""
    world: int = 1
    patience: float = 60.0
    """Seconds for which ranks wait for each other's contributions."""
    survives: str = "nothing"
    """What the staged state survives until it is durable."""
    attempt: str
    """Tells the record of this very save from others of the same name, also after its saver was replaced."""
    began: float
    """`time.monotonic` at the call, which all processes of this boot share."""
    stall: float = 0.0
    """Seconds for which the training loop has waited; 0: it waits for all of it."""
    staging: float = 0.0
    """Of these: seconds for which bytes were copied."""

    def address(self, store: str, run: RunNumber, launch: int) -> RecordAddress:
        """Where the record will lie."""
        order = Order(launch, self.timeline, self.step)
        return RecordAddress(run, order, RecordId.derive(store, run, order))


class Shape(msgspec.Struct, frozen=True):
    """The structure of a state without the bytes of its large tensors; small ones and values are in it."""

    skeleton: Skeleton
    values: bytes
    """Tagged JSON."""
    inline: bytes
    """Tensors of at most 1 KiB back to back."""
    anomalies: tuple[str, ...] = ()
    """What was noticed at the capture."""
    own: bytes = b"{}"
    """Tagged JSON of what belongs to this rank alone."""
    prints: tuple[Prints, ...] = ()
    """Fingerprints of what other ranks hold as well."""

    @property
    def large(self) -> list[TensorSpec]:
        """The tensors that have segments, in skeleton order."""
        return [spec for spec in self.skeleton.tensors if not spec.inline]

    @property
    def lifetimes(self) -> set[Lifetime]:
        """Of the large tensors."""
        return {spec.lifetime for spec in self.large}

    @property
    def logical_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.held for spec in self.skeleton.tensors)


class Content(Protocol):
    """The bytes of the large tensors of a job."""

    def segments(self, lifetime: Lifetime) -> Iterable[Segment]:
        """Those of one lifetime that are there, in skeleton order; valid as long as the content is."""

    def kept(self) -> Mapping[int, Digest]:
        """By position in skeleton order: segments that are not there, because they are known to be stored."""


class Positions:
    """The places of segments in skeleton order, by lifetime; pure."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.by_lifetime: dict[Lifetime, list[int]] = {}
        self.starts: list[int] = []
        """Per tensor, the position of its first segment."""
        self.count = 0
        for spec in specs:
            count = segment_count(spec)
            self.starts.append(self.count)
            self.by_lifetime.setdefault(spec.lifetime, []).extend(range(self.count, self.count + count))
            self.count += count

    def merged(self, written: dict[Lifetime, list[Digest]], kept: Mapping[int, Digest]) -> Iterator[Digest]:
        """All digests in skeleton order: those that were written, lifetime by lifetime, and those that were kept."""
        found = dict(kept)
        for lifetime, digests in written.items():
            free = [place for place in self.by_lifetime.get(lifetime, []) if place not in kept]
            found.update(zip(free, digests, strict=True))
        return (found[place] for place in range(self.count))


class Job(msgspec.Struct, frozen=True, array_like=True):
    """A save as it lies in shared memory beside the staged bytes: one msgpack document."""

    request: bytes
    skeleton: bytes
    values: bytes
    inline: bytes
    anomalies: list[str]
    own: bytes
    prints: list[Prints]
    offsets: list[int]
    """Per large tensor: where its first segment begins in the slot; -1: it is not staged."""
    stored_in: Target | None = None
    """The record that has the large tensors which are not staged here."""


def encode_job(request: SaveRequest, shape: Shape, offsets: list[int], stored_in: Target | None = None) -> bytes:
    """The document of a staged save."""
    job = Job(
        seal(_REQUEST, request),
        shape.skeleton.encode(),
        shape.values,
        shape.inline,
        list(shape.anomalies),
        shape.own,
        list(shape.prints),
        offsets,
        stored_in,
    )
    return msgspec.msgpack.encode(job)


def decode_job(data: bytes) -> tuple[SaveRequest, Shape, Job]:
    """The inverse of `encode_job`.

    Raises:
        Corrupt: not such a document.
    """
    try:
        job = msgspec.msgpack.decode(data, type=Job)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the document of a staged save is malformed: {error}") from error
    request = unseal(_REQUEST, job.request, SaveRequest)
    skeleton = decode_skeleton("the skeleton of a staged save", job.skeleton, Digest.of(job.skeleton))
    return request, Shape(skeleton, job.values, job.inline, tuple(job.anomalies), job.own, tuple(job.prints)), job
