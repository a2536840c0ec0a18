"""``holdfast plan``: what policies would have saved and kept in a run, and what that would have cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import typer

from holdfast.catalog.deleting.protections import read_retention_facts
from holdfast.catalog.journal.gathering import gather
from holdfast.catalog.runs import Run
from holdfast.cli.finding import find_run, opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import count, print_json, say, size, table, warn
from holdfast.errors import InvalidInput, InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy import for_keeping, for_saving, parse
from holdfast.policy.past import Past, past_of
from holdfast.policy.replay import Outcome, Replay, replay

SaveOption = Annotated[
    str | None,
    typer.Option("--save", help="When to save, such as 'every(steps=500) | auto()'; as in the run if left out."),
]
KeepOption = Annotated[
    str | None,
    typer.Option("--keep", help="What to keep, such as 'latest(3) | at_most(\"50GB\")'; as in the run if left out."),
]
OverOption = Annotated[
    str | None, typer.Option("--over", help="A run: its name or run-003; the newest one if left out.")
]


def command(
    save: SaveOption = None,
    keep: KeepOption = None,
    over: OverOption = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Replay policies on a past run: what they would have saved and kept, and what it would have cost."""
    run = find_run(opened(store), over)
    texts = {
        "save": _own(run, "save") if save is None else save,
        "keep": _own(run, "keep") if keep is None else keep,
    }
    policies = for_saving(parse(texts["save"])), for_keeping(parse(texts["keep"]))
    gathered = gather(run)
    for problem in gathered.problems:
        warn(f"left out: {problem}")
    past = past_of(gathered.history)
    found = replay(past, *policies)
    found = replace(found, notes=(*found.notes, *_not_replayed(run)))
    if json:
        left_out = {"warnings": [f"left out: {problem}" for problem in gathered.problems]}
        print_json({"run": str(run.number), "policies": texts, **_document(found), **left_out})
        return
    _print(run, texts, past, found)


def _not_replayed(run: Run) -> Iterator[str]:
    """What protects checkpoints of the run and is no part of a replay."""
    facts = read_retention_facts(run)
    marks = [one for record in facts.lineage.order if (one := facts.marks.get(RecordId(record.id)))]
    ids = {record.id for record in facts.lineage.order}
    there = {
        "tag": sum(len(names) for id_, names in facts.tags.items() if id_ in ids),
        "pinned checkpoint": sum(one.pinned for one in marks),
        "good checkpoint": sum(one.good for one in marks),
        "quarantined checkpoint": sum(one.quarantined for one in marks),
        "fork": sum(len(runs) for id_, runs in facts.forks.items() if id_ in ids),
    }
    if said := ", ".join(count(number, noun) for noun, number in there.items() if number):
        yield f"{said}: the run has these, a replay has not; 'holdfast why' says what they keep"
    if facts.good_after is not None:
        yield f"what may become good after {facts.good_after} steps is kept until then; a replay does not do that"


def _own(run: Run, which: str) -> str:
    """The policy of the newest launch that can be read.

    Raises:
        InvalidInput: no launch has said one.
        InvalidPolicy: it cannot be read.
    """
    texts = [text for launch in run.launches() if (text := launch.policies.get(which))]
    if not texts:
        raise InvalidInput(f"{run.number} has no {which} policy on record; say one with --{which}")
    try:
        parse(texts[-1])
    except InvalidPolicy as error:
        said = f"the {which} policy of {run.number} cannot be read ({error}); give one with --{which}"
        raise InvalidPolicy(said) from error
    return texts[-1]


def _print(run: Run, texts: dict[str, str], past: Past, found: Replay) -> None:
    steps = sum(stretch.reached - stretch.begun for stretch in past.stretches)
    say(f"{run.number}: {count(steps, 'step')} after {count(len(past.stretches), 'start')}")
    say(f"save: {texts['save']}")
    say(f"keep: {texts['keep']}")
    say()
    table(("", "as it was", "as planned"), _rows(found), right=("as it was", "as planned"))
    say()
    table(("step", "kept because"), found.planned.kept, right=("step",))
    for note in found.notes:
        say(f"note: {note}")


def _rows(found: Replay) -> Iterator[tuple[str, str, str]]:
    cells = zip(_figures(found.real).items(), _figures(found.planned).values(), strict=True)
    yield from ((name, was, planned) for (name, was), planned in cells)


def _figures(one: Outcome) -> dict[str, str]:
    more = "at least " if any(loss.at_least for loss in one.losses) else ""
    return {
        "saves": str(one.saves),
        "of these at estimated cost": str(one.estimated),
        "the loop waited": f"{one.stall_seconds:.1f} s",
        "written": size(one.written),
        "on disk at most": "not known" if one.peak_bytes is None else size(one.peak_bytes),
        "on disk at the end": size(one.final_bytes),
        "checkpoints at the end": str(len(one.kept)),
        "had to go back": count(one.went_back, "time"),
        "steps lost by that": f"{more}{one.lost_steps}",
    }


def _document(found: Replay) -> dict[str, Any]:
    return {"real": _as_json(found.real), "planned": _as_json(found.planned), "notes": list(found.notes)}


def _as_json(one: Outcome) -> dict[str, Any]:
    return {
        "saves": one.saves,
        "estimated": one.estimated,
        "stall_seconds": one.stall_seconds,
        "written_bytes": one.written,
        "peak_bytes": one.peak_bytes,
        "final_bytes": one.final_bytes,
        "kept": [{"step": step, "because": why} for step, why in one.kept],
        "lost_steps": one.lost_steps,
        "losses": [
            {"launch": loss.launch, "reached": loss.reached, "back_to": loss.back_to, "at_least": loss.at_least}
            for loss in one.losses
        ],
    }
