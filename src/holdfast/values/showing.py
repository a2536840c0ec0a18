"""Tagged JSON for people, without torch and without the program that wrote it."""

from __future__ import annotations

from typing import Any

from holdfast.values.writing import Json, text_of


def display(data: Json) -> Json:
    """Tagged JSON as plain JSON for people: never fails on a tag, needs no torch, cannot be read back."""
    if isinstance(data, list):
        return [display(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "$" not in data:
        return {key: display(item) for key, item in data.items()}
    return _shown(str(data["$"]), {key: item for key, item in data.items() if key != "$"})


def _shown(tag: str, rest: dict[str, Any]) -> Json:
    inner = rest.get("v")
    if tag in ("dict", "ordereddict", "counter", "defaultdict") and isinstance(inner, list):
        return {_label(key): display(item) for key, item in inner}
    if tag in ("tuple", "set", "frozenset", "deque") and isinstance(inner, list):
        return [display(item) for item in inner]
    if tag in ("float", "path", "posixpath", "windowspath", "date", "datetime"):
        return inner
    if tag in ("bytes", "bytearray") and isinstance(inner, str):
        return f"<{len(inner) * 3 // 4 - inner.count('=')} bytes>"
    if tag in ("enum", "flag"):
        return f"{str(rest.get('type')).rpartition(':')[2]}.{'|'.join(map(str, inner or []))}"
    if tag == "complex" and isinstance(inner, list):
        return "{}{:+}j".format(*(float(item["v"]) if isinstance(item, dict) else item for item in inner))
    return _unknown(tag, rest)


def _unknown(tag: str, rest: dict[str, Any]) -> Json:
    if tag == "tensor":
        return f"<tensor {rest.get('name')}>"
    shown = {key: display(item) for key, item in rest.items()}
    if set(shown) == {"v"} and isinstance(shown["v"], (str, int, float)):
        return f"{tag}({shown['v']})"
    return {tag: shown["v"] if set(shown) == {"v"} else shown}


def _label(key: Json) -> str:
    shown = display(key)
    return shown if isinstance(shown, str) else text_of(shown)
