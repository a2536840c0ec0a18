"""The small sealed objects of a store, one class each; docs/format.md lists their fields.

All are frozen, keyword-only and compared by value. Times are UTC in ISO 8601
with a ``Z`` and are for people: nothing is ever ordered or decided by them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from holdfast.errors import InvalidName
from holdfast.ids import Digest, ObjectName, Order, RecordAddress, RecordId, RunNumber


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all small objects share; ``kw_only`` is not inherited, so each class says it itself."""

    @property
    def home(self) -> str | None:
        """The object name that follows from the content; None: it is not told by the content alone."""
        return None


class Kind(StrEnum):
    """Why a checkpoint was made."""

    REGULAR = "regular"
    BEST = "best"
    PREEMPTED = "preempted"
    FAILED = "failed"
    MANUAL = "manual"
    FINAL = "final"
    REDUCED = "reduced"
    IMPORTED = "imported"


class MarkKind(StrEnum):
    """A fact about a record that came after it."""

    GOOD = "good"
    VERIFIED = "verified"
    PINNED = "pinned"
    UNPINNED = "unpinned"
    QUARANTINED = "quarantined"
    NOTE = "note"
    METRIC = "metric"
    FINAL = "final"


class Owner(_Sealed, frozen=True, kw_only=True):
    """The process behind a launch, a hold or a sweep; enough to tell whether it is still there."""

    host: str
    boot: str
    """The kernel's boot id: another one means that the host has rebooted, or is another of the same name."""
    pid: int
    started: str
    """Start time of the process in kernel ticks, so that a recycled pid is not taken for it."""


class Target(_Sealed, frozen=True, kw_only=True):
    """A record as other objects name it."""

    run: int
    launch: int
    timeline: int
    step: int
    id: str

    def __post_init__(self) -> None:
        _check_address(self.address)

    @classmethod
    def of(cls, address: RecordAddress) -> Target:
        """From an address."""
        return cls(run=int(address.run), id=str(address.id), **address.order._asdict())

    def fields(self) -> dict[str, Any]:
        """Its fields by name, as records, holds and given-up saves have them too."""
        return {"run": self.run, "launch": self.launch, "timeline": self.timeline, "step": self.step, "id": self.id}

    @property
    def address(self) -> RecordAddress:
        """As an address."""
        order = Order(self.launch, self.timeline, self.step)
        return RecordAddress(RunNumber(self.run), order, RecordId(self.id))


class StoreInfo(_Sealed, frozen=True, kw_only=True):
    """``holdfast.json``: what makes a folder a store."""

    id: str
    created: str


class RunInfo(_Sealed, frozen=True, kw_only=True):
    """``catalog/runs/<number>/run.json``: its creation claims the number."""

    number: int
    name: str | None
    created: str
    forked_from: Target | None = None
    job: str | None = None
    """The launcher's job token that created the run."""
    config: dict[str, Any] = {}
    config_digest: str | None = None
    attempt: str
    """Nonce of the creator, so that it knows its own object after a lost answer."""

    @property
    def home(self) -> str:
        """See `_Sealed.home`."""
        return f"catalog/runs/{RunNumber(self.number).folder}/run.json"


class LaunchInfo(_Sealed, frozen=True, kw_only=True):
    """``launches/<number>.json``: one start of the job; its creation fences every older one."""

    run: int
    number: int
    created: str
    owner: Owner
    job: str | None = None
    command: list[str] = []
    policies: dict[str, str] = {}
    """The save and keep policies as text, so that other processes can explain them."""
    environment: dict[str, str] = {}
    config: dict[str, Any] = {}
    config_digest: str | None = None
    attempt: str

    @property
    def home(self) -> str:
        """See `_Sealed.home`."""
        return f"catalog/runs/{RunNumber(self.run).folder}/launches/{self.number:06d}.json"


class StartInfo(_Sealed, frozen=True, kw_only=True):
    """``launches/<number>.<timeline>.json``: a completed restore (or a fresh start) within a launch.

    The head of a run hangs on these as well as on records, so lineage does not wait for the first save.
    """

    run: int
    launch: int
    timeline: int
    created: str
    resumed_from: Target | None
    """None: started from zero."""
    why: str
    attempt: str

    @property
    def home(self) -> str:
        """See `_Sealed.home`."""
        return f"catalog/runs/{RunNumber(self.run).folder}/launches/{self.launch:06d}.{self.timeline:03d}.json"


class Hold(_Sealed, frozen=True, kw_only=True):
    """``holds/<id>.json``: a save in flight (``publishes`` set) or a reader at work (``publishes`` None)."""

    run: int
    created: str
    owner: Owner
    publishes: Target | None
    reads: list[Target] = []
    """Records whose segments may be reused (a save) or are being read (a reader)."""
    reads_shared: bool = False
    """Whether any pack of ``data/shared`` may be reused."""
    attempt: str


class Aborted(_Sealed, frozen=True, kw_only=True):
    """Lies under a record's name: that save was given up by somebody who won the race for the name."""

    run: int
    launch: int
    timeline: int
    step: int
    id: str
    created: str
    by: Owner
    saver: Owner | None
    reason: str
    attempt: str

    def __post_init__(self) -> None:
        _check_address(self.address)

    @property
    def address(self) -> RecordAddress:
        """The record name that is taken."""
        order = Order(self.launch, self.timeline, self.step)
        return RecordAddress(RunNumber(self.run), order, RecordId(self.id))

    @property
    def name(self) -> ObjectName:
        """Its object name, the one of the record that will not be."""
        return self.address.name

    @property
    def home(self) -> str:
        """See `_Sealed.home`."""
        return self.name


class Exactness(_Sealed, frozen=True, kw_only=True):
    """Whether one side of the state resumes bit for bit, and if not, why."""

    exact: bool
    reason: str


class Sizes(_Sealed, frozen=True, kw_only=True):
    """Bytes of one save: of the state, not seen before, and as stored after the codec."""

    logical: int
    new: int
    stored: int


class Timing(_Sealed, frozen=True, kw_only=True):
    """Seconds of one save, by the monotonic clock."""

    stall: float
    staging: float
    hashing: float
    writing: float
    durable: float = 0.0
    """From the call to the moment before the record was published."""


class Record(_Sealed, frozen=True, kw_only=True):
    """The commit point: a checkpoint exists if and only if its record does."""

    id: str
    run: int
    launch: int
    timeline: int
    step: int
    """Completed optimizer steps."""
    epoch: int | None = None
    parent: Target | None
    created: str
    kind: Kind
    reason: str
    """Which policy or call asked for it."""
    metrics: dict[str, Any] = {}
    manifest: str
    """Digest of the manifest head, 64 hexadecimal digits."""
    packs: list[str] = []
    """Packs that held the segments when this was written: a hint, never trusted."""
    tensors: int
    bytes: Sizes
    world: int = 1
    exactness: dict[str, Exactness] = {}
    anomalies: list[str] = []
    """What looked wrong at the save: bit-identical to the parent, NaN inside, keys lost."""
    fingerprinted: list[tuple[int, int]] = []
    """Frozen tensors of which this save has not seen all bytes, for a fingerprint said that they are as stored before:
    first and last positions in the skeleton."""
    timing: Timing
    codec: str
    survives: str = "nothing"
    environment: dict[str, str] = {}
    config_digest: str | None = None
    owner: Owner
    attempt: str

    def __post_init__(self) -> None:
        _check_address(self.address)
        Digest.parse(self.manifest)
        for name in self.packs:
            ObjectName(name)

    @property
    def address(self) -> RecordAddress:
        """Where it lies."""
        order = Order(self.launch, self.timeline, self.step)
        return RecordAddress(RunNumber(self.run), order, RecordId(self.id))

    @property
    def manifest_digest(self) -> Digest:
        """The manifest's digest."""
        return Digest.parse(self.manifest)

    @property
    def has_nan(self) -> bool:
        """Whether a NaN was found inside when it was saved."""
        return any("NaN" in text for text in self.anomalies)

    @property
    def name(self) -> ObjectName:
        """Its object name."""
        return self.address.name

    @property
    def home(self) -> str:
        """See `_Sealed.home`."""
        return self.name


class Mark(_Sealed, frozen=True, kw_only=True):
    """``marks/<record>/<kind>-<nonce>.json``: append-only facts about a record."""

    kind: MarkKind
    target: Target
    created: str
    by: str
    data: dict[str, Any] = {}
    attempt: str


class Tag(_Sealed, frozen=True, kw_only=True):
    """``catalog/tags/<name>.json``: a name that does not move."""

    tag: str
    target: Target
    created: str
    note: str = ""
    attempt: str


class Event(_Sealed, frozen=True, kw_only=True):
    """One line of a journal."""

    time: str
    kind: str
    message: str
    data: dict[str, Any] = {}


class Batch(_Sealed, frozen=True, kw_only=True):
    """``journal/<writer>/<n>.json``: what happened, in order, by one writer."""

    run: int
    writer: str
    number: int
    events: list[Event]


class Sweep(_Sealed, frozen=True, kw_only=True):
    """``catalog/sweeps/<id>.json``: tombstones of one sweeper for the objects that it means to delete."""

    id: str
    created: str
    owner: Owner
    objects: list[str]


def _check_address(address: RecordAddress) -> None:
    """What the types of an address leave open.

    Raises:
        InvalidName: a place that no record can have.
    """
    if min(address.order) < 0:
        raise InvalidName(f"launch, timeline and step of a record count from 0, not {address.order}")
