"""The storage seam: bytes by name, the smallest set of verbs that checkpoints need.

Why each verb exists:

- `create`: commit points, holds, launches and tags are races for a name; all of them rest on this one verb.
- `read`, `size`: small objects are read whole; a pack's length is checked right before a record names it.
- `list`: discovery. There is no "latest" pointer and no head file that could be wrong.
- `delete`: retention. Ordered, because a record must be gone for good before its packs go.
- `sink`, `source`: packs are large, written and read at offsets by several threads, with direct I/O where it helps.

There is no overwrite, no rename and no append: nothing in a store ever changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable

from holdfast.ids import Buffer, ObjectName


class Listed(NamedTuple):
    """One object of a listing."""

    name: ObjectName
    size: int


class Sink(Protocol):
    """A large object being written: visible under its name only after `commit`, and then whole and durable."""

    @property
    def alignment(self) -> int:
        """Offsets, lengths and addresses that are multiples of this avoid a copy; 1 where it makes no difference."""

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of ``data`` at ``offset``; thread-safe for ranges that do not overlap; any alignment is allowed.

        Raises:
            StorageError: nothing of this object will become visible.
        """

    def commit(self, length: int) -> None:
        """Make the first ``length`` bytes visible: atomic, durable, create-if-absent.

        Raises:
            ObjectExists: there is an object of this name; it is untouched.
            StorageError: not committed.
        """

    def abort(self) -> None:
        """Give up and remove what was written; does nothing after `commit`; never raises StorageError."""

    def __enter__(self) -> Self: ...

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """`abort`, unless committed."""


class Source(Protocol):
    """A large object being read."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def alignment(self) -> int:
        """As `Sink.alignment`."""

    def at_hand(self, offset: int, length: int) -> bool:
        """Whether a range comes out of memory right now, so that it can be read to any place without a copy more."""

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``; thread-safe; any alignment is allowed.

        Raises:
            Corrupt: the object ends before ``into`` is full.
            StorageError: it cannot be read.
        """

    def close(self) -> None:
        """Release the handle; idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None: ...


@runtime_checkable
class Storage(Protocol):
    """Objects by name. Thread-safe. Names are validated by `ObjectName` on the way in and out."""

    @property
    def url(self) -> str:
        """Where it is, for messages."""

    def create(self, name: ObjectName, data: Buffer) -> None:
        """Create a small object: atomic, durable when it returns, exactly one winner per name.

        Raises:
            ObjectExists: there is an object of this name; it is untouched. Read it back: it may be one's own,
                after a lost answer.
            StorageError: not created, as far as is known; nothing torn is left under the name.
        """

    def read(self, name: ObjectName) -> bytes:
        """All bytes of an object.

        Raises:
            ObjectMissing: no such object.
        """

    def size(self, name: ObjectName) -> int:
        """Length in bytes.

        Raises:
            ObjectMissing: no such object.
        """

    def list(self, prefix: str) -> Iterator[Listed]:
        """All objects below ``prefix`` (``""`` or a folder ending in ``/``), recursively, sorted by name.

        Objects created before the call are listed; unfinished ones never are.
        """

    def delete(self, names: Iterable[ObjectName]) -> None:
        """Delete objects; missing ones are no error; all deletions are durable when it returns."""

    def sink(self, name: ObjectName, reserve: int) -> Sink:
        """Begin a large object; ``reserve`` bytes are set aside first where the storage can.

        Raises:
            StorageFull: ``reserve`` bytes are not there; nothing is left behind.
        """

    def source(self, name: ObjectName) -> Source:
        """Open a large object for reading.

        Raises:
            ObjectMissing: no such object.
        """

    def sweep_unfinished(self) -> int:
        """Remove what dead writers left behind before `create` or `commit`; returns the bytes freed.

        Never touches what a living writer is writing.
        """

    def unfinished(self) -> int:
        """The bytes that `sweep_unfinished` would free now; nothing is changed."""
