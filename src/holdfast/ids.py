"""Typed names: a digest, an object name, a run, a record and a tag cannot be mistaken for one another.

All are immutable and hashable; all except `Digest` are written as they print.

Example:
    >>> from holdfast.ids import Digest, Order, RunNumber
    >>> Digest.of(b"abc").short
    '6437b3ac3846'
    >>> str(RunNumber(3)), Order(2, 0, 500) < Order(2, 1, 100)
    ('run-003', True)
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple, Self

from blake3 import blake3

from holdfast.errors import InvalidName

Buffer = bytes | bytearray | memoryview

_OBJECT = re.compile(r"[a-z0-9][a-z0-9._+=-]*(/[a-z0-9][a-z0-9._+=-]*)*")
_RECORD_ID = re.compile(r"[0-9a-f]{16}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}")
_RESERVED = re.compile(r"run-?\d+|last|good|best|epoch|head|auto|must|never|none|[0-9a-f]{16,}", re.IGNORECASE)


class Digest(bytes):
    """BLAKE3-256 of some bytes: 32 bytes, printed as 64 hexadecimal digits."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        if len(raw) != 32:
            raise InvalidName(f"a digest has 32 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, data: Buffer) -> Self:
        """The digest of ``data``; releases the GIL on large buffers."""
        return cls(blake3(data).digest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """From 64 lowercase hexadecimal digits."""
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise InvalidName(f"not a digest: {text[:80]!r}; 64 lowercase hexadecimal digits are wanted")
        return cls(bytes.fromhex(text))

    @property
    def short(self) -> str:
        """The first twelve digits, for people."""
        return self.hex()[:12]

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"Digest({self.short})"


class ObjectName(str):
    """The name of an object in a store: relative, lowercase ASCII, ``/`` between parts.

    Raises:
        InvalidName: for anything that could leave the store or differ between filesystems.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _OBJECT.fullmatch(text):
            raise InvalidName(f"not an object name: {text[:120]!r}")
        return super().__new__(cls, text)

    def __truediv__(self, part: object) -> ObjectName:
        return ObjectName(f"{self}/{part}")

    @property
    def leaf(self) -> str:
        """What follows the last slash."""
        return self.rpartition("/")[2]


class _Label(str):
    __slots__ = ()
    what = "name"

    def __new__(cls, text: str) -> Self:
        if not isinstance(text, str) or not _LABEL.fullmatch(text) or ".." in text:
            raise InvalidName(
                f"not a {cls.what}: {str(text)[:120]!r}; use 1 to 100 letters, digits and . _ + = - (not at the start)"
            )
        if _RESERVED.fullmatch(text):
            raise InvalidName(f"{text!r} cannot be a {cls.what}: it means something in references")
        return super().__new__(cls, text)


class RunName(_Label):
    """The name a person gives a run; several runs may have one name, and a reference then means the newest."""

    __slots__ = ()
    what = "run name"


class TagName(_Label):
    """A name that points at one record and never moves."""

    __slots__ = ()
    what = "tag name"


class RunNumber(int):
    """The number of a run in its store, from 1; printed as ``run-003``."""

    __slots__ = ()

    def __new__(cls, number: int) -> Self:
        if number < 1:
            raise InvalidName(f"run numbers start at 1, not {number}")
        return super().__new__(cls, number)

    def __str__(self) -> str:
        return f"run-{int(self):03d}"

    __repr__ = __str__

    @property
    def folder(self) -> str:
        """Its folder name: ``003``."""
        return f"{int(self):03d}"


class Order(NamedTuple):
    """The place of a record in its run: launches count starts of the job, timelines the restores within one."""

    launch: int
    timeline: int
    step: int

    def __str__(self) -> str:
        return f"{self.launch:06d}.{self.timeline:03d}.{self.step:012d}"


class RecordId(str):
    """Sixteen hexadecimal digits: a pure function of (store, run, launch, timeline, step)."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _RECORD_ID.fullmatch(text):
            raise InvalidName(f"not a record id: {text[:80]!r}")
        return super().__new__(cls, text)

    @classmethod
    def derive(cls, store: str, run: RunNumber, order: Order) -> Self:
        """The id that every process computes for this save without asking anybody."""
        return cls(blake3(f"{store}/{run}/{order}".encode()).hexdigest()[:16])


class RecordAddress(NamedTuple):
    """Where a record lies: enough to name its object without listing anything."""

    run: RunNumber
    order: Order
    id: RecordId

    @property
    def name(self) -> ObjectName:
        """The object name of the record, the commit point."""
        return ObjectName(f"catalog/runs/{self.run.folder}/records/{self.order}-{self.id}.json")

    @classmethod
    def from_name(cls, name: str) -> RecordAddress:
        """The inverse of `name`.

        Raises:
            InvalidName: ``name`` is not the name of a record.
        """
        match = re.fullmatch(r"catalog/runs/(\d{3,})/records/(\d{6,})\.(\d{3,})\.(\d{12,})-([0-9a-f]{16})\.json", name)
        if not match:
            raise InvalidName(f"not the name of a record: {name[:160]!r}")
        run, launch, timeline, step, id_ = match.groups()
        return cls(RunNumber(int(run)), Order(int(launch), int(timeline), int(step)), RecordId(id_))

    def __str__(self) -> str:
        return f"{self.run}@{self.order.step} ({self.id})"


def nonce() -> str:
    """Sixteen random hexadecimal digits that tell one's own attempt from everybody else's."""
    return secrets.token_hex(8)
