"""Marks: facts about a record that came after it, appended and never changed.

No clock orders them. A mark that takes back another one names it: an
``unpinned`` mark lists the pins that it lifts, a ``metric`` mark the ones that
it replaces. So two hosts that pin and unpin at once end up pinned, whatever
their clocks say. A damaged mark is reported and read on the safe side: a pin
that cannot be read still pins, a quarantine still warns, but ``good`` and
``verified`` have to be readable.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.catalog import layout
from holdfast.catalog.objects import DamagedObject, create_once, load_each, load_named
from holdfast.catalog.readers import check_present
from holdfast.clock import utc_now
from holdfast.errors import BeingDeleted, Missing
from holdfast.ids import ObjectName, RecordAddress, RecordId, RunNumber, nonce
from holdfast.records import Mark, MarkKind, Record, Target
from holdfast.storage.protocol import Listed

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

_MARK = re.compile(r"catalog/runs/\d{3,}/marks/([0-9a-f]{16})/([a-z]+)-([0-9a-f]+)\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordMarks:
    """All marks of one record."""

    marks: tuple[Mark, ...] = ()
    damaged: tuple[DamagedObject, ...] = ()

    def of(self, kind: MarkKind) -> list[Mark]:
        """Its readable marks of one kind, by creation."""
        found = [mark for mark in self.marks if mark.kind is kind]
        return found if len(found) < 2 else sorted(found, key=lambda mark: (mark.created, mark.attempt))

    @property
    def good(self) -> bool:
        """The health checks have passed for a while."""
        return bool(self.of(MarkKind.GOOD))

    @property
    def verified(self) -> bool:
        """Read back once from the device, with all digests: by one process, or each part by its own."""
        said = [mark.data for mark in self.of(MarkKind.VERIFIED)]
        parts = {data.get("part") for data in said}
        return any(parts.issuperset(range(int(data.get("of", 0)))) for data in said)

    @property
    def final(self) -> bool:
        """The end of a finished training."""
        return bool(self.of(MarkKind.FINAL))

    @property
    def quarantined(self) -> bool:
        """Something in it is proven to be damaged."""
        return bool(self.of(MarkKind.QUARANTINED)) or self._is_damaged(MarkKind.QUARANTINED)

    @property
    def pins(self) -> list[Mark]:
        """The pins that are not lifted."""
        lifted = {pin for mark in self.of(MarkKind.UNPINNED) for pin in _listed(mark, "lifts")}
        return [mark for mark in self.of(MarkKind.PINNED) if mark.attempt not in lifted]

    @property
    def pinned(self) -> bool:
        """Whether no retention may delete it."""
        return bool(self.pins) or self._is_damaged(MarkKind.PINNED)

    @property
    def notes(self) -> list[str]:
        """What people wrote about it."""
        return [str(mark.data.get("text", "")) for mark in self.of(MarkKind.NOTE)]

    def measurements(self) -> list[Mark]:
        """The metric marks that no other one replaces."""
        replaced = {old for mark in self.of(MarkKind.METRIC) for old in _listed(mark, "replaces")}
        return [mark for mark in self.of(MarkKind.METRIC) if mark.attempt not in replaced]

    def metrics(self, record: Record) -> dict[str, Any]:
        """The metrics of ``record``, the late ones included; a late one wins over what was saved."""
        found = dict(record.metrics)
        for mark in self.measurements():
            found |= _late(mark)
        return found

    def _is_damaged(self, kind: MarkKind) -> bool:
        return any(_kind(one.name) == kind for one in self.damaged)


NO_MARKS = RecordMarks()


def read_marks(store: Store, run: RunNumber) -> dict[RecordId, RecordMarks]:
    """The marks of all records of a run that have any. Damaged ones are part of the answer, never raised."""
    return marks_of(store, run, store.storage.list(layout.marks_folder(run)))


def marks_of(store: Store, run: RunNumber, listing: Iterable[Listed]) -> dict[RecordId, RecordMarks]:
    """As `read_marks`, from a listing of the run's marks."""
    names = [listed.name for listed in listing if _MARK.fullmatch(listed.name)]
    # A name has a nonce and is never used again, so what was read once need not be read again.
    seen = store.marks.setdefault(run, {})
    read, damaged = load_named(store.storage, [name for name in names if name not in seen], Mark)
    marks = {name: mark for name in names if (mark := seen.get(name) or read.get(name))}
    store.marks[run] = marks
    return _by_record(marks.values(), damaged)


def read_record_marks(store: Store, address: RecordAddress) -> RecordMarks:
    """The marks of one record."""
    folder = f"{layout.marks_folder(address.run)}{address.id}/"
    names = [listed.name for listed in store.storage.list(folder) if _MARK.fullmatch(listed.name)]
    marks, damaged = load_each(store.storage, names, Mark)
    return RecordMarks(marks=tuple(marks), damaged=tuple(damaged))


def add_mark(
    store: Store, address: RecordAddress, kind: MarkKind, *, by: str, data: Mapping[str, Any] | None = None
) -> Mark:
    """Appends a fact about a record: atomic, durable when it returns.

    Args:
        store: where the record lies.
        address: the record.
        kind: what kind of fact; use `pin`, `unpin` and `add_metrics` for those.
        by: who says so: ``user``, ``saver``, ``health`` ...
        data: details; a note has its ``text`` here.

    Raises:
        Missing: the record is gone.
        BeingDeleted: a sweep is about to delete it.
        StorageError: not known to be written.
    """
    check_present(store, [address])
    return _create(store, address, kind, by, dict(data or {}))


def pin(store: Store, address: RecordAddress, *, by: str, why: str = "") -> Mark:
    """Keeps a record from retention and gc until it is unpinned; errors as in `add_mark`.

    The pin is written first and the sweeps' announcements are read after, as they write theirs first
    and read pins after: whoever comes second sees the first.
    """
    mark = add_mark(store, address, MarkKind.PINNED, by=by, data={"why": why} if why else None)
    try:
        check_present(store, [address])
    except (BeingDeleted, Missing):
        store.storage.delete([layout.mark(address, mark.kind, mark.attempt)])
        raise
    return mark


def unpin(store: Store, address: RecordAddress, *, by: str) -> Mark | None:
    """Lifts the pins that are there now; None if there is none. Errors as in `add_mark`."""
    found = read_record_marks(store, address)
    unreadable = [one.name.leaf for one in found.damaged if _kind(one.name) == MarkKind.PINNED]
    if unreadable:
        # Nobody can name them in an unpinned mark, and the person who unpins has decided.
        store.storage.delete(one.name for one in found.damaged if one.name.leaf in unreadable)
    lifted = [mark.attempt for mark in found.pins]
    if not lifted and not unreadable:
        return None
    return add_mark(store, address, MarkKind.UNPINNED, by=by, data={"lifts": lifted})


def add_metrics(store: Store, address: RecordAddress, metrics: Mapping[str, Any], *, by: str) -> Mark:
    """Metrics that were measured after the save, for the step of this very record; errors as in `add_mark`.

    The mark repeats what earlier ones say and replaces all of them, so no clock decides what is newer.
    """
    earlier = read_record_marks(store, address).measurements()
    known = {name: value for mark in earlier for name, value in _late(mark).items()}
    data = {"metrics": {**known, **metrics}, "replaces": [mark.attempt for mark in earlier]}
    return add_mark(store, address, MarkKind.METRIC, by=by, data=data)


def _create(store: Store, address: RecordAddress, kind: MarkKind, by: str, data: dict[str, Any]) -> Mark:
    mark = Mark(kind=kind, target=Target.of(address), created=utc_now(), by=by, data=data, attempt=nonce())
    create_once(store.storage, layout.mark(address, kind, mark.attempt), mark)
    return mark


def _by_record(marks: Iterable[Mark], damaged: Iterable[DamagedObject]) -> dict[RecordId, RecordMarks]:
    readable: dict[RecordId, list[Mark]] = defaultdict(list)
    broken: dict[RecordId, list[DamagedObject]] = defaultdict(list)
    for mark in marks:
        readable[RecordId(mark.target.id)].append(mark)
    for one in damaged:
        match = _MARK.fullmatch(one.name)
        if match:
            broken[RecordId(match[1])].append(one)
    return {
        id_: RecordMarks(marks=tuple(readable[id_]), damaged=tuple(broken[id_])) for id_ in sorted({*readable, *broken})
    }


def _kind(name: ObjectName) -> str | None:
    match = _MARK.fullmatch(name)
    return match[2] if match else None


def _late(mark: Mark) -> dict[str, Any]:
    late = mark.data.get("metrics")
    return late if isinstance(late, dict) else {}


def _listed(mark: Mark, key: str) -> list[object]:
    listed = mark.data.get(key)
    return listed if isinstance(listed, list) else []
