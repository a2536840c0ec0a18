"""``holdfast runs``: the runs of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import read_record_marks
from holdfast.catalog.objects import DamagedObject
from holdfast.catalog.runs import Run
from holdfast.cli.finding import opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import ago, count, metrics_text, print_json, say, size, table
from holdfast.records import Record


def command(store: StoreOption = DEFAULT_STORE, json: JsonOption = False) -> None:
    """List the runs of the store."""
    found = opened(store)
    infos, broken = found.run_infos()
    looked = [_looked(Run(found, info)) for info in infos]
    rows = [row | {"damaged": len(bad)} for row, bad in looked]
    if json:
        all_ = [*broken, *(one for _, bad in looked for one in bad)]
        damaged = [{"name": str(one.name), "error": str(one.error)} for one in all_]
        print_json({"store": found.url, "runs": rows, "damaged": damaged})
        return
    for one in broken:
        say(f"damaged: {one.error}")
    for row in rows:
        if row["damaged"]:
            say(f"damaged: {count(row['damaged'], 'object')} of {row['run']}; see 'holdfast ls {row['run']}'")
    if not rows:
        say(f"no runs in {found.url} yet")
        return
    columns = ("run", "name", "step", "checkpoints", "stored", "last save", "metrics")
    table(columns, map(_cells, rows), right=("step", "checkpoints", "stored"))


def _looked(run: Run) -> tuple[dict[str, Any], list[DamagedObject]]:
    """A run, and its records and starts that cannot be read."""
    published, (starts, bad_starts) = run.published(), run.read_starts()
    lineage = Lineage.of(published.records, starts, run.info.forked_from, unreadable=bad_starts)
    head = lineage.head if lineage.hidden is None else None  # else nobody knows: it may have gone back
    last = next((one for one in lineage.order if head and one.id == head.id), None)
    return _row(run, lineage.order, last), [*published.damaged, *bad_starts]


def _row(run: Run, records: Sequence[Record], last: Record | None) -> dict[str, Any]:
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
        "metrics": read_record_marks(run.store, last.address).metrics(last) if last else {},
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
