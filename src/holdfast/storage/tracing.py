"""A storage that remembers what was asked of it: for tests of order, and for counting requests."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from holdfast.errors import HoldfastError
from holdfast.ids import Buffer, ObjectName
from holdfast.storage.passing import PassingSink, PassingSource
from holdfast.storage.protocol import Listed, Sink, Source, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call that has ended."""

    verb: str
    """create, read, size, list, delete, sink, write, commit, abort, source, read_into, sweep_unfinished,
    unfinished."""
    name: str
    """The object, or the prefix of a listing; empty for a sweep. A deletion of three objects is three operations."""
    size: int = 0
    """Bytes of data handed in or out, where there are any."""
    failed: str | None = None
    """The kind of the error, or None."""


class TracingStorage:
    """A `Storage` that passes everything to ``inner`` and notes it in ``operations``. Thread-safe.

    Example:
        >>> from holdfast.ids import ObjectName
        >>> from holdfast.storage.memory import memory_storage
        >>> storage = TracingStorage(memory_storage())
        >>> storage.create(ObjectName("a"), b"abc")
        >>> [(o.verb, o.name, o.size) for o in storage.operations]
        [('create', 'a', 3)]
    """

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._operations: list[Operation] = []

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What has ended so far, in the order in which it ended."""
        return tuple(self._operations)

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return self._inner.url

    def clear(self) -> None:
        """Forget what was noted."""
        self._operations.clear()

    def create(self, name: ObjectName, data: Buffer) -> None:
        """See `Storage.create`."""
        with self.noted("create", name, memoryview(data).nbytes):
            self._inner.create(name, data)

    def read(self, name: ObjectName) -> bytes:
        """See `Storage.read`."""
        with self.noted("read", name):
            return self._inner.read(name)

    def size(self, name: ObjectName) -> int:
        """See `Storage.size`."""
        with self.noted("size", name):
            return self._inner.size(name)

    def list(self, prefix: str) -> Iterator[Listed]:
        """See `Storage.list`."""
        with self.noted("list", prefix):
            return self._inner.list(prefix)

    def delete(self, names: Iterable[ObjectName]) -> None:
        """See `Storage.delete`; one operation is noted for each name."""
        for name in names:
            with self.noted("delete", name):
                self._inner.delete([name])

    def sink(self, name: ObjectName, reserve: int) -> Sink:
        """See `Storage.sink`."""
        with self.noted("sink", name, reserve):
            return _TracingSink(self, name, self._inner.sink(name, reserve))

    def source(self, name: ObjectName) -> Source:
        """See `Storage.source`."""
        with self.noted("source", name):
            return _TracingSource(self, name, self._inner.source(name))

    def sweep_unfinished(self) -> int:
        """See `Storage.sweep_unfinished`."""
        with self.noted("sweep_unfinished", ""):
            return self._inner.sweep_unfinished()

    def unfinished(self) -> int:
        """See `Storage.unfinished`."""
        with self.noted("unfinished", ""):
            return self._inner.unfinished()

    @contextmanager
    def noted(self, verb: str, name: str, size: int = 0) -> Iterator[None]:
        """Note one operation, failed or not, when the block ends."""
        failed = None
        try:
            yield
        except HoldfastError as error:
            failed = error.kind
            raise
        finally:
            with self._lock:
                self._operations.append(Operation(verb=verb, name=str(name), size=size, failed=failed))


class _TracingSink(PassingSink):
    def __init__(self, trace: TracingStorage, name: ObjectName, inner: Sink) -> None:
        super().__init__(inner)
        self._trace, self._name = trace, name

    def write(self, offset: int, data: Buffer) -> None:
        with self._trace.noted("write", self._name, memoryview(data).nbytes):
            self._inner.write(offset, data)

    def commit(self, length: int) -> None:
        with self._trace.noted("commit", self._name, length):
            self._inner.commit(length)

    def abort(self) -> None:
        with self._trace.noted("abort", self._name):
            self._inner.abort()


class _TracingSource(PassingSource):
    def __init__(self, trace: TracingStorage, name: ObjectName, inner: Source) -> None:
        super().__init__(inner)
        self._trace, self._name = trace, name

    def read_into(self, offset: int, into: memoryview) -> None:
        with self._trace.noted("read_into", self._name, into.nbytes):
            self._inner.read_into(offset, into)
