"""The other ranks join the launch that rank 0 has begun; first it is found out whether they see the same store."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import msgspec

from holdfast.catalog import layout
from holdfast.catalog.objects import exists
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store, open_store
from holdfast.errors import InvalidInput, NotFound
from holdfast.ids import ObjectName
from holdfast.records import Target
from holdfast.recovery.ranks.group import Group

SEE_SECONDS = 90.0
"""How long a rank looks for what another one has just written: network filesystems keep what they know for a minute."""
NOTICEABLE = 0.2
"""Seconds after which a name that appears late is waited for in every protocol of the store."""


class Joining(msgspec.Struct, frozen=True, kw_only=True):
    """What the other ranks have to know of a launch."""

    store: str
    """Its id."""
    run: int
    launch: int
    begin: Target | None
    asked: Target | None
    forked_from: Target | None
    secret: str


def await_store(url: str | Path, joining: Joining, rank: int, seconds: float) -> Store:
    """The store of rank 0, as this rank sees it.

    Raises:
        InvalidInput: this rank sees another one, or none.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            store = open_store(url, hint=False)  # it is looked at again and again
            if store.info.id != joining.store:
                raise InvalidInput(_apart(rank, f"{store.url} is another store there"))
            if exists(store.storage, layout.launch(store.run(joining.run).number, joining.launch)):
                return store
        except NotFound as error:
            if time.monotonic() > end:
                raise InvalidInput(_apart(rank, str(error))) from error
        if time.monotonic() > end:
            raise InvalidInput(_apart(rank, f"launch {joining.launch} of run {joining.run} is not there"))
        time.sleep(0.05)


def check_shared(store: Store, run: Run, launch: int, group: Group, seconds: float) -> float:
    """How long it takes until rank 0 sees what the others write, in seconds.

    Raises:
        InvalidInput: it does not see it at all.
    """
    folder = f"{layout.parts_folder(run.number)}{launch:06d}.seen/"
    names = [ObjectName(f"{folder}{rank:06d}.seen") for rank in range(1, group.size)]

    def write() -> None:
        if group.rank:
            store.storage.create(names[group.rank - 1], b"")

    def look() -> float:
        return _seen(store, folder, names, seconds) if group.rank == 0 else 0.0

    text = "whether all ranks see the same store"
    group.agreed(write, text)
    took = group.agreed(look, text)
    if group.rank == 0:
        store.storage.delete(names)
    (longest,) = struct.unpack("d", group.gathered(struct.pack("d", took), text)[0])
    return float(longest)


def _seen(store: Store, folder: str, names: list[ObjectName], seconds: float) -> float:
    began = time.monotonic()
    while True:
        # A listing, for whoever has once asked for a name that was not there yet may be told so for a minute.
        missing = set(names) - {one.name for one in store.storage.list(folder)}
        took = time.monotonic() - began
        if not missing:
            return took
        if took > seconds:
            raise InvalidInput(_apart(int(min(missing).leaf[:6]), "rank 0 does not see what it writes"))
        time.sleep(0.02)


def _apart(rank: int, text: str) -> str:
    return (
        f"rank {rank} on {socket.gethostname()} and rank 0 do not share a store: {text}; give a folder on a filesystem "
        "that all hosts mount, or an object store"
    )
