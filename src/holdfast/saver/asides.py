"""Small things that a trainer wants for a record which may still be in the making: they come after it, in order."""

from __future__ import annotations

import contextlib

import msgspec

from holdfast import values
from holdfast.catalog.marks import add_mark, add_metrics
from holdfast.catalog.naming.tags import create_tag, read_tags
from holdfast.catalog.store import Store
from holdfast.errors import BeingDeleted, Missing, NameTaken
from holdfast.ids import TagName
from holdfast.records import MarkKind, Target
from holdfast.saver import messages


def pack_metrics(metrics: dict[str, object]) -> bytes:
    """Metrics as they travel."""
    return msgspec.json.encode(values.encode(metrics))


def add(store: Store, aside: messages.Aside) -> None:
    """Does what one message asks for.

    Raises:
        NameTaken: another record has the name.
        Missing, BeingDeleted: the record was never made, or somebody has deleted it.
        StorageError: not known to be written.
    """
    match aside:
        case messages.AddTag():
            add_tag_of(store, aside.target, TagName(aside.tag))
        case messages.AddMark():
            add_mark_of(store, aside.target, MarkKind(aside.kind))
        case messages.AddMetrics():
            add_metrics_of(store, aside.target, aside.metrics)


def add_mark_of(store: Store, target: Target, kind: MarkKind) -> None:
    """Adds a fact about the record.

    Raises:
        Missing, BeingDeleted: it was never made, or somebody has deleted it; not for ``good``: that comes so many steps
            later that retention may have been faster, and nothing is lost by it.
        StorageError: not known to be written.
    """
    with contextlib.suppress(*((Missing, BeingDeleted) if kind is MarkKind.GOOD else ())):
        add_mark(store, target.address, kind, by="health")


def add_metrics_of(store: Store, target: Target, metrics: bytes) -> None:
    """Adds metrics that were measured after the save.

    Raises:
        Missing, BeingDeleted: the record was never made, or somebody has deleted it.
        StorageError: not known to be written.
    """
    add_metrics(store, target.address, values.decode(msgspec.json.decode(metrics)), by="log")


def add_tag_of(store: Store, target: Target, tag: TagName) -> None:
    """Names the record.

    Raises:
        NameTaken: another record has the name.
        Missing, BeingDeleted: the record was never made, or somebody has deleted it.
    """
    try:
        create_tag(store, tag, target.address)
    except NameTaken:
        # A saver that was killed right after it may have made it.
        if not any(one.tag == str(tag) and one.target == target for one in read_tags(store).tags):
            raise
