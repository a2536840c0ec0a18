"""Plain values of all ranks, put together: what one rank alone has is added, what several have must be the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from holdfast.errors import SaveFailed


def merge_values(texts: Mapping[int, bytes]) -> bytes:
    """One document for all ranks.

    Objects are joined by name, the entries of a module and the parameters of an optimizer too: pipeline stages have
    parts of one model.

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
        joined = _joined(joined, json.loads(other), "", first, rank)
    return json.dumps(joined, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _joined(a: Any, b: Any, path: str, first: int, rank: int) -> Any:
    if a == b:
        return a
    if isinstance(a, dict) and isinstance(b, dict) and ("$" not in a and "$" not in b):
        keys = [*a, *(key for key in b if key not in a)]
        return {
            key: _joined(a[key], b[key], f"{path}/{key}", first, rank) if key in a and key in b else (a | b)[key]
            for key in keys
        }
    if isinstance(a, list) and isinstance(b, list):
        if path.endswith(("/params", "/empty_files")):
            return [*a, *(one for one in b if one not in a)]
        if path.endswith("/groups") and len(a) == len(b):
            return [_joined(x, y, f"{path}/{i}", first, rank) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    raise SaveFailed(_conflict(path, a, b, first, rank))


def _conflict(path: str, a: Any, b: Any, first: int, rank: int) -> str:
    name = path.removeprefix("/objects/").replace("/data/", "/", 1).strip("/")
    said = f"{name} is {_short(a)} on rank {first} and {_short(b)} on rank {rank}"
    if name.startswith("values/user/"):
        return f"{said}; ckpt.values are the same on all ranks: give what differs a name with the rank in it"
    return (
        f"{said}; if it belongs to each rank, wrap its object in holdfast.per_rank(); if they are parts of one model, "
        "give each rank names of its own with prefix="
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
