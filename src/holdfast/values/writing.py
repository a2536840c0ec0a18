"""From values to tagged JSON."""

from __future__ import annotations

import base64
import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from holdfast.errors import UnsupportedValue
from holdfast.values import enums

Json = Any
"""What ``json.dumps`` takes with ``allow_nan=False``."""

Leaf = Callable[[object, str], Json]
"""Asked first for every value with its path; answers its JSON, or None for "not mine"."""

DEPTH = 64
"""Containers within containers; deeper is refused, so that no reader runs out of stack."""

_PLAIN_BITS = 8192
# Above about 4,300 digits Python refuses to turn text into an int; hexadecimal has no such limit.

FACTORIES: dict[str, type] = {cls.__name__: cls for cls in (list, int, dict, set, float, str)}
"""Of a defaultdict, by name."""

EXTRA: dict[type, tuple[str, Callable[[Any], object]]] = {}
"""Tag and codec of registered types."""


def encode(value: object, path: str = "", *, leaf: Leaf | None = None) -> Json:
    """The tagged JSON of ``value``; ``path`` is where it lies, for messages and for ``leaf``.

    Dictionary order and the difference between ``1``, ``1.0`` and ``True``,
    ``0.0`` and ``-0.0`` are kept; sets are written in a fixed order.

    Raises:
        UnsupportedValue: a type without codec, or a container that contains itself; the message has the path.
    """
    return _Encoder(leaf)(value, path)


def part(key: object) -> str:
    """A dictionary key as one part of a path: ``/`` and ``~`` escaped, other types than text marked.

    Example:
        >>> part("a/b"), part(3), part("3")
        ('a~1b', '~(3)', '3')
    """
    if isinstance(key, str):
        return _escaped(key) or "~2"
    return f"~({_escaped(text_of(encode(key)))})"


def join(path: str, key: object) -> str:
    """The path of what lies under ``key`` in the container at ``path``."""
    return f"{path}/{part(key)}" if path else part(key)


class _Encoder:
    def __init__(self, leaf: Leaf | None, depth: int = 0) -> None:
        self._leaf = leaf
        self._depth = depth
        self._open: set[int] = set()

    def __call__(self, value: object, path: str) -> Json:
        if self._leaf is not None and (found := self._leaf(value, path)) is not None:
            return found
        type_ = type(value)
        if scalar := _SCALARS.get(type_):
            return scalar(value)
        if container := _CONTAINERS.get(type_):
            with self._entered(value, path):
                return container(self, value, path)
        return self._other(value, path)

    def _other(self, value: object, path: str) -> Json:
        if isinstance(value, enum.Enum):
            return enums.write(value, path)
        if type(value) not in EXTRA:
            raise UnsupportedValue(_refusal(value, path))
        tag, to_json = EXTRA[type(value)]
        with self._entered(value, path):
            return {"$": tag, "v": self(to_json(value), path)}

    @contextmanager
    def _entered(self, value: object, path: str) -> Iterator[None]:
        if id(value) in self._open:
            raise UnsupportedValue(f"{path or 'the value'} contains itself; a checkpoint holds trees only")
        if self.depth >= DEPTH:
            raise UnsupportedValue(f"{path[:200]}... is nested more than {DEPTH} deep; flatten it")
        self._open.add(id(value))
        try:
            yield
        finally:
            self._open.discard(id(value))

    @property
    def depth(self) -> int:
        return self._depth + len(self._open)

    def apart(self, value: object, path: str) -> Json:
        # Without the caller's leaf: what is stored beside the tree cannot be hashed, and a set gives it no name.
        return _Encoder(None, self.depth)(value, path)

    def sequence(self, items: Iterable[object], path: str) -> list[Json]:
        return [self(item, f"{path}/{i}" if path else str(i)) for i, item in enumerate(items)]

    def mapping(self, value: dict[Any, Any], path: str) -> Json:
        if "$" not in value and all(type(key) is str and _utf8(key) for key in value):
            return {key: self(item, join(path, key)) for key, item in value.items()}
        return {"$": "dict", "v": self.items(value, path)}

    def items(self, value: dict[Any, Any], path: str) -> list[Json]:
        return [[self.key(key, path), self(item, join(path, key))] for key, item in value.items()]

    def key(self, key: object, path: str) -> Json:
        try:
            return self.apart(key, f"{path} (key)" if path else "(key)")
        except UnsupportedValue as error:
            raise UnsupportedValue(f"{error} (as the key of a dictionary)") from None

    def default(self, value: defaultdict[Any, Any], path: str) -> Json:
        factory = value.default_factory
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and FACTORIES.get(name) is not factory:
            raise UnsupportedValue(
                f"{path or 'a defaultdict'} has the factory {factory!r}, which cannot be stored; "
                f"use one of {', '.join(FACTORIES)}, or a dict"
            )
        return {"$": "defaultdict", "factory": name, "v": self.items(value, path)}


def _set_out(encoder: _Encoder, value: Iterable[object], path: str, *, tag: str) -> Json:
    # Iteration order of a set of texts differs from process to process; equal sets must give equal bytes.
    where = f"{path} (in a set)" if path else "(in a set)"
    return {"$": tag, "v": sorted((encoder.apart(item, where) for item in value), key=text_of)}


def _float_out(value: float) -> Json:
    if math.isfinite(value):
        return value
    return {"$": "float", "v": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def _int_out(value: int) -> Json:
    return value if value.bit_length() <= _PLAIN_BITS else {"$": "int", "v": hex(value)}


def _str_out(value: str) -> Json:
    return value if _utf8(value) else {"$": "str", "v": _base64(value.encode("utf-8", "surrogatepass"))}


def _datetime_out(value: datetime) -> Json:
    zone = value.tzinfo
    if zone is not None and type(zone) is not timezone:
        raise UnsupportedValue(f"a datetime in the zone {zone!r} cannot be stored; use .astimezone(timezone.utc)")
    naive = value.replace(tzinfo=None, fold=0).isoformat()
    return {"$": "datetime", "v": naive, "fold": value.fold, "zone": None if zone is None else _timezone_out(zone)}


def _timezone_out(value: timezone) -> Json:
    offset = _timedelta_out(value.utcoffset(None))
    # A timezone with a name of its own prints it; the others derive theirs from the offset.
    name = value.tzname(None)
    return {
        "$": "timezone",
        "v": offset,
        "name": None if timezone(value.utcoffset(None)).tzname(None) == name else name,
    }


def _timedelta_out(value: timedelta) -> Json:
    return {"$": "timedelta", "v": [value.days, value.seconds, value.microseconds]}


def _plain(value: object) -> Json:
    return value


def _refusal(value: object, path: str) -> str:
    what = f"{path or 'the value'} is a {enums.class_name(type(value))}, which has no codec"
    if isinstance(value, (dict, list, tuple, set, frozenset, str, int, float, bytes)):
        base = next(b for b in type(value).__mro__ if b in _SCALARS or b in _CONTAINERS)
        return f"{what}; convert it to a plain {base.__name__}, or use holdfast.values.register"
    return f"{what}; store plain values, or teach it with holdfast.values.register"


def text_of(data: Json) -> str:
    """Compact JSON; the same for equal data."""
    return json.dumps(data, separators=(",", ":"))


def _escaped(text: str) -> str:
    return text.replace("~", "~0").replace("/", "~1")


def _utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


def _v(tag: str, inner: Json) -> Json:
    return {"$": tag, "v": inner}


_SCALARS: dict[type, Callable[[Any], Json]] = {
    type(None): _plain,
    bool: _plain,
    int: _int_out,
    float: _float_out,
    str: _str_out,
    complex: lambda z: _v("complex", [_float_out(z.real), _float_out(z.imag)]),
    bytes: lambda b: _v("bytes", _base64(b)),
    bytearray: lambda b: _v("bytearray", _base64(b)),
    datetime: _datetime_out,
    date: lambda d: _v("date", d.isoformat()),
    timedelta: _timedelta_out,
    timezone: _timezone_out,
    range: lambda r: _v("range", [_int_out(r.start), _int_out(r.stop), _int_out(r.step)]),
    type(Path()): lambda p: _v("path", _str_out(str(p))),
    PurePosixPath: lambda p: _v("posixpath", _str_out(str(p))),
    PureWindowsPath: lambda p: _v("windowspath", _str_out(str(p))),
}

_CONTAINERS: dict[type, Callable[[_Encoder, Any, str], Json]] = {
    list: _Encoder.sequence,
    dict: _Encoder.mapping,
    tuple: lambda e, v, p: _v("tuple", e.sequence(v, p)),
    set: partial(_set_out, tag="set"),
    frozenset: partial(_set_out, tag="frozenset"),
    deque: lambda e, v, p: _v("deque", e.sequence(v, p)) | {"maxlen": v.maxlen},
    Counter: lambda e, v, p: _v("counter", e.items(v, p)),
    OrderedDict: lambda e, v, p: _v("ordereddict", e.items(v, p)),
    defaultdict: _Encoder.default,
    slice: lambda e, v, p: _v("slice", e.sequence((v.start, v.stop, v.step), p)),
}
