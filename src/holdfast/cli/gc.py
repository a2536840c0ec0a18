"""``holdfast gc``: apply retention, remove what nothing needs, and repack what is half empty."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from holdfast.catalog.repack import RepackPlan, execute_repack, plan_repack
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.catalog.sweeps import SweepPlan, execute, plan_sweep
from holdfast.cli.finding import find_run, opened
from holdfast.cli.keeping import retention
from holdfast.cli.options import DEFAULT_STORE, DryRunOption, JsonOption, StoreOption
from holdfast.cli.output import bar, print_json, say, size
from holdfast.cli.rm import WAIT, document, print_plan, say_waiting
from holdfast.errors import InvalidInput


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
    runs = [find_run(found, run)] if run is not None else [found.run(info.number) for info in found.runs()]
    sweeps = list(_sweeps(found, runs, keep, dry_run, with_shared=run is None))
    repacks = [(one, _repack(found, one, dry_run, json)) for one in (*runs, *([None] if run is None else []))]
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
            say(f"{scope.number if scope else 'shared'}: {verb} {len(repack.packs)} packs, {size(repack.freed)} freed")
    if unfinished:
        say(f"removed {size(unfinished)} of unfinished files of dead processes")


def _sweeps(
    store: Store, runs: list[Run], keep: str | None, dry_run: bool, *, with_shared: bool
) -> Iterator[SweepPlan]:
    for run in runs:
        plan = retention(run, keep).plan
        yield _sweep(store, run, plan_sweep(store, run, plan.delete if plan else ()), dry_run)
    if with_shared:
        yield _sweep(store, None, plan_sweep(store, None), dry_run)


def _sweep(store: Store, run: Run | None, plan: SweepPlan, dry_run: bool) -> SweepPlan:
    return plan if dry_run else execute(store, plan, run=run, seconds=WAIT, report=say_waiting)


def _repack(store: Store, run: Run | None, dry_run: bool, quiet: bool) -> RepackPlan:
    plan = plan_repack(store, run)
    if dry_run or not plan.packs:
        return plan
    with bar("repacking", plan.live_bytes) as progress:
        execute_repack(store, plan, run=run, progress=progress)
    return plan


def _repack_document(plan: RepackPlan) -> dict[str, object]:
    return {"packs": [str(name) for name in plan.packs], "live_bytes": plan.live_bytes, "freed_bytes": plan.freed}
