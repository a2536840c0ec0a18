"""``holdfast demo``: train a small GPT, kill it again and again, and prove that nothing was lost."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from holdfast.cli import output
from holdfast.cli.demo_plan import SAVE_STEPS, Kill, Outcome, differences, plan
from holdfast.cli.demo_supervisor import Ledger, Supervisor
from holdfast.errors import InvalidInput, RestoreFailed
from holdfast.storage.files import reported

Show = Callable[[int, Kill | None], None]


def command(
    kills: Annotated[int, typer.Option(min=0, help="How often the training is killed.")] = 6,
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of the training.")] = 120,
    seed: Annotated[int, typer.Option(help="Of the training and of the moments of the kills.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="New folder for the stores, kept afterwards. [default: a temporary one]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Train a small GPT twice, once with kills, and compare the results bit for bit."""
    if find_spec("torch") is None:
        raise InvalidInput("the demo trains a model and needs torch: pip install 'holdfast[torch]'")
    if not as_json:
        output.say(
            f"a GPT learns to write Python: {steps} steps, a checkpoint every {SAVE_STEPS}, {kills} times SIGKILL"
        )
    with _workplace(folder) as place:
        killed, undisturbed = _train_twice(place, kills, steps, seed, quiet=as_json)
    _report_json(killed, undisturbed) if as_json else _report(killed, undisturbed)
    if differences(killed.result, undisturbed.result):
        raise typer.Exit(RestoreFailed.exit_code)


@contextmanager
def _workplace(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as temporary:
            yield Path(temporary)
    else:
        with reported("use", folder):
            _refuse_used(folder)
            folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _refuse_used(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "not empty" if folder.is_dir() else "a file"
        raise typer.BadParameter(f"{folder} is {what}", param_hint="--folder")


def _train_twice(place: Path, kills: int, steps: int, seed: int, *, quiet: bool) -> tuple[Outcome, Outcome]:
    moments = plan(kills=kills, steps=steps, seed=seed)
    with _progress(quiet, "training, with kills", steps) as show:
        killed = _supervisor(place, "killed", steps, seed, show).run(moments)
    with _progress(quiet, "training, undisturbed", steps) as show:
        undisturbed = _supervisor(place, "undisturbed", steps, seed, show).run()
    return killed, undisturbed


def _supervisor(place: Path, store: str, steps: int, seed: int, show: Show) -> Supervisor:
    words = [sys.executable, str(script()), "--store", str(place / store)]
    words += ["--steps", str(steps), "--save-every", str(SAVE_STEPS), "--seed", str(seed)]
    return Supervisor(words, Ledger(place / store), place / f"{store}.log", show)


def script() -> Path:
    """The training script: of this clone, or the copy that a wheel brings."""
    here = Path(__file__).resolve()
    clone = here.parents[3] / "examples" / "gpt.py"
    return clone if clone.is_file() else here.with_name("_gpt.py")


@contextmanager
def _progress(quiet: bool, what: str, steps: int) -> Iterator[Show]:
    console = output.console()
    columns = (TextColumn("{task.description:22}"), BarColumn(28), MofNCompleteColumn(), TimeElapsedColumn())
    begin = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as view:
        task = view.add_task(what, total=steps)

        def show(step: int, kill: Kill | None) -> None:
            view.update(task, completed=step)
            if kill is not None and not quiet:
                view.console.print(_sentence(kill))

        yield show
    if not quiet:
        output.say(f"{what}: done in {time.monotonic() - begin:.0f} s")


def _sentence(kill: Kill) -> str:
    where = "in the middle of a save" if kill.in_save else "between saves"
    return f"  killed after step {kill.step} {where}; resumed at step {kill.resumed_at}"


def _report(killed: Outcome, undisturbed: Outcome) -> None:
    output.say("")
    rows = [
        (number, kill.step, "save" if kill.in_save else "step", kill.resumed_at, kill.lost, f"{kill.seconds:.1f} s")
        for number, kill in enumerate(killed.kills, 1)
    ]
    if rows:
        names = ["kill", "after step", "during a", "resumed at", "steps lost", "back at work after"]
        output.table(names, rows, right=names[:2] + names[3:])
        output.say("")
    output.table(
        ["", "with kills", "undisturbed"], list(zip(_LABELS, _facts(killed), _facts(undisturbed), strict=True))
    )
    output.say("")
    found = differences(killed.result, undisturbed.result)
    lost = sum(kill.lost for kill in killed.kills)
    output.say("NOT EQUAL: " + "; ".join(found) if found else _verdict(len(killed.kills), lost))


def _verdict(kills: int, lost: int) -> str:
    return f"Equal, bit for bit: weights, optimizer and loss, after {kills} kills; {lost} steps were made twice."


_LABELS = ("checkpoints made", "stored", "with torch.save", "stall per save", "time", "final loss", "weights")


def _facts(outcome: Outcome) -> list[str]:
    """The column of one training, as `_LABELS` has the rows."""
    stalls = [one.stall for one in outcome.saved] or [0.0]
    result = outcome.result
    return [
        f"{len(outcome.saved)}",
        output.size(sum(one.stored for one in outcome.saved)),
        output.size(sum(one.logical for one in outcome.saved)),
        f"{statistics.median(stalls) * 1000:.0f} ms, longest {max(stalls) * 1000:.0f} ms",
        f"{outcome.seconds:.0f} s",
        f"{result.loss} at step {result.step}",
        result.weights[:16],
    ]


def _report_json(killed: Outcome, undisturbed: Outcome) -> None:
    found = differences(killed.result, undisturbed.result)
    output.print_json(
        {"equal": not found, "differences": found, "killed": asdict(killed), "undisturbed": asdict(undisturbed)}
    )
