"""Reading and creating small sealed objects: what is damaged is collected, what is one's own is recognised.

"Exists" on create is not yet an answer: the object may be one's own, after an
answer that was lost on the way. So it is read back and compared, and every
small object carries a nonce of its attempt.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from holdfast.errors import Damaged, ObjectExists, ObjectMissing, StorageError, Unreadable
from holdfast.ids import ObjectName
from holdfast.packs.threads import in_parallel
from holdfast.seals import seal, unseal
from holdfast.storage.protocol import Storage

T = TypeVar("T", bound=msgspec.Struct)

READERS = 16
"""Small objects read at once where a read has latency."""


@runtime_checkable
class ListsFolders(Protocol):
    """A storage that can name the folders in a folder without listing what is in them."""

    def folders(self, prefix: str) -> tuple[str, ...]:
        """The folders right below ``prefix``, which is ``""`` or ends in ``/``; empty ones may be among them."""


class DamagedObject(NamedTuple):
    """A small object that could not be read, and why."""

    name: ObjectName
    error: Damaged
    """`Unreadable` where the storage cannot give it, which proves nothing."""


def create_once(storage: Storage, name: ObjectName, content: msgspec.Struct) -> None:
    """Creates a small object, durably; safe to repeat with the same content, whose nonce tells it from others'.

    Raises:
        ObjectExists: another attempt's object has the name.
        StorageError: not known to be created; repeat with the same content.
    """
    data = seal(name, content)
    try:
        storage.create(name, data)
    except ObjectExists:
        if not _is_mine(storage, name, data):
            raise


def _is_mine(storage: Storage, name: ObjectName, data: bytes) -> bool:
    try:
        return storage.read(name) == data
    except ObjectMissing:
        return False


def folders_with(storage: Storage, prefix: str, leaf: str) -> list[str]:
    """The folders right below ``prefix`` in which an object named ``leaf`` lies, sorted."""
    if isinstance(storage, ListsFolders):
        return [folder for folder in storage.folders(prefix) if exists(storage, ObjectName(f"{prefix}{folder}/{leaf}"))]
    inner = (listed.name.removeprefix(prefix).partition("/") for listed in storage.list(prefix))
    return [folder for folder, _, rest in inner if rest == leaf]


def exists(storage: Storage, name: ObjectName) -> bool:
    """Whether there is an object of this name."""
    try:
        storage.size(name)
    except ObjectMissing:
        return False
    return True


def folders(storage: Storage, prefix: str) -> list[str]:
    """The names of the folders right below ``prefix``, sorted; empty ones may be among them."""
    if isinstance(storage, ListsFolders):
        return list(storage.folders(prefix))
    parts = (listed.name.removeprefix(prefix).partition("/") for listed in storage.list(prefix))
    return sorted({folder for folder, slash, _ in parts if slash})


def load(storage: Storage, name: ObjectName, type_: type[T]) -> T:
    """One small object, checked.

    Raises:
        ObjectMissing: no such object.
        Damaged: its seal, format or fields are wrong, or it cannot be read.
    """
    return unseal(name, read_bytes(storage, name), type_)


def read_bytes(storage: Storage, name: ObjectName) -> bytes:
    """All bytes of an object, where one unreadable sector must not end everything.

    Raises:
        ObjectMissing: no such object.
        Unreadable: the storage answers EIO for this one.
        StorageError: anything else, which concerns more than one object.
    """
    with unreadable(name):
        return storage.read(name)


@contextmanager
def unreadable(name: ObjectName) -> Iterator[None]:
    """Within it, EIO for an object is `Unreadable`."""
    try:
        yield
    except StorageError as error:
        if error.errno != errno.EIO:
            raise
        raise Unreadable(f"{error}; nothing is known of {name} until it can be read") from error


def load_each(
    storage: Storage, names: Iterable[ObjectName], type_: type[T] | tuple[type[T], ...]
) -> tuple[list[T], list[DamagedObject]]:
    """Those of ``names`` that could be read, in order, and those that are damaged; vanished ones are left out."""
    found, damaged = load_named(storage, names, type_)
    return list(found.values()), damaged


def load_named(
    storage: Storage, names: Iterable[ObjectName], type_: type[T] | tuple[type[T], ...]
) -> tuple[dict[ObjectName, T], list[DamagedObject]]:
    """As `load_each`, by name."""
    wanted = list(names)
    found: dict[ObjectName, T] = {}
    damaged: list[DamagedObject] = []
    for name, data in zip(wanted, _read_each(storage, wanted), strict=True):
        if isinstance(data, Unreadable):
            damaged.append(DamagedObject(name, data))
        if not isinstance(data, bytes):
            continue
        try:
            found[name] = unseal(name, data, type_)
        except Damaged as error:
            damaged.append(DamagedObject(name, error))
    return found, damaged


def _read_each(storage: Storage, names: list[ObjectName]) -> list[bytes | Unreadable | None]:
    if len(names) < 3:
        return _read_some(storage, names)
    # One stripe per thread: a task per object would cost more than a local read.
    stripe = -(-len(names) // READERS)
    stripes = [names[at : at + stripe] for at in range(0, len(names), stripe)]
    return [data for part in in_parallel(lambda names: _read_some(storage, names), stripes) for data in part]


def _read_some(storage: Storage, names: list[ObjectName]) -> list[bytes | Unreadable | None]:
    return [_read_or_none(storage, name) for name in names]


def _read_or_none(storage: Storage, name: ObjectName) -> bytes | Unreadable | None:
    try:
        return read_bytes(storage, name)
    except ObjectMissing:
        return None
    except Unreadable as error:
        return error
