"""Saves that were handed over to a saver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from holdfast.errors import Damaged, SaveFailed, StorageError
from holdfast.records import Record, Target
from holdfast.recovery.handover.outcomes import Committed, GivenUp, Outcome
from holdfast.saver import messages
from holdfast.saver.control import Intent
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


def newest_save(flying: Mapping[int, InFlight]) -> int:
    """The newest generation that is to be a checkpoint: of a reserve, which may never be one, nothing is told."""
    return max((generation for generation, flown in flying.items() if flown.intent is Intent.SAVE), default=0)


def unheard(lost: Iterable[InFlight], read: Callable[[Target], Record | None]) -> list[Outcome]:
    """What has become of saves of which no saver will tell any more, as far as it was not heard before."""
    return [_found(one, read) for one in lost if one.committed is None and one.intent is Intent.SAVE]


def _found(flown: InFlight, read: Callable[[Target], Record | None]) -> Outcome:
    address = flown.target.address
    try:
        if (record := read(flown.target)) is not None:
            return Committed(record=record)
        text = f"{address} was not saved: the saver died before it could say why"
    except (StorageError, Damaged) as error:
        text = f"{address} may not be saved: the saver died before it told of it, and it cannot be read: {error}"
    return GivenUp(target=flown.target, error=SaveFailed(text))
