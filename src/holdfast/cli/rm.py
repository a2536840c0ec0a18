"""``holdfast rm``: delete checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdfast.catalog.deleting.sweeps import OnNeed, SweepPlan, execute, plan_sweep, standing_holds
from holdfast.catalog.naming.references import moves
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_address, opened
from holdfast.cli.options import DEFAULT_STORE, DryRunOption, JsonOption, StoreOption
from holdfast.cli.output import count, print_json, say, size, warn
from holdfast.errors import InvalidInput
from holdfast.ids import RecordAddress

WAIT = 10.0
"""Seconds that saves and readers at work are given to finish."""


def command(
    references: Annotated[list[str], typer.Argument(help="Checkpoints of one run.")],
    dry_run: DryRunOption = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Delete checkpoints and what only they need. Refused while a tag, a pin, a fork or a reader needs one."""
    found = opened(store)
    records = [_found(found, reference) for reference in references]
    runs = {record.run for record in records}
    if len(runs) != 1:
        raise InvalidInput(f"rm takes checkpoints of one run at a time, not of {len(runs)}")
    run = found.run(runs.pop())
    standing = standing_holds(found, run) if dry_run else []
    plan = plan_sweep(found, run, records, on_need=OnNeed.REFUSE, standing=standing)
    done = plan if dry_run else execute(found, plan, run=run, seconds=WAIT, report=say_waiting)
    print_json(document(done, dry_run)) if json else print_plan(done, dry_run)


def _found(store: Store, reference: str) -> RecordAddress:
    """What a reference means, if it goes on meaning that: typed once more it would delete another checkpoint.

    Raises:
        InvalidInput: it is the name of a run, ``@last``, ``@best:loss`` or the like.
    """
    found = find_address(store, reference)
    if moves(store, reference):
        which = "its newest checkpoint" if "@" not in reference else f"which {reference} may not mean for long"
        place = f"{found.run}@{found.order.step}"
        raise InvalidInput(f"{reference}: this is {place}, {which}; write {place} to remove that one")
    return found


def say_waiting(text: str) -> None:
    """What is being waited for; it is no part of the result."""
    warn(text)


def document(plan: SweepPlan, dry_run: bool) -> dict[str, Any]:
    """A sweep as JSON."""
    return {
        "dry_run": dry_run,
        "checkpoints": [str(address) for address in plan.records],
        "objects": [str(name) for name in plan.names],
        "freed_bytes": plan.freed,
        "kept": [{"name": kept.name, "why": kept.why} for kept in plan.kept],
    }


def print_plan(plan: SweepPlan, dry_run: bool) -> None:
    """A sweep for people."""
    scope = plan.run if plan.run is not None else "shared"
    verb = "would delete" if dry_run else "deleted"
    for address in plan.records:
        say(f"{verb} {address}")
    say(
        f"{scope}: {verb} {count(len(plan.records), 'checkpoint')}, {count(len(plan.trees), 'manifest')}, "
        f"{count(len(plan.packs), 'pack')}, {size(plan.freed)}"
    )
    for kept in plan.kept:
        say(f"    stays: {kept.name}: {kept.why}")
