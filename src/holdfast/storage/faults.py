"""A storage that fails on purpose, above the operating system: the faults of a network and of rotten media.

Faults are values; each says at which operations it strikes. For kills and
errors at single file events see `holdfast.testing.faults`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from holdfast.errors import Corrupt, StorageError
from holdfast.ids import Buffer, ObjectName
from holdfast.storage.passing import PassingSink, PassingSource
from holdfast.storage.protocol import Listed, Sink, Source, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Which operations a fault strikes: the ``at``-th one that fits, and ``times - 1`` after it.

    Example:
        >>> When(verbs=frozenset({"create"}), at=2).strikes("create", "a", 2)
        True
    """

    verbs: frozenset[str] = frozenset()
    """Verbs of the storage, of sinks (write, commit) and of sources (read_into); empty for all."""
    prefix: str = ""
    """Only objects whose names begin so."""
    at: int = 1
    """Counted from 1 among the operations that fit."""
    times: int | None = 1
    """None: from then on, always."""

    def fits(self, verb: str, name: str) -> bool:
        """Whether an operation counts."""
        return (not self.verbs or verb in self.verbs) and name.startswith(self.prefix)

    def strikes(self, verb: str, name: str, count: int) -> bool:
        """Whether the ``count``-th fitting operation is struck."""
        return self.fits(verb, name) and self.at <= count and (self.times is None or count < self.at + self.times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The operation is not done; a copy of ``error`` is raised."""

    error: StorageError
    when: When = When()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseAnswer:
    """The operation is done; a copy of ``error`` is raised all the same."""

    error: StorageError
    when: When = When()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipBit:
    """Bit number ``bit`` of what is read (modulo its length) is wrong."""

    bit: int = 0
    when: When = When()


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRead:
    """What is read ends ``missing`` bytes too early."""

    missing: int = 1
    when: When = When()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListLag:
    """Objects created through this storage stay out of the next ``listings`` listings."""

    listings: int = 1


Fault = Fail | LoseAnswer | FlipBit | CutRead | ListLag


class FaultyStorage:
    """A `Storage` that passes everything to ``inner``, struck by ``faults``. Thread-safe.

    Example:
        >>> from holdfast.errors import StorageFull
        >>> from holdfast.ids import ObjectName
        >>> from holdfast.storage.memory import memory_storage
        >>> storage = FaultyStorage(memory_storage(), Fail(error=StorageFull("no space")))
        >>> storage.create(ObjectName("a"), b"abc")
        Traceback (most recent call last):
        holdfast.errors.StorageFull: no space
        >>> storage.create(ObjectName("a"), b"abc")
    """

    def __init__(self, inner: Storage, *faults: Fault) -> None:
        self._inner = inner
        self._faults = faults
        self._lock = threading.Lock()
        self._counts = [0] * len(faults)
        self._lag = max((fault.listings for fault in faults if isinstance(fault, ListLag)), default=0)
        self._hidden: dict[str, int] = {}

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return self._inner.url

    def create(self, name: ObjectName, data: Buffer) -> None:
        """See `Storage.create`."""
        with self.strike("create", name):
            self._inner.create(name, data)
            self.hide(name)

    def read(self, name: ObjectName) -> bytes:
        """See `Storage.read`."""
        with self.strike("read", name) as struck:
            data = self._inner.read(name)
            for fault in struck.faults:
                if isinstance(fault, CutRead):
                    data = data[: max(0, len(data) - fault.missing)]
            changed = bytearray(data)
            struck.flip(memoryview(changed))
            return bytes(changed)

    def size(self, name: ObjectName) -> int:
        """See `Storage.size`."""
        with self.strike("size", name):
            return self._inner.size(name)

    def list(self, prefix: str) -> Iterator[Listed]:
        """See `Storage.list`."""
        with self.strike("list", prefix):
            hidden = self._take_hidden(prefix)
            return iter([item for item in self._inner.list(prefix) if item.name not in hidden])

    def delete(self, names: Iterable[ObjectName]) -> None:
        """See `Storage.delete`; each name is one operation."""
        for name in names:
            with self.strike("delete", name):
                self._inner.delete([name])

    def sink(self, name: ObjectName, reserve: int) -> Sink:
        """See `Storage.sink`."""
        with self.strike("sink", name):
            return _FaultySink(self, name, self._inner.sink(name, reserve))

    def source(self, name: ObjectName) -> Source:
        """See `Storage.source`."""
        with self.strike("source", name):
            return _FaultySource(self, name, self._inner.source(name))

    def sweep_unfinished(self) -> int:
        """See `Storage.sweep_unfinished`."""
        with self.strike("sweep_unfinished", ""):
            return self._inner.sweep_unfinished()

    def unfinished(self) -> int:
        """See `Storage.unfinished`."""
        with self.strike("unfinished", ""):
            return self._inner.unfinished()

    def strike(self, verb: str, name: str) -> _Struck:
        """Count one operation and say which faults strike it."""
        struck = []
        with self._lock:
            for number, fault in enumerate(self._faults):
                if isinstance(fault, ListLag) or not fault.when.fits(verb, name):
                    continue
                self._counts[number] += 1
                if fault.when.strikes(verb, name, self._counts[number]):
                    struck.append(fault)
        return _Struck(struck)

    def hide(self, name: str) -> None:
        """Let an object that was just created lag."""
        with self._lock:
            if self._lag:
                self._hidden[str(name)] = self._lag

    def _take_hidden(self, prefix: str) -> frozenset[str]:
        with self._lock:
            hidden = frozenset(name for name in self._hidden if name.startswith(prefix))
            for name in hidden:
                self._hidden[name] -= 1
                if not self._hidden[name]:
                    del self._hidden[name]
        return hidden


class _Struck:
    """The faults of one operation: raises `Fail` before it and `LoseAnswer` after it."""

    def __init__(self, faults: list[Fail | LoseAnswer | FlipBit | CutRead]) -> None:
        self.faults = faults

    def __enter__(self) -> Self:
        self._raise(Fail)
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if type_ is None:
            self._raise(LoseAnswer)

    def flip(self, data: memoryview) -> None:
        for fault in self.faults:
            if isinstance(fault, FlipBit) and len(data):
                data[(fault.bit // 8) % len(data)] ^= 1 << fault.bit % 8

    def _raise(self, kind: type[Fail] | type[LoseAnswer]) -> None:
        for fault in self.faults:
            if isinstance(fault, Fail | LoseAnswer) and isinstance(fault, kind):
                raise type(fault.error)(str(fault.error), errno=fault.error.errno)


class _FaultySink(PassingSink):
    def __init__(self, storage: FaultyStorage, name: ObjectName, inner: Sink) -> None:
        super().__init__(inner)
        self._storage, self._name = storage, name

    def write(self, offset: int, data: Buffer) -> None:
        with self._storage.strike("write", self._name):
            self._inner.write(offset, data)

    def commit(self, length: int) -> None:
        with self._storage.strike("commit", self._name):
            self._inner.commit(length)
            self._storage.hide(self._name)

    def abort(self) -> None:
        self._inner.abort()


class _FaultySource(PassingSource):
    def __init__(self, storage: FaultyStorage, name: ObjectName, inner: Source) -> None:
        super().__init__(inner)
        self._storage, self._name = storage, name

    def read_into(self, offset: int, into: memoryview) -> None:
        with self._storage.strike("read_into", self._name) as struck:
            if any(isinstance(fault, CutRead) for fault in struck.faults):
                raise Corrupt(f"{self._name} ends too early; it was cut after it was written")
            self._inner.read_into(offset, into)
            struck.flip(into.cast("B"))
