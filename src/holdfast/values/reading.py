"""From tagged JSON to values."""

from __future__ import annotations

import base64
import binascii
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from holdfast.errors import Corrupt, HoldfastError, UnknownFormat
from holdfast.values import enums
from holdfast.values.writing import DEPTH, FACTORIES, Json

Reader = Callable[["dict[str, Any]"], object]
"""Makes a value of a tagged object."""

EXTRA: dict[str, tuple[str, Callable[[Any], object]]] = {}
"""By tag: the class and the codec of registered types."""

_SMALL = 8
# A value that contains nothing may still be several levels of JSON: a datetime has a zone, and that an offset.


def decode(data: Json, *, readers: Mapping[str, Reader] | None = None) -> Any:
    """The value of tagged JSON; ``readers`` serves tags of the caller's own ``leaf``.

    Raises:
        UnknownFormat: a tag that nobody registered.
        StateError: an enum that the program has not imported, or that has lost the member.
        Corrupt: malformed.
    """
    return _Decoder(readers or {})(data)


class _Decoder:
    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self._readers = readers
        self._depth = 0

    def __call__(self, data: Json) -> Any:
        if isinstance(data, (str, int, float)) or data is None:
            return data
        self._depth += 1
        if self._depth > DEPTH + _SMALL:
            raise Corrupt(f"a stored value is nested more than {DEPTH} deep")
        try:
            return self._container(data)
        finally:
            self._depth -= 1

    def _container(self, data: Json) -> Any:
        if isinstance(data, list):
            return [self(item) for item in data]
        if not isinstance(data, dict):
            raise Corrupt(f"{type(data).__name__} is not JSON")
        if "$" not in data:
            return {key: self(item) for key, item in data.items()}
        try:
            return self._tagged(data["$"], data)
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            if isinstance(error, HoldfastError):
                raise
            raise Corrupt(f"a stored value with the tag {data['$']!r} is malformed: {error}") from error

    def _tagged(self, tag: str, data: dict[str, Any]) -> Any:
        if tag in self._readers:
            return self._readers[tag](data)
        if tag in READERS:
            return READERS[tag](self, data)
        if tag in EXTRA:
            return EXTRA[tag][1](self(data["v"]))
        raise UnknownFormat(f"a stored value has the tag {tag!r}, which nobody here registered; import what wrote it")

    def pairs(self, data: dict[str, Any]) -> list[tuple[Any, Any]]:
        return [(self(key), self(item)) for key, item in data["v"]]


def _float_in(data: dict[str, Any]) -> float:
    if data["v"] not in ("nan", "inf", "-inf"):
        raise ValueError(f"not a float: {data['v']!r}")
    return float(data["v"])


def _datetime_in(decoder: _Decoder, data: dict[str, Any]) -> datetime:
    zone = None if data["zone"] is None else decoder(data["zone"])
    return datetime.fromisoformat(data["v"]).replace(tzinfo=zone, fold=data["fold"])


def _timezone_in(decoder: _Decoder, data: dict[str, Any]) -> timezone:
    offset = decoder(data["v"])
    return timezone(offset) if data["name"] is None else timezone(offset, data["name"])


def _defaultdict_in(decoder: _Decoder, data: dict[str, Any]) -> defaultdict[Any, Any]:
    factory = None if data["factory"] is None else FACTORIES[data["factory"]]
    return defaultdict(factory, decoder.pairs(data))


def _counter_in(decoder: _Decoder, data: dict[str, Any]) -> Counter[Any]:
    return Counter(dict(decoder.pairs(data)))


def _bytes_in(data: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(data["v"], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


READERS: dict[str, Callable[[_Decoder, dict[str, Any]], object]] = {
    "float": lambda _, d: _float_in(d),
    "int": lambda _, d: int(d["v"], 16),
    "str": lambda _, d: _bytes_in(d).decode("utf-8", "surrogatepass"),
    "complex": lambda c, d: complex(*map(c, d["v"])),
    "bytes": lambda _, d: _bytes_in(d),
    "bytearray": lambda _, d: bytearray(_bytes_in(d)),
    "datetime": _datetime_in,
    "date": lambda _, d: date.fromisoformat(d["v"]),
    "timedelta": lambda _, d: timedelta(*d["v"]),
    "timezone": _timezone_in,
    "range": lambda c, d: range(*map(c, d["v"])),
    "slice": lambda c, d: slice(*map(c, d["v"])),
    "path": lambda c, d: Path(c(d["v"])),
    "posixpath": lambda c, d: PurePosixPath(c(d["v"])),
    "windowspath": lambda c, d: PureWindowsPath(c(d["v"])),
    "tuple": lambda c, d: tuple(map(c, d["v"])),
    "set": lambda c, d: set(map(c, d["v"])),
    "frozenset": lambda c, d: frozenset(map(c, d["v"])),
    "deque": lambda c, d: deque(map(c, d["v"]), d["maxlen"]),
    "dict": lambda c, d: dict(c.pairs(d)),
    "ordereddict": lambda c, d: OrderedDict(c.pairs(d)),
    "counter": _counter_in,
    "defaultdict": _defaultdict_in,
    "enum": lambda _, d: enums.read(d),
    "flag": lambda _, d: enums.read(d),
}
