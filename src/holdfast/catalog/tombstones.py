"""What sweeps have announced to delete.

Whoever wants to rely on an object first announces that (a hold), and then
looks here; a sweep first announces (its tombstones), and then looks for holds.
Whoever comes second sees the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.catalog import layout
from holdfast.catalog.objects import DamagedObject, load_each
from holdfast.catalog.owners import Liveness
from holdfast.errors import BeingDeleted
from holdfast.ids import ObjectName, RecordAddress
from holdfast.records import Sweep

if TYPE_CHECKING:
    from holdfast.catalog.store import Store


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
        """Refuses a record that a sweep has announced.

        Raises:
            BeingDeleted: a sweep is at it, or is stopped while at it.
        """
        for sweep in self.sweeps:
            if address.name in sweep.objects:
                who = f"process {sweep.owner.pid} on {sweep.owner.host}"
                raise BeingDeleted(
                    f"{address} is about to be deleted by sweep {sweep.id} ({who}); choose another record"
                )


def read_tombstones(store: Store) -> Tombstones:
    """All announcements as of now; those of sweepers that are provably dead mean nothing any more."""
    names = [listed.name for listed in store.storage.list(layout.SWEEPS)]
    sweeps, damaged = load_each(store.storage, names, Sweep)
    at_work = tuple(sweep for sweep in sweeps if store.liveness(sweep.owner) is not Liveness.DEAD)
    return Tombstones(sweeps=at_work, damaged=tuple(damaged))


def await_clear(store: Store, names: frozenset[ObjectName], *, seconds: float) -> bool:
    """Whether, within ``seconds``, no sweep announces any of ``names`` any more."""
    return store.waiter.until(lambda: not names & read_tombstones(store).names, seconds=seconds)
