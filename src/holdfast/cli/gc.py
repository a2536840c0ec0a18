"""``holdfast gc``: apply retention, remove what nothing needs, and repack what is half empty."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import typer

from holdfast.catalog.deleting.sweeps import SweepPlan, execute, plan_sweep, standing_holds
from holdfast.catalog.repacking.repack import Repacked, RepackPlan, execute_repack, foreseen, plan_repack
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_run, opened
from holdfast.cli.keeping import retention, retention_if_readable, room_text
from holdfast.cli.options import DEFAULT_STORE, DryRunOption, JsonOption, StoreOption
from holdfast.cli.output import bar, count, print_json, say, size, warn
from holdfast.cli.rm import WAIT, document, print_plan, say_waiting
from holdfast.errors import InvalidInput
from holdfast.ids import ObjectName, RecordAddress, RunNumber


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
    found, said = opened(store), _Warnings()
    infos, damaged = ([], []) if run is not None else found.run_infos()
    for one in damaged:
        said.warn(f"left alone: {one.error}")
    runs = [find_run(found, run)] if run is not None else [Run(found, info) for info in infos]
    sweeps = list(_sweeps(found, runs, keep, dry_run, said, with_shared=run is None))
    gone = frozenset(name for plan in sweeps for name in plan.names)
    scopes = (*runs, *([None] if run is None else []))
    repacks = [_repack(found, one, gone, dry_run=dry_run) for one in scopes]
    unfinished = found.storage.unfinished() if dry_run else found.storage.sweep_unfinished()
    if json:
        print_json(
            {
                "sweeps": [{"scope": _scope(plan.run), **document(plan, dry_run)} for plan in sweeps],
                "repacked": [repack.document() for repack in repacks],
                "unfinished_bytes": unfinished,
                "warnings": said.texts,
            }
        )
        return
    for plan in sweeps:
        print_plan(plan, dry_run)
    for repack in repacks:
        repack.say(dry_run)
    if unfinished:
        say(f"{'would remove' if dry_run else 'removed'} {size(unfinished)} of unfinished files of dead processes")


@dataclass(slots=True)
class _Warnings:
    """What is said on standard error; it is a part of the JSON, too."""

    texts: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self.texts.append(text)
        warn(text)


def _scope(run: RunNumber | None) -> str:
    return "shared" if run is None else str(run)


def _sweeps(
    store: Store, runs: list[Run], keep: str | None, dry_run: bool, said: _Warnings, *, with_shared: bool
) -> Iterator[SweepPlan]:
    gone: list[RecordAddress] = []
    for run in runs:
        found = retention_if_readable(run) if with_shared else retention(run, keep)
        if found.unreadable:
            said.warn(f"{run.number}: no checkpoint is deleted, the keep policy is not known: {found.source}")
        kept = found.plan
        if kept and kept.room and kept.room.kept > kept.room.limit:
            said.warn(f"{run.number}: {room_text(kept.room)}")
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


class _Repack(NamedTuple):
    """A repack, done or only planned."""

    plan: RepackPlan
    result: Repacked

    def document(self) -> dict[str, Any]:
        plan, result = self
        return {
            "scope": _scope(plan.run),
            "packs": list(map(str, plan.packs)),
            "live_bytes": plan.live_bytes,
            "freed_bytes": result.freed,
            "deleted": list(map(str, result.deleted)),
            "kept": [{"name": str(name), "why": why} for name, why in result.kept],
            "unclear": plan.unclear,
        }

    def say(self, dry_run: bool) -> None:
        plan, result = self
        if not plan.packs:
            return
        there = count(len(plan.packs), "pack")
        packs = f"{len(result.deleted)} of {there}" if result.kept else there
        freed = f"{size(result.freed)} freed" if result.freed >= 0 else f"{size(-result.freed)} more until the next gc"
        say(f"{_scope(plan.run)}: {'would repack' if dry_run else 'repacked'} {packs}, {freed}")
        for name, why in result.kept:
            say(f"    stays: {name}: {why}")


def _repack(store: Store, run: Run | None, gone: Collection[ObjectName], *, dry_run: bool) -> _Repack:
    plan = plan_repack(store, run, gone)
    if dry_run or not plan.packs:
        return _Repack(plan, foreseen(store, plan, run))
    with bar("repacking", plan.live_bytes) as progress:
        done = execute_repack(store, plan, run=run, seconds=WAIT, report=say_waiting, progress=progress)
    return _Repack(plan, done)
