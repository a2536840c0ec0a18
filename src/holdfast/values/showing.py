"""Tagged JSON for people, without torch and without the program that wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.errors import StateError
from holdfast.values import enums
from holdfast.values.reading import EXTRA, READERS, Reader, decode
from holdfast.values.writing import Json, text_of


def decode_or_show(data: Json) -> Any:
    """As `decode`, but what only the program that wrote it can make becomes a text for people.

    That is: tags that nobody registered here, and enums that are not imported or have lost the member.

    Raises:
        Corrupt: malformed.

    Example:
        >>> decode_or_show({"dtype": {"$": "my.dtype", "v": "bfloat16"}, "betas": {"$": "tuple", "v": [0.9, 0.95]}})
        {'dtype': 'my.dtype(bfloat16)', 'betas': (0.9, 0.95)}
    """
    return decode(data, readers=_SHOWN)


class _Shown(Mapping[str, Reader]):
    """Readers for every tag that the decoder would refuse, and for enums."""

    def __contains__(self, tag: object) -> bool:
        return tag in _ENUMS or not (tag in READERS or tag in EXTRA)

    def __getitem__(self, tag: str) -> Reader:
        return _enum if tag in _ENUMS else _label

    def __iter__(self) -> Iterator[str]:
        return iter(_ENUMS)

    def __len__(self) -> int:
        return len(_ENUMS)


_ENUMS = ("enum", "flag")
_SHOWN = _Shown()


def _enum(data: dict[str, Any]) -> object:
    try:
        return enums.read(data)
    except StateError:
        return _label(data)


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
