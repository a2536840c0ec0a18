"""Reading without losing the ground: a reader's hold keeps a record, its manifest and its packs from being swept."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.catalog import layout
from holdfast.catalog.objects import create_once
from holdfast.catalog.tombstones import read_tombstones
from holdfast.clock import utc_now
from holdfast.errors import Missing, ObjectMissing, StorageError, StorageReadOnly
from holdfast.ids import ObjectName, RecordAddress, RunNumber, nonce
from holdfast.records import Hold, Target

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

_log = logging.getLogger(__name__)


@contextmanager
def reading(store: Store, targets: Iterable[RecordAddress]) -> Iterator[None]:
    """While in this context, no sweep deletes ``targets`` or anything that they need.

    Use it around a load, and around the creation of anything that names a record (a tag, a pin, a fork).
    A store that cannot be written is read without holds: nobody sweeps it, as far as this process can see.

    Raises:
        BeingDeleted: a sweep announced one of them before.
        Missing: one of them is not there.
        StorageError: the hold could not be made, and not because the store is read-only.
    """
    wanted = list(targets)
    holds = _holds(store, wanted)
    try:
        _create(store, holds)
        check_present(store, wanted)
        yield
    finally:
        _drop(store, list(holds))  # also those whose creation was not answered


def check_present(store: Store, targets: Iterable[RecordAddress]) -> None:
    """Refuses records that are gone or announced for deletion; call it after announcing one's interest.

    Raises:
        BeingDeleted: a sweep announced one of them.
        Missing: one of them is not there.
    """
    wanted = list(targets)
    if not wanted:
        return
    tombstones = read_tombstones(store)
    for address in wanted:
        tombstones.check_record(address)
        try:
            store.storage.size(address.name)
        except ObjectMissing:
            raise Missing(f"{address} is not there any more; it was deleted") from None


def _holds(store: Store, targets: list[RecordAddress]) -> dict[ObjectName, Hold]:
    """One hold in each run that is read."""
    by_run = defaultdict(list)
    for address in targets:
        by_run[address.run].append(Target.of(address))
    return dict(_hold(store, run, reads) for run, reads in by_run.items())


def _hold(store: Store, run: RunNumber, reads: list[Target]) -> tuple[ObjectName, Hold]:
    attempt = nonce()
    hold = Hold(run=int(run), created=utc_now(), owner=store.owner, publishes=None, reads=reads, attempt=attempt)
    return layout.hold(run, f"reader-{attempt}"), hold


def _create(store: Store, holds: dict[ObjectName, Hold]) -> None:
    for name, hold in list(holds.items()):
        try:
            create_once(store.storage, name, hold)
        except StorageReadOnly as error:
            _log.info("%s is read without a hold, for it cannot be written: %s", store.url, error)
            del holds[name]


def _drop(store: Store, holds: list[ObjectName]) -> None:
    if not holds:
        return
    try:
        store.storage.delete(holds)
    except StorageError as error:
        # What was read is right; the hold goes when this process has ended.
        _log.warning("reader holds %s could not be removed: %s", ", ".join(holds), error)
