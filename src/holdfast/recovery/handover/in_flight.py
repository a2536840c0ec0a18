"""Saves that were handed over to a saver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from holdfast.records import Record, Target
from holdfast.saver import messages
from holdfast.saver.control import Intent, Row
from holdfast.seals import unseal


@dataclass(slots=True)
class InFlight:
    """A save that was handed over."""

    intent: Intent
    target: Target
    frozen: Mapping[int, bytes]
    """Fingerprints of the frozen tensors, by place in the layout."""
    names: Mapping[int, str]
    committed: Record | None = None


def record_of(message: messages.Committed, target: Target, read: Callable[[Target], Record | None]) -> Record | None:
    """The record that a saver has told of: it came with the message, or is read; errors as in ``read``."""
    return unseal(target.address.name, message.record, Record) if message.record else read(target)


def forget_unfollowed(flying: dict[int, InFlight], rows: Iterable[Row]) -> None:
    """Forgets saves that are committed, and of whose generation nothing is left."""
    there = {row.generation for row in rows}
    for generation in [one for one, flown in flying.items() if flown.committed is not None and one not in there]:
        del flying[generation]
