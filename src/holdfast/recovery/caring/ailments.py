"""What health checks have had done in a run so far, as its journal has it: budgets, and what rollbacks have left out.

A training that is killed between a rollback and its next checkpoint goes on
from the very record that it had gone back to. What was left out and scaled
then is in no checkpoint yet, so it is found here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from holdfast.catalog.journal.journal import read_journal
from holdfast.catalog.store import Store
from holdfast.ids import RunNumber
from holdfast.records import Event

KINDS = ("rollback", "remedy", "notify")
"""Of events: what was done. Their data has ``spent``, that of a rollback also what is read here."""


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """A rollback."""

    target: str
    """Id of the record that it went to."""
    left_out: list[list[int]] = []
    """Of rank 0, as `LeftOut.plain`; every rank has the same number of batches behind it."""
    unit: int = 0
    """Samples of all ranks in one of these batches; 0: nobody knows, it is taken for that of the target."""
    scale_lr: float | None = None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What all rollbacks and budgets of a run come to."""

    spent: dict[str, dict[str, int]] = {}
    rollbacks: list[Gone] = []


@dataclass(slots=True)
class Ailments:
    """The history, and what this launch adds to it. Not thread-safe."""

    history: History = field(default_factory=History)
    _new: list[Gone] = field(default_factory=list)

    def add(self, gone: Gone) -> None:
        """One more rollback."""
        self._new.append(gone)

    @property
    def newest(self) -> Gone:
        """The last one of this launch."""
        return self._new[-1]

    def scale_to(self, target: str) -> float:
        """The factor of learning rates from a record on: of all rollbacks that went there."""
        return math.prod(one.scale_lr for one in self.to(target) if one.scale_lr is not None)

    def to(self, target: str) -> list[Gone]:
        """The rollbacks to a record, oldest first."""
        return [one for one in (*self.history.rollbacks, *self._new) if one.target == target]


def read_history(store: Store, run: RunNumber) -> History:
    """From the journal; what cannot be read of it counts as not done."""
    return history_of(entry.event for entry in read_journal(store, run).by_time())


def history_of(events: Iterable[Event]) -> History:
    """From events, oldest first.

    Example:
        >>> history_of([]).spent
        {}
    """
    done = [event for event in events if event.kind in KINDS and isinstance(event.data, Mapping)]
    spent: dict[str, dict[str, int]] = {}
    for event in done:
        spent = _largest(spent, event.data.get("spent"))
    rollbacks = [gone for event in done if event.kind == "rollback" and (gone := _gone(event.data)) is not None]
    return History(spent=spent, rollbacks=rollbacks)


def _largest(known: dict[str, dict[str, int]], said: Any) -> dict[str, dict[str, int]]:
    """Budgets only ever shrink: of two accounts the one that has spent more is later."""
    if not isinstance(said, Mapping):
        return known
    found = {name: dict(counts) for name, counts in known.items()}
    for name, counts in said.items():
        for key, count in counts.items() if isinstance(counts, Mapping) else ():
            mine = found.setdefault(str(name), {})
            mine[str(key)] = max(mine.get(str(key), 0), count if isinstance(count, int) else 0)
    return found


def _gone(data: Mapping[str, Any]) -> Gone | None:
    try:
        return msgspec.convert(dict(data), Gone)
    except msgspec.ValidationError:
        return None
