"""``holdfast gc``: apply retention, remove what nothing needs, and repack what is half empty."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import typer

from holdfast.catalog.deleting.sweeps import SweepPlan, execute, plan_sweep, standing_holds
from holdfast.catalog.repacking.repack import RepackPlan, execute_repack, plan_repack
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_run, opened
from holdfast.cli.keeping import retention, retention_if_readable, room_text
from holdfast.cli.options import DEFAULT_STORE, DryRunOption, JsonOption, StoreOption
from holdfast.cli.output import bar, count, print_json, say, size, warn
from holdfast.cli.rm import WAIT, document, print_plan, say_waiting
from holdfast.errors import InvalidInput
from holdfast.ids import ObjectName, RecordAddress


def command(
    run: str | None = typer.Argument(
        None, help="A run: its name or run-003; all runs and the shared packs if left out."
    ),
    keep: str | None = typer.Option(
        None, "--keep", help="Apply this policy, not that of the newest launch; needs a run."
    ),
    dry_run: DryRunOption = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Delete what retention does not keep and what nothing needs, then repack packs that are under half live."""
    if keep is not None and run is None:
        raise InvalidInput("--keep needs a run: one policy for all runs would delete what others want to keep")
    found = opened(store)
    infos, damaged = ([], []) if run is not None else found.run_infos()
    for one in damaged:
        warn(f"left alone: {one.error}")
    runs = [find_run(found, run)] if run is not None else [Run(found, info) for info in infos]
    sweeps = list(_sweeps(found, runs, keep, dry_run, with_shared=run is None))
    gone = frozenset(name for plan in sweeps for name in plan.names)
    scopes = (*runs, *([None] if run is None else []))
    repacks = [(one, _repack(found, one, gone, dry_run=dry_run, quiet=json)) for one in scopes]
    unfinished = 0 if dry_run else found.storage.sweep_unfinished()
    if json:
        print_json(
            {
                "sweeps": [document(plan, dry_run) for plan in sweeps],
                "repacked": [_repack_document(plan) for _, plan in repacks],
                "unfinished_bytes": unfinished,
            }
        )
        return
    for plan in sweeps:
        print_plan(plan, dry_run)
    for scope, repack in repacks:
        if repack.packs:
            verb = "would repack" if dry_run else "repacked"
            where = scope.number if scope else "shared"
            say(f"{where}: {verb} {count(len(repack.packs), 'pack')}, {size(repack.freed)} freed")
    if unfinished:
        say(f"removed {size(unfinished)} of unfinished files of dead processes")


def _sweeps(
    store: Store, runs: list[Run], keep: str | None, dry_run: bool, *, with_shared: bool
) -> Iterator[SweepPlan]:
    gone: list[RecordAddress] = []
    for run in runs:
        found = retention_if_readable(run) if with_shared else retention(run, keep)
        if found.unreadable:
            warn(f"{run.number}: no checkpoint is deleted, the keep policy is not known: {found.source}")
        kept = found.plan
        if kept and kept.room and kept.room.kept > kept.room.limit:
            warn(f"{run.number}: {room_text(kept.room)}")
        done = _sweep(store, run, kept.delete if kept else (), dry_run)
        gone += [*done.records, *done.given_up]
        yield done
    if with_shared:
        yield _without(gone, _sweep(store, None, gone, dry_run)) if dry_run else _sweep(store, None, (), dry_run)


def _sweep(store: Store, run: Run | None, delete: Collection[RecordAddress], dry_run: bool) -> SweepPlan:
    if dry_run:
        return plan_sweep(store, run, delete, standing=standing_holds(store, run))
    return execute(store, plan_sweep(store, run, delete), run=run, seconds=WAIT, report=say_waiting)


def _without(gone: list[RecordAddress], plan: SweepPlan) -> SweepPlan:
    """A dry run deletes nothing, so the plan of the shared packs is made as if the runs' own plans were executed."""
    given_up = tuple(one for one in plan.given_up if one not in gone)
    return replace(plan, requested=frozenset(), records=(), given_up=given_up)


def _repack(store: Store, run: Run | None, gone: Collection[ObjectName], *, dry_run: bool, quiet: bool) -> RepackPlan:
    plan = plan_repack(store, run, gone)
    if dry_run or not plan.packs:
        return plan
    with bar("repacking", plan.live_bytes) as progress:
        execute_repack(store, plan, run=run, progress=progress)
    return plan


def _repack_document(plan: RepackPlan) -> dict[str, object]:
    return {"packs": [str(name) for name in plan.packs], "live_bytes": plan.live_bytes, "freed_bytes": plan.freed}
