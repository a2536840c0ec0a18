"""Runs made of bare records, for all that never looks into a manifest, and runs made of real, small checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from holdfast.catalog import layout
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.manifests import manifest_of
from holdfast.catalog.objects import create_once
from holdfast.catalog.owners import this_process
from holdfast.catalog.runs import Run
from holdfast.catalog.saves import begin_save
from holdfast.catalog.store import Store, create_store
from holdfast.ids import Digest, Order, RecordAddress, RecordId, nonce
from holdfast.packs.codec import Codec
from holdfast.packs.writer import write_segments
from holdfast.records import Kind, Record, Sizes, StartInfo, Target, Timing
from holdfast.storage.memory import memory_storage
from holdfast.trees import INLINE_BYTES, Lifetime, Skeleton, TensorSpec

CREATED = "2026-01-01T00:00:00Z"


def bare_record(run: Run, launch: int, timeline: int, step: int, parent: Record | None, **fields) -> Record:
    order = Order(launch, timeline, step)
    defaults = {
        "id": str(RecordId.derive(run.store.info.id, run.number, order)),
        "run": int(run.number),
        **order._asdict(),
        "parent": None if parent is None else Target.of(parent.address),
        "created": CREATED,
        "kind": Kind.REGULAR,
        "reason": "test",
        "manifest": "00" * 32,
        "tensors": 0,
        "bytes": Sizes(logical=0, new=0, stored=0),
        "timing": Timing(stall=0, staging=0, hashing=0, writing=0),
        "codec": "raw",
        "owner": this_process(),
        "attempt": nonce(),
    }
    return Record(**{**defaults, **fields})


@dataclass
class Trainer:
    """Writes records and starts into a run as a training would."""

    run: Run
    launch: int = 1
    timeline: int = 0
    parent: Record | None = None

    def save(self, step: int, **fields) -> Record:
        record = bare_record(self.run, self.launch, self.timeline, step, self.parent, **fields)
        create_once(self.run.store.storage, record.name, record)
        self.parent = record
        return record

    def roll_back(self, to: Record | None, *, relaunch: bool = False) -> None:
        self.launch, self.timeline = (self.launch + 1, 0) if relaunch else (self.launch, self.timeline + 1)
        start = StartInfo(
            run=int(self.run.number),
            launch=self.launch,
            timeline=self.timeline,
            created=CREATED,
            resumed_from=None if to is None else Target.of(to.address),
            why="test",
            attempt=nonce(),
        )
        create_once(self.run.store.storage, layout.start(self.run.number, self.launch, self.timeline), start)
        self.parent = to


@dataclass
class Saver:
    """Saves real checkpoints of small tensors through the whole protocol."""

    run: Run
    codec: Codec = Codec.RAW
    parent: Record | None = None
    distrusted: frozenset[str] = frozenset()
    """Packs that are not reused."""

    def __post_init__(self) -> None:
        self.launch = begin_launch(self.run, deadline=0)
        self.launch.record_start(0, None, "test")

    def save(self, step: int, tensors: dict[str, bytes], frozen: dict[str, bytes] | None = None, **fields) -> Record:
        """A checkpoint of uint8 tensors; ``frozen`` ones go into the shared packs."""
        parts = [(Lifetime.FROZEN, frozen or {}), (Lifetime.PARAMETER, tensors)]
        specs = [TensorSpec(k, "uint8", (len(v),), life) for life, part in parts for k, v in part.items()]
        bases = [self.parent.address] if self.parent else []
        with begin_save(self.launch, 0, step, bases=bases, quarantined=self.distrusted) as attempt:
            digests = [*self._write(attempt, layout.SHARED_PACKS, parts[0][1])]
            digests += self._write(attempt, layout.private_packs(self.run.number), tensors)
            inline = b"".join(v for _, part in parts for v in part.values() if len(v) <= INLINE_BYTES)
            manifest = attempt.write_manifest(manifest_of(Skeleton(tuple(specs)), b"{}", inline, digests))
            record = bare_record(
                self.run,
                self.launch.number,
                0,
                step,
                self.parent,
                manifest=str(manifest),
                packs=attempt.packs(digests),
                attempt=attempt.nonce,
                **fields,
            )
            self.parent = attempt.publish(record)
        return self.parent

    def _write(self, attempt, folder: str, tensors: dict[str, bytes]) -> list[Digest]:
        large = [memoryview(v) for v in tensors.values() if len(v) > INLINE_BYTES]
        written = write_segments(attempt.storage, folder, large, known=attempt.known, codec=self.codec, threads=1)
        attempt.wrote(written.footers)
        return written.digests


@pytest.fixture
def saver(store):
    """A function: a saver on a new run."""

    def begin(name: str | None = None, codec: Codec = Codec.RAW) -> Saver:
        return Saver(store.create_run(name), codec)

    return begin


@pytest.fixture
def store() -> Store:
    return create_store(memory_storage())


@pytest.fixture
def train(store):
    """A function: a trainer on a new run."""

    def begin(name: str | None = None, *, forked_from: RecordAddress | None = None) -> Trainer:
        return Trainer(store.create_run(name, forked_from=forked_from))

    return begin


@pytest.fixture
def damage():
    """A function: flips one bit in the middle of an object, behind the store's back."""

    def flip(store: Store, name) -> None:
        data = bytearray(store.storage.read(name))
        data[len(data) // 2] ^= 1
        store.storage.delete([name])
        store.storage.create(name, bytes(data))

    return flip
