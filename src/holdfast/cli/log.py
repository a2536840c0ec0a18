"""``holdfast log``: what happened in a run."""

from __future__ import annotations

from typing import Any

import typer

from holdfast.catalog.journal import read_journal
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_run, opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import print_json, say, size, table
from holdfast.records import Record


def command(
    run: str | None = typer.Argument(None, help="A run: its name or run-003; the newest one if left out."),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Show what happened in a run: launches, restores, checkpoints, failures."""
    found = opened(store)
    chosen = find_run(found, run)
    lines = sorted([*_launches(chosen), *_starts(chosen), *_records(chosen), *_events(found, chosen)], key=_when)
    if json:
        print_json({"run": str(chosen.number), "events": lines})
        return
    if not lines:
        say("nothing has happened yet")
        return
    table(("time", "what", "event"), [(one["time"][5:19], one["what"], one["text"]) for one in lines])


def _when(line: dict[str, Any]) -> tuple[str, int]:
    # Within one second: a launch, then what it resumed from, then what it saved.
    return line["time"], ("launch", "start", "save").index(line["what"]) if line["what"] in _SORTED else 3


_SORTED = frozenset({"launch", "start", "save"})


def _launches(run: Run) -> list[dict[str, Any]]:
    return [
        _line(one.created, "launch", f"launch {one.number} by pid {one.owner.pid} on {one.owner.host}")
        for one in run.launches()
    ]


def _starts(run: Run) -> list[dict[str, Any]]:
    return [
        _line(
            one.created,
            "start",
            f"launch {one.launch} "
            + (f"resumed from {one.resumed_from.address}" if one.resumed_from else "started from zero")
            + f": {one.why}",
        )
        for one in run.starts()
    ]


def _records(run: Run) -> list[dict[str, Any]]:
    return [
        _line(one.created, "save", f"step {one.step} ({one.id[:8]}): {one.reason}; {_cost(one)}")
        for one in run.records()
    ]


def _cost(record: Record) -> str:
    timing = record.timing
    return f"{size(record.bytes.new)} new, the loop waited {timing.stall:.2f} s, durable after {timing.durable:.2f} s"


def _events(store: Store, run: Run) -> list[dict[str, Any]]:
    journal = read_journal(store, run.number)
    # What the saver notes of a save is in its record, too.
    events = [entry.event for entry in journal.entries if entry.event.kind != "saved"]
    lines = [_line(event.time, event.kind, event.message) for event in events]
    return lines + [_line("", "damaged", f"{one.name}: {one.error}") for one in journal.damaged]


def _line(time: str, what: str, text: str) -> dict[str, Any]:
    return {"time": time, "what": what, "text": text}
