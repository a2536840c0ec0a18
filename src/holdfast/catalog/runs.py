"""A run: a line of records, the launches that made them, and the holds of saves in flight.

Listings go by names where names are enough, and never fail over one damaged
object: what cannot be read is collected in `Run.damaged`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.lineage import Lineage
from holdfast.catalog.objects import DamagedObject, load_each, load_named, read_bytes
from holdfast.catalog.reach import Holders
from holdfast.errors import ObjectMissing, UnknownReference
from holdfast.ids import ObjectName, RecordAddress, RecordId, RunNumber
from holdfast.records import Aborted, LaunchInfo, Record, RunInfo, StartInfo
from holdfast.seals import unseal

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

_RECORD = re.compile(r"(\d{6,})\.(\d{3,})\.(\d{12,})-([0-9a-f]{16})\.json")
_LAUNCH = re.compile(r"(\d{6,})\.json")
_PUBLISHED: tuple[type[Record | Aborted], ...] = (Record, Aborted)
_START = re.compile(r"(\d{6,})\.(\d{3,})\.json")


class Published(NamedTuple):
    """Everything that lies under the record names of a run, read at one time."""

    records: list[Record]
    """Committed, by order."""
    aborted: list[Aborted]
    """Saves that were given up, by order."""
    damaged: list[DamagedObject]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a store. Thread-safe; nothing is locked, so every call sees what is there at that moment."""

    store: Store
    info: RunInfo
    holders: Holders = field(default_factory=Holders, repr=False, compare=False)
    """What its records reach, as far as sweeps have looked."""
    # Records never change, so those that were read once are not read again.
    _seen: dict[ObjectName, Record | Aborted] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def by_number(cls, store: Store, number: int) -> Run:
        """A run of which only the number is known: its objects can be read, whether or not its ``run.json`` can."""
        return cls(store, RunInfo(number=int(number), name=None, created="", attempt=""))

    @property
    def number(self) -> RunNumber:
        """Its number in the store."""
        return RunNumber(self.info.number)

    def addresses(self) -> list[RecordAddress]:
        """All record names by order, from the names alone: given-up saves and damaged records are among them."""
        return [RecordAddress.from_name(name) for name in self._record_names()]

    def records(self) -> list[Record]:
        """The committed records that can be read, by order."""
        return self.published().records

    def damaged(self) -> list[DamagedObject]:
        """Record objects that cannot be read, each with its error."""
        return self.published().damaged

    def published(self) -> Published:
        """Committed records, given-up saves and damaged objects, from one listing."""
        names = self._record_names()
        read, damaged = load_named(self.store.storage, [name for name in names if name not in self._seen], _PUBLISHED)
        self._seen.update(read)
        contents = [self._seen[name] for name in names if name in self._seen]
        _forget_others(self._seen, names)
        return Published(
            [one for one in contents if isinstance(one, Record)],
            [one for one in contents if isinstance(one, Aborted)],
            damaged,
        )

    def record(self, id_: RecordId) -> Record:
        """The committed record of this id.

        Raises:
            UnknownReference: no such record, or its save was given up.
            Damaged: it is there and cannot be read.
        """
        address = next((address for address in self.addresses() if address.id == id_), None)
        content = None if address is None else read_record(self.store, address)
        if not isinstance(content, Record):
            raise UnknownReference(f"no record {id_} in {self.number}; list what there is with 'holdfast ls'")
        return content

    def launch_numbers(self) -> list[int]:
        """The numbers of all launches, ascending, from their names alone."""
        matches = (_LAUNCH.fullmatch(name.leaf) for name in self._launch_names())
        return sorted(int(match[1]) for match in matches if match)

    def newest_launch(self) -> int:
        """The highest number of a launch that has left anything, also one whose own object is lost; 0: none."""
        starts = [int(match[1]) for match, _ in self._start_names()]
        saved = [address.order.launch for address in self.addresses()]
        return max([0, *self.launch_numbers(), *starts, *saved])

    def launches(self) -> list[LaunchInfo]:
        """The launches that can be read, by number."""
        names = [layout.launch(self.number, number) for number in self.launch_numbers()]
        return load_each(self.store.storage, names, LaunchInfo)[0]

    def starts(self) -> list[StartInfo]:
        """The starts that can be read: completed restores and fresh starts, by launch and timeline."""
        return self.read_starts()[0]

    def read_starts(self) -> tuple[list[StartInfo], list[DamagedObject]]:
        """`starts`, and those that cannot be read."""
        names = [name for _, name in self._start_names()]
        starts, damaged = load_each(self.store.storage, names, StartInfo)
        return sorted(starts, key=lambda start: (start.launch, start.timeline)), damaged

    def lineage(self) -> Lineage:
        """Head and ancestors, as of now."""
        records, (starts, damaged) = self.records(), self.read_starts()
        return Lineage.of(records, starts, self.info.forked_from, unreadable=damaged)

    def _record_names(self) -> list[ObjectName]:
        listed = self.store.storage.list(layout.records_folder(self.number))
        places = ((_RECORD.fullmatch(one.name.leaf), one.name) for one in listed)
        ordered = sorted((tuple(map(int, match.groups()[:3])), match[4], name) for match, name in places if match)
        return [name for *_, name in ordered]

    def _start_names(self) -> list[tuple[re.Match[str], ObjectName]]:
        return [(match, name) for name in self._launch_names() if (match := _START.fullmatch(name.leaf))]

    def _launch_names(self) -> list[ObjectName]:
        return [listed.name for listed in self.store.storage.list(layout.launches_folder(self.number))]


def read_record(store: Store, address: RecordAddress) -> Record | Aborted | None:
    """What lies under the name of a record; None: nothing.

    Raises:
        Damaged: it cannot be read.
    """
    try:
        return unseal(address.name, read_bytes(store.storage, address.name), _PUBLISHED)
    except ObjectMissing:
        return None


def _forget_others(seen: dict[ObjectName, Record | Aborted], names: list[ObjectName]) -> None:
    for gone in seen.keys() - set(names):
        seen.pop(gone, None)
