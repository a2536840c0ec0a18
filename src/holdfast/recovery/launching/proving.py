"""Whether bytes that are not what was written are so on the disk, or only here.

A mismatch may come from a page that went bad in memory, or from a cable. So a segment is read once more, past the page
cache, before its checkpoint is passed over. What stays wrong is proof for this machine alone: a bad memory or network
card would condemn everything that it reads. So a load marks nothing for others, unless a second machine, with
another id and another boot, finds the same segment of the same pack wrong. That an input/output error was the answer,
or none in time, proves nothing at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import msgspec

from holdfast.catalog.journal.attempts import Attempts, Mismatch, mismatch_of, read_attempts
from holdfast.catalog.marks import add_mark
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.errors import Corrupt, Damaged, HoldfastError
from holdfast.ids import Digest, ObjectName, RecordAddress
from holdfast.packs.index import footer_of, open_pack
from holdfast.packs.reader import check_segment
from holdfast.records import MarkKind

logger = logging.getLogger(__name__)

LOOK_BACK = 16
"""Launches whose findings are compared."""


def repeats(store: Store, error: Damaged) -> bool | None:
    """Whether a segment is as wrong when it is read again, past the page cache.

    None: ``error`` is about no segment, or nothing could be read, which proves nothing.
    """
    if not isinstance(error, Corrupt) or error.pack is None or error.digest is None:
        return None
    name, digest = ObjectName(error.pack), Digest(error.digest)
    try:
        _forget_cached(store, name)
        return _is_wrong(store, name, digest)
    except HoldfastError:
        return None  # it cannot be read, or is gone


def proof_of(store: Store, error: Damaged) -> bytes:
    """What this rank has found wrong twice, for rank 0, which notes it."""
    assert error.pack is not None
    assert error.digest is not None
    return msgspec.json.encode(mismatch_of(error.pack, error.digest, store.owner))


def condemn(run: Run, address: RecordAddress, proof: bytes, why: str, attempts: Attempts, launch: int) -> bool:
    """Notes a proof of one machine; quarantines if another machine has noted the same. True: quarantined.

    Args:
        run: whose checkpoint it is.
        address: of the checkpoint.
        proof: what `proof_of` gave on some rank.
        why: for people.
        attempts: where it is noted.
        launch: the one that has found it.

    Raises:
        StorageError: not known to be written.
    """
    mine = msgspec.json.decode(proof, type=Mismatch)
    attempts.mismatched(mine, why)
    numbers = [number for number in run.launch_numbers() if number < launch][-LOOK_BACK:]
    known = (one for number in numbers for one in read_attempts(run.store, run.number, number).mismatches)
    if not any(_is_second(mine, one) for one in known):
        return False
    data = {"why": f"two machines read other bytes than were written: {why}", "packs": [mine.pack]}
    add_mark(run.store, address, MarkKind.QUARANTINED, by="recovery", data=data)
    logger.error("%s is quarantined: a second machine has found it damaged: %s", address, why)
    return True


def _is_second(mine: Mismatch, other: Mismatch) -> bool:
    """Whether two machines say the same. Containers do not tell on which machine they are, so they are never a second.

    See `Owner.host`: its third part is the id of the machine.
    """
    ids = [one.host.split("/")[2:] for one in (mine, other)]
    two = all(ids) and ids[0] != ids[1] and mine.boot != other.boot
    return two and (mine.pack, mine.digest) == (other.pack, other.digest)


def _is_wrong(store: Store, name: ObjectName, digest: Digest) -> bool:
    with open_pack(store.storage, name) as source:
        for entry in footer_of(source, name):
            if entry.digest == digest:
                stored = memoryview(bytearray(entry.stored))
                source.read_into(entry.offset, stored)
                try:
                    check_segment(name, entry, stored)
                except Corrupt:
                    return True
                return False
    return True


def _forget_cached(store: Store, name: ObjectName) -> None:
    """Asks the system to drop what it has in memory of a pack; of what is no file there is nothing to drop."""
    path = Path(store.storage.url) / name
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
