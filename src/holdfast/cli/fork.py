"""``holdfast fork``: a new run that begins at a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.catalog.naming.forks import fork
from holdfast.cli.finding import find_record, opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, ReferenceArgument, StoreOption
from holdfast.cli.output import print_json, say


def command(
    reference: ReferenceArgument,
    name: Annotated[str, typer.Argument(help="The name of the new run.")],
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Begin a new run at a checkpoint; nothing is copied. Train on with run=NAME."""
    found = opened(store)
    record = find_record(found, reference)
    made = fork(found, str(record.id), name)
    if json:
        print_json({"run": str(made.number), "name": name, "forked_from": str(record.address)})
    else:
        say(f"{made.number} {name} begins at {record.address}; train on with run={name!r}")
