"""Holds: saves in flight and readers at work, and how somebody else gives up on one.

A hold of a save lies under ``holds/<order>-<record id>-<attempt>.json``, so what
it will publish is known even if its content is damaged, and no name of a hold
is ever used twice: a delete that comes late hits nothing else.

Nobody removes the hold of a save before the record's name is taken: by the
record, or by an `Aborted` that he creates himself. So a saver that was only
paused cannot publish afterwards, whatever anybody believed about its life.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.catalog import layout
from holdfast.catalog.objects import create_once, load
from holdfast.catalog.owners import Liveness
from holdfast.catalog.standing import is_standing
from holdfast.clock import utc_now
from holdfast.errors import Damaged, ObjectExists, ObjectMissing
from holdfast.ids import ObjectName, Order, RecordAddress, RecordId, RunNumber, nonce
from holdfast.records import Aborted, Hold, Owner, Target

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

_SAVE = re.compile(r"(\d{6,})\.(\d{3,})\.(\d{12,})-([0-9a-f]{16})-[0-9a-f]{16}\.json")

Report = Callable[[str], None]
"""Told what is waited for, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHold:
    """A hold that was found in a store."""

    name: ObjectName
    publishes: RecordAddress | None
    """None: a reader's."""
    hold: Hold | None
    """None: damaged."""
    liveness: Liveness

    @property
    def is_lost(self) -> bool:
        """Whether it may be given up without waiting.

        A save that was thought dead and lives loses the race for its name; a reader or a sweep races for
        nothing, so only proof will do.
        """
        if self.liveness is Liveness.REBOOTED:
            return self.publishes is not None
        return self.liveness is Liveness.DEAD

    def __str__(self) -> str:
        owner = self.hold.owner if self.hold else None
        who = f"process {owner.pid} on {owner.host.partition('/')[0]}" if owner else "somebody unknown"
        return f"a reader ({who})" if self.publishes is None else f"the save of {self.publishes} ({who})"


def save_hold_name(address: RecordAddress, attempt: str) -> ObjectName:
    """Where the hold of one attempt to publish ``address`` lies."""
    return layout.hold(address.run, f"{address.order}-{address.id}-{attempt}")


def find_holds(store: Store, run: RunNumber) -> list[FoundHold]:
    """All holds of a run, as of now; damaged ones too."""
    # A saver that merely stands by reads and publishes nothing yet: no sweep has to wait for it.
    names = [listed.name for listed in store.storage.list(layout.holds_folder(run)) if not is_standing(listed.name)]
    found = (_found(store, run, name) for name in names)
    return [hold for hold in found if hold is not None]


def find_saves(store: Store, run: RunNumber) -> list[FoundHold]:
    """The holds of saves in a run, as of now."""
    return [hold for hold in find_holds(store, run) if hold.publishes is not None]


def _found(store: Store, run: RunNumber, name: ObjectName) -> FoundHold | None:
    publishes = _publishes(run, name)
    try:
        hold = load(store.storage, name, Hold)
    except ObjectMissing:
        return None
    except Damaged:
        return FoundHold(name=name, publishes=publishes, hold=None, liveness=Liveness.UNKNOWN)
    return FoundHold(name=name, publishes=publishes, hold=hold, liveness=store.liveness(hold.owner))


def _publishes(run: RunNumber, name: ObjectName) -> RecordAddress | None:
    match = _SAVE.fullmatch(name.leaf)
    if match is None:
        return None
    launch, timeline, step, id_ = match.groups()
    return RecordAddress(run, Order(int(launch), int(timeline), int(step)), RecordId(id_))


def is_settled(store: Store, found: FoundHold) -> bool:
    """Whether it holds nothing any more: it is gone, or the record name that it raced for is taken."""
    return not _exists(store, found.name) or (found.publishes is not None and _exists(store, found.publishes.name))


def settle(store: Store, holds: Iterable[FoundHold], *, seconds: float, reason: str, report: Report) -> list[FoundHold]:
    """Aborts the lost among ``holds``, waits ``seconds`` for the others, and gives those that still stand.

    Args:
        store: where they are.
        holds: from one listing.
        seconds: at most so long in all.
        reason: why lost ones are given up, for the `Aborted`.
        report: told once, if there is something to wait for.
    """
    waited_for = []
    for found in holds:
        if found.is_lost:
            give_up(store, found, reason)
        elif not is_settled(store, found):
            waited_for.append(found)
    if waited_for and seconds > 0:
        report(f"waiting up to {seconds:.0f} s for {', '.join(map(str, waited_for))}")
        store.waiter.until(lambda: all(is_settled(store, found) for found in waited_for), seconds=seconds)
    return [found for found in waited_for if not is_settled(store, found)]


def give_up(store: Store, found: FoundHold, reason: str) -> None:
    """Removes a hold of somebody else; a save that had not published yet never will."""
    if found.publishes is not None:
        saver = found.hold.owner if found.hold else None
        take_name(store, found.publishes, saver=saver, reason=reason)
    store.storage.delete([found.name])


def take_name(store: Store, address: RecordAddress, *, saver: Owner | None, reason: str) -> None:
    """Takes the name of a record for an `Aborted`, durably; that somebody else has it is as good."""
    body = Aborted(
        **Target.of(address).fields(),
        created=utc_now(),
        by=store.owner,
        saver=saver,
        reason=reason,
        attempt=nonce(),
    )
    with suppress(ObjectExists):
        create_once(store.storage, address.name, body)


def _exists(store: Store, name: ObjectName) -> bool:
    try:
        store.storage.size(name)
    except ObjectMissing:
        return False
    return True
