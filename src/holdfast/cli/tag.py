"""``holdfast tag``: give a checkpoint a name that does not move."""

from __future__ import annotations

from typing import Any

import typer

from holdfast.catalog.marks import unpin as lift_pins
from holdfast.catalog.naming.tags import create_tag, delete_tag, read_tags
from holdfast.catalog.store import Store
from holdfast.cli.finding import find_address, find_record, opened
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import ago, print_json, say, table
from holdfast.errors import InvalidInput
from holdfast.ids import ObjectName, RecordAddress, TagName
from holdfast.records import Tag


def command(
    reference: str | None = typer.Argument(None, help="The checkpoint to name; without it, the tags are listed."),
    name: str | None = typer.Argument(None, help="The tag."),
    note: str = typer.Option("", "--note", help="A few words to keep with the tag."),
    delete: str | None = typer.Option(None, "--delete", metavar="NAME", help="Remove this tag; the checkpoint stays."),
    unpin: str | None = typer.Option(None, "--unpin", metavar="REFERENCE", help="Lift the pins of this checkpoint."),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Name a checkpoint, list the tags, or remove one. A tagged checkpoint is never deleted by retention."""
    found = opened(store)
    if unpin is not None:
        _unpin(found, find_address(found, unpin), json)
    elif delete is not None:
        delete_tag(found, TagName(delete))
        _done({"deleted": delete}, f"tag {delete} is gone", json)
    elif reference is None:
        _list(store, json)
    elif name is None:
        raise InvalidInput(f"holdfast tag {reference}: the name of the tag is missing")
    else:
        made = create_tag(found, TagName(name), find_record(found, reference).address, note=note)
        _done({"tag": name, "target": str(made.target.address)}, f"{name} is {made.target.address}", json)


def _unpin(store: Store, address: RecordAddress, json: bool) -> None:
    lifted = lift_pins(store, address, by="user") is not None
    text = "is not pinned any more" if lifted else "has no pin"
    _done({"unpinned": str(address), "lifted": lifted}, f"{address} {text}", json)


def _list(store: str, json: bool) -> None:
    found = read_tags(opened(store))
    if json:
        damaged = [{"name": str(one.name), "error": str(one.error)} for one in found.damaged]
        print_json({"tags": [_row(one) for one in found.tags], "damaged": damaged})
        return
    if found.tags:
        rows = [(one.tag, one.target.address, ago(one.created), one.note) for one in found.tags]
        table(("tag", "checkpoint", "made", "note"), rows)
    elif not found.damaged:
        say("no tags yet")
    for one in found.damaged:
        say(f"damaged: {one.error}; make it again: holdfast tag --delete {_label(one.name)}, then holdfast tag")


def _row(one: Tag) -> dict[str, str]:
    return {"tag": one.tag, "target": str(one.target.address), "created": one.created, "note": one.note}


def _label(name: ObjectName) -> str:
    return name.leaf.removesuffix(".json")


def _done(document: dict[str, Any], text: str, json: bool) -> None:
    print_json(document) if json else say(text)
