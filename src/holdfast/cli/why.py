"""``holdfast why``: what resume would choose, what retention would keep, and the reasons."""

from __future__ import annotations

from typing import Any

import typer

from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_run, opened
from holdfast.cli.keeping import Retention, retention, room_document, room_text
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import print_json, say, table
from holdfast.ids import RecordId
from holdfast.records import Record
from holdfast.recovery.launching.crash_loops import CrashLoops, next_loops
from holdfast.recovery.launching.resume import Rejected, candidates


def command(
    run: str | None = typer.Argument(None, help="A run: its name or run-003; the newest one if left out."),
    keep: str | None = typer.Option(
        None, "--keep", help="Explain this policy instead, such as 'latest(3) | best(\"loss\")'."
    ),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Explain what resume would choose in a run and what retention would keep."""
    found = opened(store)
    chosen = find_run(found, run)
    loops = next_loops(chosen)
    best, rejected = _choice(found, chosen, loops)
    restart = _restart(loops)
    kept = retention(chosen, keep)
    if json:
        print_json(_document(chosen, best, rejected, kept) | {"restart": restart})
        return
    _print_choice(chosen, best, rejected)
    if restart:
        say(f"    {restart}")
    _print_retention(chosen, kept)


def _choice(store: Store, run: Run, loops: CrashLoops) -> tuple[Record | None, list[str]]:
    """What resume would try first; that its bytes are whole is only known when they are read ('verify --deep')."""
    rejected = Rejected()
    best = next(candidates(store, run, rejected, loops.begin()), None)
    return best, rejected.reasons


def _restart(loops: CrashLoops) -> str | None:
    """Where its launcher would choose otherwise than a person who starts it."""
    job, verdict = loops.foreseen()
    if verdict.stop:
        return f"a restart of job {job} would be refused: {verdict.stop}"
    passed = verdict.suspect
    return f"a restart of job {job} passes {passed.address} over: {verdict.why}" if passed else None


def _document(run: Run, best: Record | None, rejected: list[str], kept: Retention) -> dict[str, Any]:
    plan = kept.plan
    return {
        "run": str(run.number),
        "resume": str(best.address) if best else None,
        "passed_over": rejected,
        "policy": kept.policy,
        "policy_from": kept.source,
        "keep": {str(id_): list(reasons) for id_, reasons in plan.keep.items()} if plan else {},
        "delete": [str(address) for address in plan.delete] if plan else [],
        "cut": {str(id_): why for id_, why in plan.cut.items()} if plan else {},
        "room": room_document(plan.room) if plan and plan.room else None,
    }


def _print_choice(run: Run, best: Record | None, rejected: list[str]) -> None:
    if best:
        say(f"resume would choose {best.address}, {best.kind}: {best.reason}")
    else:
        say("resume would find nothing" + ("" if rejected else f" and start {run.number} from zero"))
    for line in rejected:
        say(f"    passed over: {line}")


def _print_retention(run: Run, kept: Retention) -> None:
    if kept.plan is None:
        say(f"there is no keep policy ({kept.source}): everything stays")
        return
    say()
    say(f"retention by {kept.policy} ({kept.source}):")
    deleted = {address.id for address in kept.plan.delete}
    rows = [
        (record.step, record.id[:8], "delete" if record.id in deleted else "keep", _reason(record, kept))
        for record in reversed(run.records())
    ]
    table(("step", "id", "", "because"), rows, right=("step",))
    if kept.plan.room is not None:
        say(room_text(kept.plan.room))


def _reason(record: Record, kept: Retention) -> str:
    if kept.plan is None:
        return ""
    reasons = kept.plan.keep.get(RecordId(record.id), ())
    return "; ".join(reasons) or kept.plan.cut.get(RecordId(record.id), "nothing wants it")
