"""``holdfast recode``: store what a run has with another codec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import typer

from holdfast.catalog import layout
from holdfast.catalog.repacking.recode import Part, RecodePlan, execute_recode, plan_recode
from holdfast.catalog.repacking.repack import Repacked
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_record, find_run, opened
from holdfast.cli.options import DEFAULT_STORE, DryRunOption, JsonOption, StoreOption
from holdfast.cli.output import bar, count, print_json, say, size, table
from holdfast.cli.rm import WAIT, say_waiting
from holdfast.packs.codec import Codec, check_available
from holdfast.records import Record

_RUN = re.compile(r"run-\d{1,9}")


def command(
    reference: Annotated[str, typer.Argument(help="A run (its name or run-003), or one of its checkpoints.")],
    codec: Annotated[Codec, typer.Option("--codec", help="How the segments shall be stored.")],
    shared: Annotated[bool, typer.Option("--shared", help="The shared packs of all runs as well.")] = False,
    dry_run: DryRunOption = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Store segments with another codec. Checkpoints and digests stay as they are; only packs are replaced."""
    check_available(codec)
    found = opened(store)
    scopes = [_scope(found, reference), *([_Scope(found, None, None)] if shared else [])]
    results = [_recode(scope, codec, dry_run) for scope in scopes]
    if json:
        print_json({"dry_run": dry_run, "codec": str(codec), "scopes": [_document(result) for result in results]})
        return
    for result in results:
        _print(result, dry_run)


class _Scope(NamedTuple):
    store: Store
    run: Run | None
    record: Record | None

    @property
    def size(self) -> int:
        folder = layout.SHARED_PACKS if self.run is None else layout.private_packs(self.run.number)
        return sum(listed.size for listed in self.store.storage.list(folder))


def _scope(store: Store, text: str) -> _Scope:
    if _RUN.fullmatch(text) or store.named(text):
        return _Scope(store, find_run(store, text), None)
    record = find_record(store, text)
    return _Scope(store, store.run(record.run), record)


class _Result(NamedTuple):
    plan: RecodePlan
    done: Repacked | None
    """None: a dry run, or there was nothing to do."""
    written: int | None
    """Stored bytes of the new packs."""

    @property
    def scope(self) -> str:
        return "shared" if self.plan.run is None else str(self.plan.run)


def _recode(scope: _Scope, codec: Codec, dry_run: bool) -> _Result:
    with bar("looking", scope.size) as looked:
        plan = plan_recode(scope.store, scope.run, codec, record=scope.record, progress=looked)
    if dry_run or not plan.packs:
        return _Result(plan, None, None)
    with bar("recoding", plan.total.stored) as progress:
        done = execute_recode(scope.store, plan, run=scope.run, seconds=WAIT, report=say_waiting, progress=progress)
    footers = [scope.store.footers.get(name) for name in done.written]
    return _Result(plan, done, sum(footer.stored_bytes for footer in footers))


def _document(result: _Result) -> dict[str, Any]:
    plan, done = result.plan, result.done or Repacked()
    return {
        "scope": result.scope,
        "unclear": plan.unclear,
        "packs": [{"name": str(pack.name), **pack.total._asdict()} for pack in plan.packs],
        "stored_as": {str(codec): part._asdict() for codec, part in plan.parts.items()},
        "written": [str(name) for name in done.written],
        "written_bytes": result.written,
        "deleted": [str(name) for name in done.deleted],
        "kept": [{"name": str(name), "why": why} for name, why in done.kept],
    }


def _print(result: _Result, dry_run: bool) -> None:
    plan = result.plan
    if plan.unclear:
        say(f"{result.scope}: nothing can be recoded: {plan.unclear}")
    elif not plan.packs:
        say(f"{result.scope}: nothing to do, {plan.codec} would not make it shorter")
    else:
        say(f"{result.scope}: {'would recode ' if dry_run else ''}{count(len(plan.packs), 'pack')} to {plan.codec}")
        table(
            ("stored as", "segments", "bytes", "expected", "saves"),
            _rows(plan),
            right=("segments", "bytes", "expected", "saves"),
        )
    if result.done:
        _print_done(result.done, result.written or 0)


def _rows(plan: RecodePlan) -> Iterator[tuple[str, int, str, str, str]]:
    parts = plan.parts
    for codec, part in parts.items():
        yield _row(str(codec), part)
    if len(parts) > 1:
        yield _row("all", plan.total)


def _row(name: str, part: Part) -> tuple[str, int, str, str, str]:
    saves = f"{100 * (1 - part.expected / part.stored):.0f} %" if part.stored else ""
    return name, part.segments, size(part.stored), size(part.expected), saves


def _print_done(done: Repacked, written: int) -> None:
    say(f"wrote {count(len(done.written), 'pack')} with {size(written)}, deleted {count(len(done.deleted), 'pack')}")
    for name, why in done.kept:
        say(f"kept {name}: {why}")
    if done.kept:
        say("try again when nobody is at work, or let 'holdfast gc' remove what has been copied")
