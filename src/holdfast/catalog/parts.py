"""What each rank contributes to a checkpoint, on its way to whoever commits it.

The parts of one attempt lie in a folder of their own, whose name has launch,
timeline, step and the nonce of the attempt: what is left of another attempt is
never met. Long texts that most ranks have in common, the structure and the
values, lie beside the parts under their digests, once. Nothing of this is part
of a checkpoint: the folder goes when the record is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from holdfast.catalog import layout
from holdfast.catalog.objects import read_bytes
from holdfast.errors import Corrupt, ObjectExists
from holdfast.ids import Digest, ObjectName, RecordAddress, RunNumber, nonce
from holdfast.storage.protocol import Storage

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

MAGIC = b"holdfast part 1\n"


class Prints(msgspec.Struct, frozen=True, array_like=True):
    """Fingerprints of tensors that several ranks hold, as one of them has them."""

    ranks: tuple[int, ...]
    """Who holds them."""
    places: bytes
    """Positions in the skeleton, 4 bytes each, little-endian."""
    prints: bytes
    """16 bytes each."""


class Part(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What one rank has written of a checkpoint, and what it knows of it."""

    rank: int
    world: int
    tensors: bytes
    """Digest of the skeleton without boxes, which lies beside."""
    values: bytes
    """Digest of the values, which lie beside."""
    counts: bytes
    """Per tensor, how many boxes, 2 bytes each, little-endian."""
    boxes: bytes
    """Box after box: its offsets, then its sizes, 8 bytes each, little-endian."""
    digests: bytes
    """32 bytes a segment, in the order of the skeleton."""
    inline: bytes
    own: bytes
    """Tagged JSON of what belongs to this rank alone."""
    packs: list[tuple[str, int]] = []
    """With their lengths."""
    prints: list[Prints] = []
    anomalies: list[str] = []
    fingerprinted: list[tuple[int, int]] = []
    """As in a record, in the positions of this skeleton."""
    sizes: tuple[int, int, int] = (0, 0, 0)
    """Logical, new and stored bytes."""
    seconds: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Stall, staging, hashing, writing: as in a record."""


class Parts:
    """The folder of one attempt. Thread-safe.

    Args:
        storage: where it is.
        address: the record that is to be.
        attempt: its nonce, which all ranks know.
    """

    def __init__(self, storage: Storage, address: RecordAddress, attempt: str) -> None:
        self._storage = storage
        self.folder = f"{layout.parts_folder(address.run)}{address.order}-{address.id}-{attempt}/"

    def put(self, part: Part, documents: Iterable[bytes]) -> None:
        """Adds a part, after what it refers to; one that is there already is as good."""
        for document in documents:
            with suppress(ObjectExists):
                self._storage.create(self._document(Digest.of(document)), document)
        body = msgspec.msgpack.encode(part)
        name = ObjectName(f"{self.folder}{part.rank:06d}-{nonce()}.part")
        with suppress(ObjectExists):  # after an answer that was lost: nobody else knows the nonce
            self._storage.create(name, MAGIC + bytes(Digest.of(body)) + body)

    def names(self) -> dict[int, ObjectName]:
        """The parts that are there, by rank."""
        listed = (one.name for one in self._storage.list(self.folder))
        return {int(name.leaf[:6]): name for name in listed if name.endswith(".part")}

    def read(self, name: ObjectName) -> Part:
        """One part.

        Raises:
            Damaged: it is not what was written.
        """
        data, start = read_bytes(self._storage, name), len(MAGIC) + 32
        if data[: len(MAGIC)] != MAGIC or Digest.of(data[start:]) != data[len(MAGIC) : start]:
            raise Corrupt(f"{name} is not the part that a rank has written")
        try:
            return msgspec.msgpack.decode(data[start:], type=Part)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"{name} is malformed: {error}") from error

    def document(self, digest: bytes) -> bytes:
        """What a part refers to.

        Raises:
            Damaged: it is not what was written.
        """
        name = self._document(Digest(digest))
        data = read_bytes(self._storage, name)
        if Digest.of(data) != digest:
            raise Corrupt(f"{name} does not match its digest")
        return data

    def give_up(self, rank: int, text: str) -> None:
        """Says that a rank cannot contribute; of rank 0, that nobody commits."""
        with suppress(ObjectExists):
            self._storage.create(ObjectName(f"{self.folder}{rank:06d}.failed"), text.encode(errors="replace")[:8000])

    def failures(self) -> dict[int, str]:
        """What ranks have given up, and why."""
        names = [one.name for one in self._storage.list(self.folder) if one.name.endswith(".failed")]
        return {int(name.leaf[:6]): read_bytes(self._storage, name).decode(errors="replace") for name in names}

    def remove(self) -> None:
        """Removes the folder with everything in it."""
        self._storage.delete([one.name for one in self._storage.list(self.folder)])

    def _document(self, digest: Digest) -> ObjectName:
        return ObjectName(f"{self.folder}{digest}.text")


def remove_stale(store: Store, run: RunNumber, launch: int) -> None:
    """Removes the parts of launches before this one: their saves are over."""
    folder = layout.parts_folder(run)
    old = [one.name for one in store.storage.list(folder) if _launch(one.name.removeprefix(folder)) < launch]
    store.storage.delete(old)


def _launch(name: str) -> int:
    number = name.partition(".")[0]
    return int(number) if number.isdecimal() else 0
