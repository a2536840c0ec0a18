"""Storage in this process's memory, on obstore's memory store: for tests, trials and as the model of object stores."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from obstore.exceptions import AlreadyExistsError
from obstore.store import MemoryStore

from holdfast.errors import Corrupt, InvalidInput, InvalidName, ObjectExists, ObjectMissing
from holdfast.ids import Buffer, ObjectName
from holdfast.storage.protocol import Listed, Sink, Source, Storage


def memory_storage() -> Storage:
    """A new, empty storage that lives as long as the object."""
    return MemoryStorage(MemoryStore())


class MemoryStorage:
    """A `Storage` over an obstore memory store. "Durable" means: as long as this process."""

    def __init__(self, store: MemoryStore) -> None:
        self._store: Any = store

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return "memory://"

    def create(self, name: ObjectName, data: Buffer) -> None:
        """See `Storage.create`: one conditional put."""
        try:
            self._store.put(ObjectName(name), bytes(data), mode="create")
        except AlreadyExistsError:
            raise ObjectExists(f"{name} exists already; read it back to see whose it is") from None

    def read(self, name: ObjectName) -> bytes:
        """See `Storage.read`."""
        return bytes(self._get(name).bytes())

    def size(self, name: ObjectName) -> int:
        """See `Storage.size`."""
        size: int = self._get(name).meta["size"]
        return size

    def list(self, prefix: str) -> Iterator[Listed]:
        """See `Storage.list`."""
        if prefix and not prefix.endswith("/"):
            raise InvalidName(f"not a folder to list: {prefix[:120]!r}; use '' or names that end in '/'")
        folder = ObjectName(prefix[:-1]) if prefix else None
        found = (item for batch in self._store.list(folder) for item in batch)
        return iter(sorted(Listed(ObjectName(item["path"]), item["size"]) for item in found))

    def delete(self, names: Iterable[ObjectName]) -> None:
        """See `Storage.delete`."""
        self._store.delete([ObjectName(name) for name in names])

    def sink(self, name: ObjectName, reserve: int) -> Sink:
        """See `Storage.sink`: collected in memory, put on `commit`."""
        return _MemorySink(self, ObjectName(name))

    def source(self, name: ObjectName) -> Source:
        """See `Storage.source`."""
        return _MemorySource(name, self.read(name))

    def sweep_unfinished(self) -> int:
        """See `Storage.sweep_unfinished`: there is never anything."""
        return 0

    def unfinished(self) -> int:
        """See `Storage.unfinished`."""
        return 0

    def _get(self, name: ObjectName) -> Any:
        try:
            return self._store.get(ObjectName(name))
        except FileNotFoundError:
            raise ObjectMissing(f"no object {name} in {self.url}") from None


class _MemorySink:
    alignment = 1

    def __init__(self, storage: MemoryStorage, name: ObjectName) -> None:
        self._storage = storage
        self._name = name
        self._lock = threading.Lock()
        self._data: bytearray | None = bytearray()

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        with self._lock:
            buffer = self._open()
            buffer.extend(bytes(max(0, offset + len(view) - len(buffer))))
            buffer[offset : offset + len(view)] = view

    def commit(self, length: int) -> None:
        with self._lock:
            buffer = self._open()
            if length > len(buffer):
                raise InvalidInput(f"{self._name} cannot be {length} bytes long: only {len(buffer)} were written")
            self._data = None
        self._storage.create(self._name, bytes(buffer[:length]))

    def abort(self) -> None:
        with self._lock:
            self._data = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.abort()

    def _open(self) -> bytearray:
        if self._data is None:
            raise InvalidInput(f"{self._name} was committed or aborted before")
        return self._data


class _MemorySource:
    alignment = 1

    def __init__(self, name: ObjectName, data: bytes) -> None:
        self._name = name
        self._data: memoryview | None = memoryview(data)
        self.size = len(data)

    def at_hand(self, offset: int, length: int) -> bool:
        return True

    def read_into(self, offset: int, into: memoryview) -> None:
        if self._data is None:
            raise InvalidInput(f"{self._name} is closed already; open it again")
        view = into.cast("B")
        part = self._data[offset : offset + len(view)]
        if len(part) < len(view):
            raise Corrupt(f"{self._name} ends {len(view) - len(part)} bytes too early; it was cut after it was written")
        view[:] = part

    def close(self) -> None:
        self._data = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
