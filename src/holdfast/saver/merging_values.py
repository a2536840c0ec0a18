"""Plain values of all ranks, put together: what one rank alone has is added, what several have must be the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from holdfast.errors import SaveFailed

_MODULE = ("state", "trainable", "extra")
"""What of a module is by name: pipeline stages have parts of one."""


def merge_values(texts: Mapping[int, bytes]) -> bytes:
    """One document for all ranks.

    Objects are joined by name, and so are the names in a module and the parameters of an optimizer. Of everything
    else that two ranks have under one name they must have the same.

    Args:
        texts: different documents, by the first rank that has each.

    Raises:
        SaveFailed: ranks have other values under one name; it is said which.
    """
    (first, text), *others = texts.items()
    if not others:
        return text
    joined = json.loads(text)
    for rank, other in others:
        joined = _Joining(first, rank).documents(joined, json.loads(other))
    return json.dumps(joined, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class _Joining:
    """What some ranks have, with what one more has."""

    def __init__(self, first: int, rank: int) -> None:
        self._first, self._rank = first, rank

    def documents(self, a: Any, b: Any) -> Any:
        """Of a whole checkpoint."""
        return self._by_name(a, b, "", self._section)

    def _section(self, a: Any, b: Any, path: str) -> Any:
        if path == "/objects":
            return self._by_name(a, b, "", self._object)
        return self._by_name(a, b, path, self._values if path == "/values" else self._same)

    def _values(self, a: Any, b: Any, path: str) -> Any:
        if path in ("/values/user", "/values/files"):
            return self._by_name(a, b, path)
        return list(dict.fromkeys([*a, *b])) if path == "/values/empty_files" else self._same(a, b, path)

    def _object(self, a: Any, b: Any, path: str) -> Any:
        if a["kind"] != b["kind"] or a["kind"] not in ("module", "optimizer"):
            return self._same(a, b, path)
        join = self._module if a["kind"] == "module" else self._optimizer
        return {**a, "data": join(a["data"], b["data"], path)}

    def _module(self, a: Any, b: Any, path: str) -> Any:
        return {key: self._by_name(a[key], b[key], path) for key in _MODULE}

    def _optimizer(self, a: Any, b: Any, path: str) -> Any:
        if len(a["groups"]) != len(b["groups"]):
            return self._same(a, b, path)
        pairs = enumerate(zip(a["groups"], b["groups"], strict=True))
        groups = [self._group(x, y, f"{path}/groups/{i}") for i, (x, y) in pairs]
        state = self._by_name(a["state"], b["state"], path, lambda x, y, at: self._by_name(x, y, at))
        rest = {key: self._same(a[key], b.get(key), f"{path}/{key}") for key in a if key not in ("groups", "state")}
        return {"groups": groups, "state": state, **rest}

    def _group(self, a: Any, b: Any, path: str) -> Any:
        values = self._by_name(a["values"], b["values"], f"{path}/values")
        return {"params": [*a["params"], *(one for one in b["params"] if one not in a["params"])], "values": values}

    def _by_name(self, a: Any, b: Any, path: str, join: Any = None) -> Any:
        """What is under a name on one side only is taken; what is on both is joined, or must be the same."""
        if "$" in a or "$" in b:  # a mapping with keys that are no texts
            return self._same(a, b, path)
        join = join or self._same
        both = {key: join(a[key], b[key], f"{path}/{key}") for key in a if key in b}
        return {**a, **b, **both}

    def _same(self, a: Any, b: Any, path: str) -> Any:
        # As text: 1, 1.0 and True are equal, and are not the same.
        if json.dumps(a) != json.dumps(b):
            raise SaveFailed(_conflict(path.strip("/"), a, b, self._first, self._rank))
        return a


def _conflict(name: str, a: Any, b: Any, first: int, rank: int) -> str:
    name, a, b = _where(name, a, b)
    said = f"{name} is {_short(a)} on rank {first} and {_short(b)} on rank {rank}"
    if name.startswith("values/user/"):
        return f"{said}; ckpt.values are the same on all ranks: give what differs a name with the rank in it"
    return (
        f"{said}; if it belongs to each rank, wrap its object in holdfast.per_rank(); if they are parts of one model, "
        "give each rank names of its own with prefix="
    )


def _where(name: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """The innermost place in which two mappings differ, if they differ in one alone."""
    while isinstance(a, dict) and isinstance(b, dict) and "$" not in a and a.keys() == b.keys():
        odd = [key for key in a if json.dumps(a[key]) != json.dumps(b[key])]
        if len(odd) != 1:
            break
        name, a, b = name if odd[0] == "data" else f"{name}/{odd[0]}", a[odd[0]], b[odd[0]]
    return name, a, b


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
