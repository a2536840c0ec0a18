"""What of a stored document a rank may have or not: objects, and the names within modules and optimizers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from holdfast.values import Json

Entry = tuple[str, ...]
"""A path in the document."""

_BY_NAME = ("state", "trainable", "extra")
"""Sections of a module, with an entry for each of its names."""


def entries(objects: Mapping[str, Any]) -> Iterator[Entry]:
    """All entries, in the order of the document."""
    for name, stored in objects.items():
        yield (name,)
        data = stored["data"]
        if _is_module(data):
            yield from ((name, section, key) for section in _BY_NAME for key in data[section])
        if _has_groups(data):
            yield from ((name, "groups", *parameter) for group in data["groups"] for parameter in _parameters(group))


def without(objects: Mapping[str, Any], gone: Collection[Entry]) -> dict[str, Any]:
    """The document without some entries; what belongs to a parameter goes with it."""
    if not gone:
        return dict(objects)
    kept = {name: stored for name, stored in objects.items() if (name,) not in gone}
    return {name: {**stored, "data": _without(name, stored["data"], gone)} for name, stored in kept.items()}


def _without(name: str, data: Json, gone: Collection[Entry]) -> Json:
    if _is_module(data):
        return data | {
            section: {key: item for key, item in data[section].items() if (name, section, key) not in gone}
            for section in _BY_NAME
        }
    if _has_groups(data) and "state" in data:
        groups = [group | {"params": _kept(name, group["params"], gone)} for group in data["groups"]]
        state = {
            owner: {key: item for key, item in states.items() if (name, "groups", owner, key) not in gone}
            for owner, states in data["state"].items()
        }
        return data | {"groups": groups, "state": {owner: states for owner, states in state.items() if states}}
    return data


def _kept(name: str, parameters: list[list[str]], gone: Collection[Entry]) -> list[list[str]]:
    return [one for one in parameters if (name, "groups", *one) not in gone]


def _parameters(group: Any) -> list[list[str]]:
    """Of an optimizer whose state is read directly, or of one that brings its own."""
    return list(group["params"]) if isinstance(group, dict) else list(group)


def _is_module(data: Json) -> bool:
    return isinstance(data, dict) and all(isinstance(data.get(section), dict) for section in _BY_NAME)


def _has_groups(data: Json) -> bool:
    """Whether it is an optimizer's; other objects may have groups of their own."""
    if not isinstance(data, dict) or not isinstance(data.get("groups"), list):
        return False
    return all(isinstance(g, list) or (isinstance(g, dict) and "params" in g) for g in data["groups"])
