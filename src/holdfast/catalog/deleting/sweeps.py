"""Sweeping: the only way in which anything is deleted that somebody else may rely on.

Retention, ``rm`` and ``gc`` all make a plan and execute it here. The plan is
announced first (tombstones), then everybody who might rely on any of it is
looked for once more, and only what nobody needs is deleted: records first,
then what only they named. docs/design/0002-holds-protocol.md has the failure
that follows from leaving out any step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweep_facts import SweepFacts, read_facts
from holdfast.catalog.deleting.sweep_plans import Kept, OnNeed, SweepPlan, make_plan
from holdfast.catalog.holds import FoundHold, Report, find_holds, give_up, is_settled, settle
from holdfast.catalog.objects import create_once, load_each
from holdfast.catalog.owners import Liveness
from holdfast.catalog.reach import forget
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.catalog.tombstones import check_announced, clear_damaged
from holdfast.clock import utc_now
from holdfast.errors import StillNeeded
from holdfast.ids import RecordAddress, nonce
from holdfast.records import Sweep

__all__ = ["Kept", "OnNeed", "SweepPlan", "execute", "plan_sweep"]

_log = logging.getLogger(__name__)

_active: set[str] = set()
_active_lock = threading.Lock()


def plan_sweep(
    store: Store,
    run: Run | None,
    delete: Collection[RecordAddress] = (),
    *,
    on_need: OnNeed = OnNeed.KEEP,
    standing: Collection[FoundHold] = (),
) -> SweepPlan:
    """What would go: ``delete``, what only they need, and the remains of saves that never finished.

    Args:
        store: the store.
        run: whose objects; None: the packs in ``data/shared`` (then ``delete`` is empty).
        delete: records of the run; those that are gone already are no error, damaged ones may be among them.
        on_need: what becomes of records that are still needed.
        standing: saves and readers that count as needing what they hold; none, if `execute` shall wait for them.

    Raises:
        StillNeeded: with ``OnNeed.REFUSE``, if one of them is.
        StorageError: the store cannot be read.
    """
    plan = make_plan(read_facts(store, run, standing=standing), delete, on_need)
    _refuse(plan)
    return plan


def standing_holds(store: Store, run: Run | None) -> list[FoundHold]:
    """The saves and readers at work now that `execute` would wait for: for a plan that is only shown."""
    numbers = store.claimed() if run is None else [run.number]
    holds = [hold for number in numbers for hold in find_holds(store, number)]
    return [hold for hold in holds if not hold.is_lost and not is_settled(store, hold)]


def execute(
    store: Store,
    plan: SweepPlan,
    *,
    run: Run | None = None,
    seconds: float = 0.0,
    give_up_on: Collection[Liveness] = (Liveness.DEAD,),
    report: Report = _log.info,
) -> SweepPlan:
    """Deletes what is in ``plan`` and still unneeded; gives what was deleted, and why the rest stays.

    Safe at any moment, also against savers, readers, sweepers and taggers elsewhere, and if it is killed half-way.

    Args:
        store: the store.
        plan: from `plan_sweep`; it may be old.
        run: the plan's run, if it is at hand: what it has read before is not read again.
        seconds: how long saves and readers at work may take to finish; what they may need stays otherwise.
        give_up_on: whose saves and readers are given up, the dead at once and others when ``seconds`` have passed.
        report: told what is waited for.

    Raises:
        StillNeeded: with ``OnNeed.REFUSE``, if a record is needed by now; nothing was deleted.
        Damaged: the tombstones of this sweep were damaged or removed meanwhile; nothing was deleted.
        StorageError: some of it may be deleted; the rest goes with the next sweep.
    """
    _clear_old(store)
    if not plan.names:
        # Also what the dead hold goes: nothing else would ever remove the hold of a reader that was killed.
        _settle(store, plan, 0.0, (Liveness.DEAD,), report)
        return plan
    with working(nonce()) as id_:
        _announce(store, plan, id_)
        try:
            standing = _settle(store, plan, seconds, give_up_on, report)
            final = _withdraw(plan, _fresh_facts(store, plan, run, standing))
            _refuse(final)
            check_announced(store, id_)
        except BaseException:
            _end(store, id_)
            raise
        _delete(store, final)  # after an error here a delete may still be under way: the tombstones stay
        _end(store, id_)
    forget(store, run, final.names)
    return final


def _announce(store: Store, plan: SweepPlan, id_: str) -> None:
    """Step 1: tombstones. Whoever begins to rely on anything after this sees them and does not."""
    sweep = Sweep(id=id_, created=utc_now(), owner=store.owner, objects=[str(name) for name in plan.names])
    create_once(store.storage, layout.sweep(id_), sweep)
    store.await_visibility()


def _end(store: Store, id_: str) -> None:
    store.storage.delete([layout.sweep(id_)])


def _settle(
    store: Store, plan: SweepPlan, seconds: float, give_up_on: Collection[Liveness], report: Report
) -> list[FoundHold]:
    """Step 2: whoever began before the tombstones has a hold: the dead are given up, the others waited for."""
    numbers = store.claimed() if plan.run is None else [plan.run]
    holds = [hold for number in numbers for hold in find_holds(store, number)]
    reason = "its process was gone, and its remains were swept"
    standing = settle(store, holds, seconds=seconds, reason=reason, report=report)
    for found in standing:
        if found.liveness in give_up_on:
            give_up(store, found, reason)
    return [found for found in standing if found.liveness not in give_up_on]


def _fresh_facts(store: Store, plan: SweepPlan, run: Run | None, standing: list[FoundHold]) -> SweepFacts:
    """Step 3: everything is listed again, after the holds: a save that has finished is found by its record."""
    if run is None and plan.run is not None:
        run = store.run(plan.run)
    return read_facts(store, run, standing=standing)


def _withdraw(plan: SweepPlan, facts: SweepFacts) -> SweepPlan:
    """Step 4: only what was announced and is still unneeded remains."""
    return make_plan(facts, plan.requested, plan.on_need).within(plan)


def _delete(store: Store, plan: SweepPlan) -> None:
    """Step 5: records durably first, for a record without its packs is what must never be."""
    store.storage.delete(plan.record_names)
    store.storage.delete([mark.name for mark in plan.marks])
    store.storage.delete([tree.name for tree in plan.trees])
    store.storage.delete([pack.name for pack in plan.packs])


_WAYS = {"a pin": "with 'holdfast tag --unpin REFERENCE'", "tag ": "with 'holdfast tag --delete NAME'"}


def _refuse(plan: SweepPlan) -> None:
    if plan.on_need is not OnNeed.REFUSE:
        return
    names = {str(address) for address in plan.requested}
    needed = [f"{kept.name}: {kept.why}" for kept in plan.kept if kept.name in names]
    if needed:
        ways = [way for what, way in _WAYS.items() if any(f": {what}" in text for text in needed)]
        raise StillNeeded(f"nothing was deleted: {'; '.join(needed)}; {', '.join(['let go of it first', *ways])}")


@contextmanager
def working(id_: str) -> Iterator[str]:
    """While a sweep of this process is at work, so that its tombstones are not taken for left-overs."""
    with _active_lock:
        _active.add(id_)
    try:
        yield id_
    finally:
        with _active_lock:
            _active.discard(id_)


def _clear_old(store: Store) -> None:
    """Removes tombstones of sweepers that are provably dead, those that this process left, and damaged ones."""
    names = [listed.name for listed in store.storage.list(layout.SWEEPS)]
    sweeps, _ = load_each(store.storage, names, Sweep)
    over = [layout.sweep(sweep.id) for sweep in sweeps if _is_over(store, sweep)]
    if over:
        store.storage.delete(over)
    clear_damaged(store)


def _is_over(store: Store, sweep: Sweep) -> bool:
    if sweep.owner == store.owner:
        with _active_lock:
            return sweep.id not in _active
    return store.liveness(sweep.owner) is Liveness.DEAD
