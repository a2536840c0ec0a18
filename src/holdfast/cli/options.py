"""Options that all commands share."""

from __future__ import annotations

from typing import Annotated

import typer

StoreOption = Annotated[str, typer.Option("--store", help="Folder of the store.", show_default=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
ReferenceArgument = Annotated[
    str, typer.Argument(help="Such as gpt2, run-003@500, @last, @best:val_loss, a tag, an id.")
]
RunArgument = Annotated[str, typer.Argument(help="A run: its name or run-003; the newest one if left out.")]

DEFAULT_STORE = "checkpoints"
