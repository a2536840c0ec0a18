"""All commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import gc as garbage
import json
import os
import sys
from io import TextIOWrapper

import typer

from holdfast.cli import demo, fork, gc, log, ls, plan, recode, rm, runs, show, tag, verify, why
from holdfast.cli.output import PipeClosed, explain
from holdfast.errors import HoldfastError

CANCELLED = 130
"""Exit code after Ctrl-C, as shells have it."""

PIPE_CLOSED = 141
"""Exit code when whoever read our output has gone, as shells have it."""

app = typer.Typer(
    name="holdfast",
    help="Checkpoints that survive: look at them, check them, name them, fork them, throw them away safely.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
for module in (runs, ls, show, log, verify, why, plan, tag, fork, rm, gc, recode, demo):
    app.command(name=module.__name__.rpartition(".")[2])(module.command)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits: 0, the code of the error (docs/errors.md), 2 for a wrong call, 130 after Ctrl-C."""
    _prepare()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """As `main`, but gives the exit code."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (PipeClosed, BrokenPipeError):
        _drop_output()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return CANCELLED
    return code


def _run(arguments: list[str]) -> int:
    try:
        # Wrong calls end in SystemExit there; our errors come through.
        app(arguments, prog_name="holdfast")
    except HoldfastError as error:
        _explain(error, as_json="--json" in arguments)
        return error.exit_code
    except SystemExit as end:
        return _code(end)
    return 0


def _code(end: SystemExit) -> int:
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _explain(error: HoldfastError, *, as_json: bool) -> None:
    if as_json:
        document = {"error": error.kind, "message": str(error), "exit_code": error.exit_code}
        sys.stderr.write(json.dumps(document) + "\n")
    else:
        explain(str(error), error.kind)


def _prepare() -> None:
    """For a process that runs one command and ends."""
    garbage.set_threshold(100_000)  # ten thousand records in one list are no garbage; looking costs a third of `ls`
    # A terminal that cannot show a letter gets an escape instead of a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What is still in the buffer has nobody to go to, and must not fail once more at the exit."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 -- it is no file
        os.dup2(nothing.fileno(), sys.stdout.fileno())
