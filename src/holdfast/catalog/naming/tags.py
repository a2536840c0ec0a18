"""Tags: names that point at one record and never move.

Their file names are lowercase, so two tags never differ in case alone, on
whatever filesystem; the object keeps the spelling of its maker.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.objects import DamagedObject, create_once, load, load_each
from holdfast.catalog.readers import check_present
from holdfast.clock import utc_now
from holdfast.errors import BeingDeleted, Damaged, Missing, NameTaken, ObjectExists, ObjectMissing, UnknownReference
from holdfast.ids import ObjectName, RecordAddress, TagName, nonce
from holdfast.records import Tag, Target

if TYPE_CHECKING:
    from holdfast.catalog.store import Store

_TAG = re.compile(r"catalog/tags/([a-z0-9._+=-]+)\.json")


class Tags(NamedTuple):
    """All tags of a store, read at one time."""

    tags: list[Tag]
    """Those that can be read, by name."""
    damaged: list[DamagedObject]

    def by_record(self) -> dict[str, list[str]]:
        """The names of the tags of each record, by record id."""
        names: dict[str, list[str]] = {}
        for tag in self.tags:
            names.setdefault(tag.target.id, []).append(tag.tag)
        return names


def create_tag(store: Store, name: TagName, address: RecordAddress, *, note: str = "") -> Tag:
    """Gives a record a name: atomic, durable, and no sweep deletes the record from then on.

    The tag is written first and the sweeps' announcements are read after, as sweeps write theirs
    first and read tags after: whoever comes second sees the first.

    Raises:
        NameTaken: there is a tag of this name, maybe in other letter case.
        BeingDeleted: a sweep is about to delete the record; no tag was left behind.
        Missing: there is no such record; no tag was left behind.
    """
    check_present(store, [address])
    tag = Tag(tag=str(name), target=Target.of(address), created=utc_now(), note=note, attempt=nonce())
    try:
        create_once(store.storage, layout.tag(name), tag)
    except ObjectExists:
        raise NameTaken(f"there is a tag {name!s} already{_target(store, name)}; tags do not move") from None
    try:
        check_present(store, [address])
    except (BeingDeleted, Missing):
        store.storage.delete([layout.tag(name)])
        raise
    return tag


def read_tags(store: Store) -> Tags:
    """All tags by name; a damaged one is part of the answer, never raised."""
    tags, damaged = load_each(store.storage, _names(store), Tag)
    return Tags(sorted(tags, key=lambda tag: tag.tag.lower()), damaged)


def find_tag(store: Store, name: TagName) -> Tag | None:
    """The tag of this name in any letter case; None if there is none.

    Raises:
        Damaged: it is there and cannot be read.
    """
    try:
        return load(store.storage, layout.tag(name), Tag)
    except ObjectMissing:
        return None


def delete_tag(store: Store, name: TagName) -> None:
    """Removes a tag, a damaged one too; the record stays until a policy or a person deletes it.

    Raises:
        UnknownReference: there is no tag of this name.
    """
    if layout.tag(name) not in _names(store):
        raise UnknownReference(f"no tag {name!s} in {store.url}; list them with 'holdfast tag'")
    store.storage.delete([layout.tag(name)])


def _names(store: Store) -> list[ObjectName]:
    return [listed.name for listed in store.storage.list(layout.TAGS) if _TAG.fullmatch(listed.name)]


def _target(store: Store, name: TagName) -> str:
    try:
        tag = find_tag(store, name)
    except Damaged:
        return " (damaged)"
    return "" if tag is None else f" ({tag.tag}: {tag.target.address})"
