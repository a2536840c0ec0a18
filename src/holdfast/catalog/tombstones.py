"""What sweeps have announced to delete.

Whoever wants to rely on an object first announces that (a hold), and then
looks here; a sweep first announces (its tombstones), and then looks for holds.
Whoever comes second sees the first.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.catalog import layout
from holdfast.catalog.objects import DamagedObject, load, load_each
from holdfast.catalog.owners import Liveness
from holdfast.errors import BeingDeleted, Corrupt, Damaged, Missing, ObjectMissing
from holdfast.ids import ObjectName, RecordAddress
from holdfast.records import Sweep
from holdfast.seals import unseal

if TYPE_CHECKING:
    from holdfast.catalog.store import Store


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstones:
    """The announcements of all sweeps that may still delete something."""

    sweeps: tuple[Sweep, ...]
    damaged: tuple[DamagedObject, ...]
    """Announcements that cannot be read."""

    @property
    def names(self) -> frozenset[str]:
        """Everything that is announced."""
        return frozenset(name for sweep in self.sweeps for name in sweep.objects)

    def check_record(self, address: RecordAddress) -> None:
        """Refuses a record that a sweep has announced, or may have announced where that cannot be read.

        Raises:
            BeingDeleted: a sweep is at it, or is stopped while at it.
        """
        for broken in self.damaged:
            raise BeingDeleted(
                f"{broken.name} is damaged, and may say that {address} is about to be deleted; "
                "'holdfast gc' removes it, if that sweep has ended"
            )
        for sweep in self.sweeps:
            if address.name in sweep.objects:
                who = f"process {sweep.owner.pid} on {sweep.owner.host.partition('/')[0]}"
                raise BeingDeleted(
                    f"{address} is about to be deleted by sweep {sweep.id} ({who}); choose another record"
                )


def read_tombstones(store: Store) -> Tombstones:
    """All announcements as of now; those of sweepers that are provably dead mean nothing any more."""
    names = [listed.name for listed in store.storage.list(layout.SWEEPS)]
    sweeps, damaged = load_each(store.storage, names, Sweep)
    at_work = tuple(sweep for sweep in sweeps if store.liveness(sweep.owner) is not Liveness.DEAD)
    return Tombstones(sweeps=at_work, damaged=tuple(damaged))


def clear_damaged(store: Store) -> None:
    """Removes announcements that cannot be read, so that they do not stand in everybody's way for ever.

    Nobody can tell whose they are, and one may be at work still: `check_announced` ends it before it deletes
    anything. Only what is damaged in the same way twice is removed, not what was read wrongly once.
    """
    names = [listed.name for listed in store.storage.list(layout.SWEEPS)]
    for broken in load_each(store.storage, names, Sweep)[1]:
        if isinstance(broken.error, Corrupt) and _is_stable(store, broken.name):
            _log.warning("a damaged announcement of a sweep is removed: %s", broken.error)
            store.storage.delete([broken.name])


def _is_stable(store: Store, name: ObjectName) -> bool:
    try:
        first, second = store.storage.read(name), store.storage.read(name)
        unseal(name, second, Sweep)
    except ObjectMissing:
        return False
    except Damaged:
        return first == second
    return False


def check_announced(store: Store, sweep: str) -> None:
    """Refuses to go on with a sweep whose own announcement nobody can read any more.

    Raises:
        Damaged: it is gone or damaged, so others may rely on what it listed; nothing may be deleted.
    """
    name = layout.sweep(sweep)
    try:
        load(store.storage, name, Sweep)
    except ObjectMissing:
        raise Missing(
            f"{name}, the announcement of this very sweep, is gone; nothing was deleted, sweep again"
        ) from None


def await_clear(store: Store, names: frozenset[ObjectName], *, seconds: float) -> bool:
    """Whether, within ``seconds``, no sweep announces any of ``names`` any more."""
    return store.waiter.until(lambda: not names & read_tombstones(store).names, seconds=seconds)
