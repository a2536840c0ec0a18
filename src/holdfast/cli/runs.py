"""``holdfast runs``: the runs of a store."""

from __future__ import annotations

from typing import Any

from holdfast.catalog.lineage import Lineage
from holdfast.catalog.runs import Run
from holdfast.cli.finding import opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import ago, metrics_text, print_json, say, size, table
from holdfast.records import Record


def command(store: StoreOption = DEFAULT_STORE, json: JsonOption = False) -> None:
    """List the runs of the store."""
    found = opened(store)
    infos, broken = found.run_infos()
    rows = [_row(Run(found, info)) for info in infos]
    damaged = [{"name": str(one.name), "error": str(one.error)} for one in broken]
    if json:
        print_json({"store": found.url, "runs": rows, "damaged": damaged})
        return
    for one in damaged:
        say(f"damaged: {one['error']}")
    if not rows:
        say(f"no runs in {found.url} yet")
        return
    columns = ("run", "name", "step", "checkpoints", "stored", "last save", "metrics")
    table(columns, map(_cells, rows), right=("step", "checkpoints", "stored"))


def _row(run: Run) -> dict[str, Any]:
    records = run.records()
    head = Lineage.of(records, run.starts(), run.info.forked_from).head
    last: Record | None = next((one for one in records if head and one.id == head.id), None)
    return {
        "run": str(run.number),
        "name": run.info.name,
        "created": run.info.created,
        "forked_from": str(run.info.forked_from.address) if run.info.forked_from else None,
        "launches": len(run.launch_numbers()),
        "checkpoints": len(records),
        "stored_bytes": sum(one.bytes.stored for one in records),
        "step": last.step if last else None,
        "last_save": last.created if last else None,
        "kind": last.kind if last else None,
        "metrics": last.metrics if last else {},
    }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        row["run"],
        row["name"] or "-",
        "-" if row["step"] is None else row["step"],
        row["checkpoints"],
        size(row["stored_bytes"]),
        ago(row["last_save"]) if row["last_save"] else "-",
        metrics_text(row["metrics"]),
    )
