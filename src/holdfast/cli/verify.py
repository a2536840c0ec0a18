"""``holdfast verify``: check what is stored."""

from __future__ import annotations

from typing import Any

import typer

from holdfast.catalog.verifying.verify import Problem, Report, verify
from holdfast.cli.finding import opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import bar, count, print_json, say, size
from holdfast.errors import Damaged


def command(
    reference: str | None = typer.Argument(None, help="One checkpoint; without it, the whole store."),
    deep: bool = typer.Option(False, "--deep", help="Read every byte of every pack as well."),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Check seals, digests and what names what; exits with the code of 'damaged' if anything is wrong."""
    found = opened(store)
    total = sum(one.size for one in found.storage.list("data/")) if deep and reference is None else None
    with bar("reading", total) as progress:
        report = verify(found, reference=reference, deep=deep, progress=progress)
    print_json(_document(report)) if json else _print(report)
    if not report.ok:
        raise typer.Exit(Damaged.exit_code)


def _document(report: Report) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "objects": report.objects,
        "records": report.records,
        "packs": report.packs,
        "bytes": report.bytes,
        "problems": [_row(problem) for problem in report.problems],
        "affected": [str(address) for address in report.affected],
        "unknown": list(report.unknown),
    }


def _row(problem: Problem) -> dict[str, Any]:
    return {
        "object": str(problem.object),
        "kind": problem.kind,
        "what": problem.what,
        "remedy": problem.remedy,
        "affects": [str(address) for address in problem.records],
    }


def _print(report: Report) -> None:
    for problem in report.problems:
        say(f"{problem.kind}: {problem.object}")
        say(f"    {problem.what}")
        if problem.records:
            say(f"    affects {', '.join(map(str, problem.records[:5]))}" + _more(len(problem.records) - 5))
        say(f"    what to do: {problem.remedy}")
    for name in report.unknown:
        say(f"not holdfast's, left alone: {name}")
    verdict = "all is well" if report.ok else count(len(report.problems), "problem")
    read = f", {size(report.bytes)} of packs read" if report.bytes else ""
    looked = (count(report.objects, "small object"), count(report.records, "checkpoint"), count(report.packs, "pack"))
    say(f"{verdict}: {', '.join(looked)}{read}")


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
