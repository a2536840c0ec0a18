"""``holdfast ls``: the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import NO_MARKS, RecordMarks, read_marks
from holdfast.catalog.naming.tags import read_tags
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_run, opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import ago, metrics_text, print_json, say, size, table
from holdfast.ids import RecordId, RunNumber
from holdfast.records import Record


def command(
    run: str | None = typer.Argument(None, help="A run: its name or run-003; the newest one if left out."),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """List the checkpoints of a run, newest first."""
    found = opened(store)
    chosen = find_run(found, run)
    published, (starts, bad_starts) = chosen.published(), chosen.read_starts()
    lineage = Lineage.of(published.records, starts, chosen.info.forked_from, unreadable=bad_starts)
    rows = list(_rows(found, chosen.number, lineage))
    damaged = [{"name": str(one.name), "error": str(one.error)} for one in (*published.damaged, *bad_starts)]
    if json:
        print_json({"run": str(chosen.number), "name": chosen.info.name, "checkpoints": rows, "damaged": damaged})
        return
    _print(chosen, rows, damaged)
    if lineage.hidden is not None:
        say(f"where the run stands only {lineage.hidden.name} says")


def _print(run: Run, rows: list[dict[str, Any]], damaged: list[dict[str, str]]) -> None:
    say(f"{run.number} {run.info.name or ''}".strip())
    for one in damaged:
        say(f"damaged: {one['error']}")
    if not rows:
        origin = run.info.forked_from
        say("no checkpoints yet" + (f"; it begins at {origin.address}" if origin else ""))
        return
    columns = ("", "step", "id", "kind", "new", "saved", "marks, tags, metrics")
    table(columns, map(_cells, rows), right=("step", "new"))
    if any(row["on_line"] is False for row in rows):
        say("x: left behind by a rollback or a fresh start; ask for it by its id")


def _rows(store: Store, run: RunNumber, lineage: Lineage) -> Iterator[dict[str, Any]]:
    marks, tags = read_marks(store, run), read_tags(store).by_record()
    line = {target.id for target in lineage.line()}
    head = lineage.head.id if lineage.head else None
    for record in reversed(lineage.order):
        # Nobody knows while the newest start cannot be read: it may have gone back.
        known = lineage.hidden is None
        place = {"head": record.id == head if known else None, "on_line": record.id in line if known else None}
        yield _row(record, marks.get(RecordId(record.id), NO_MARKS), tags.get(record.id, [])) | place


def _row(record: Record, marks: RecordMarks, tags: list[str]) -> dict[str, Any]:
    flags = [name for name in ("verified", "good", "pinned", "final", "quarantined") if getattr(marks, name)]
    return {
        "id": record.id,
        "step": record.step,
        "epoch": record.epoch,
        "launch": record.launch,
        "timeline": record.timeline,
        "kind": str(record.kind),
        "reason": record.reason,
        "created": record.created,
        "new_bytes": record.bytes.new,
        "stored_bytes": record.bytes.stored,
        "logical_bytes": record.bytes.logical,
        "stall_seconds": record.timing.stall,
        "marks": flags,
        "tags": tags,
        "metrics": marks.metrics(record),
    }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    # An abandoned checkpoint is one that a rollback has left behind.
    place = "*" if row["head"] else "x" if row["on_line"] is False else " "
    more = [*row["marks"], *(f"tag:{name}" for name in row["tags"]), metrics_text(row["metrics"], 2)]
    return place, row["step"], row["id"][:8], row["kind"], size(row["new_bytes"]), ago(row["created"]), " ".join(more)
