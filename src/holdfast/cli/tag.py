"""``holdfast tag``: give a checkpoint a name that does not move."""

from __future__ import annotations

import typer

from holdfast.catalog.naming.tags import create_tag, delete_tag, read_tags
from holdfast.cli.finding import find_record, opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import ago, print_json, say, table
from holdfast.errors import InvalidInput
from holdfast.ids import ObjectName, TagName


def command(
    reference: str | None = typer.Argument(None, help="The checkpoint to name; without it, the tags are listed."),
    name: str | None = typer.Argument(None, help="The tag."),
    note: str = typer.Option("", "--note", help="A few words to keep with the tag."),
    delete: str | None = typer.Option(None, "--delete", metavar="NAME", help="Remove this tag; the checkpoint stays."),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Name a checkpoint, list the tags, or remove one. A tagged checkpoint is never deleted by retention."""
    found = opened(store)
    if delete is not None:
        delete_tag(found, TagName(delete))
        _done({"deleted": delete}, f"tag {delete} is gone", json)
    elif reference is None:
        _list(store, json)
    elif name is None:
        raise InvalidInput(f"holdfast tag {reference}: the name of the tag is missing")
    else:
        made = create_tag(found, TagName(name), find_record(found, reference).address, note=note)
        _done({"tag": name, "target": str(made.target.address)}, f"{name} is {made.target.address}", json)


def _list(store: str, json: bool) -> None:
    found = read_tags(opened(store))
    rows = [(one.tag, str(one.target.address), ago(one.created), one.note) for one in found.tags]
    if json:
        keys = ("tag", "target", "created", "note")
        damaged = [{"name": str(one.name), "error": str(one.error)} for one in found.damaged]
        print_json({"tags": [dict(zip(keys, row, strict=True)) for row in rows], "damaged": damaged})
        return
    if rows:
        table(("tag", "checkpoint", "made", "note"), rows)
    elif not found.damaged:
        say("no tags yet")
    for one in found.damaged:
        say(f"damaged: {one.error}; make it again: holdfast tag --delete {_label(one.name)}, then holdfast tag")


def _label(name: ObjectName) -> str:
    return name.leaf.removesuffix(".json")


def _done(document: dict[str, str], text: str, json: bool) -> None:
    print_json(document) if json else say(text)
