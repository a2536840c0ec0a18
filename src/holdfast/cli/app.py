"""All commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import gc as garbage
import json
import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from holdfast import __version__
from holdfast.cli import demo, fork, gc, log, ls, plan, recode, rm, runs, show, tag, verify, why
from holdfast.cli.output import PipeClosed, explain, say
from holdfast.errors import HoldfastError

CANCELLED = 130
"""Exit code after Ctrl-C, as shells have it."""

PIPE_CLOSED = 141
"""Exit code when whoever read our output has gone, as shells have it."""

USAGE = "usage"
"""What stands for the kind of the error where the command line itself was wrong."""

_WRONG_CALL: Any = typer.BadParameter.__mro__[1]
"""UsageError; newer versions of typer carry a copy of click of their own."""

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


def _say_version(asked: bool) -> None:
    if asked:
        say(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


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
    as_json = "--json" in arguments
    try:
        code = app(arguments, prog_name="holdfast", standalone_mode=False)
    except HoldfastError as error:
        _print_json(error.kind, str(error), error.exit_code) if as_json else explain(str(error), error.kind)
        return error.exit_code
    except _WRONG_CALL as error:
        _print_json(USAGE, error.format_message(), error.exit_code) if as_json else error.show()
        return int(error.exit_code)
    return code or 0  # commands give None; that of typer.Exit comes through


def _print_json(kind: str, message: str, code: int) -> None:
    sys.stderr.write(json.dumps({"error": kind, "message": message, "exit_code": code}) + "\n")


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
