"""Plain values as tagged JSON, and back, without loss and without pickle.

``None``, ``bool``, ``str``, finite ``float``, ``int``, ``list`` and ``dict`` with
text keys are themselves in JSON. Everything else is an object whose key ``$``
is a tag, such as ``{"$": "tuple", "v": [1, 2]}``; docs/format.md, "Values", has
the table. JSON alone would not do: it has no NaN, no tuple and no integer key
(``MultiStepLR.milestones`` is a Counter with integer keys), and msgpack refuses
the 128-bit integers in NumPy's generators.

Dispatch is by exact type: a subclass may carry what the codec does not see, so
it is refused with its path unless it was registered. An object that is reached
twice is written twice. Reading never imports a module and never calls anything
that the stored text names, except enum classes that the program has imported.

Example:
    >>> import json
    >>> text = json.dumps(encode({"betas": (0.9, 0.999), 7: {"b", "a"}, "best": float("nan")}))
    >>> decode(json.loads(text))
    {'betas': (0.9, 0.999), 7: {'a', 'b'}, 'best': nan}
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
import math
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from holdfast.errors import Corrupt, HoldfastError, InvalidInput, StateError, UnknownFormat, UnsupportedValue

Json = Any
"""What ``json.dumps`` takes with ``allow_nan=False``."""

Leaf = Callable[[object, str], Json]
"""Asked first for every value with its path; answers its JSON, or None for "not mine"."""

Reader = Callable[["dict[str, Any]"], object]
"""Makes a value of a tagged object."""

DEPTH = 64
"""Containers within containers; deeper is refused, so that no reader runs out of stack."""

_PLAIN_BITS = 8192
# Above about 4,300 digits Python refuses to turn text into an int; hexadecimal has no such limit.

_TAG = re.compile(r"[a-z][a-z0-9_.-]*")
_FACTORIES: dict[str, type] = {cls.__name__: cls for cls in (list, int, dict, set, float, str)}


def encode(value: object, path: str = "", *, leaf: Leaf | None = None) -> Json:
    """The tagged JSON of ``value``; ``path`` is where it lies, for messages and for ``leaf``.

    Dictionary order and the difference between ``1``, ``1.0`` and ``True``,
    ``0.0`` and ``-0.0`` are kept; sets are written in a fixed order.

    Raises:
        UnsupportedValue: a type without codec, or a container that contains itself; the message has the path.
    """
    return _Encoder(leaf)(value, path)


def decode(data: Json, *, readers: Mapping[str, Reader] | None = None) -> Any:
    """The value of tagged JSON; ``readers`` serves tags of the caller's own ``leaf``.

    Raises:
        UnknownFormat: a tag that nobody registered.
        StateError: an enum that the program has not imported, or that has lost the member.
        Corrupt: malformed.
    """
    return _Decoder(readers or {})(data)


def register(type_: type, tag: str, to_json: Callable[[Any], object], from_json: Callable[[Any], object]) -> None:
    """Teaches the codec one more type (exactly this, not its subclasses).

    ``to_json`` gives any value that the codec can write; ``from_json`` gets that
    value back. Not thread-safe: register where the type is defined.

    Raises:
        InvalidInput: the tag is malformed, built in, or taken by another type.

    Example:
        >>> from fractions import Fraction
        >>> register(Fraction, "example.fraction", lambda f: (f.numerator, f.denominator), lambda p: Fraction(*p))
        >>> decode(encode([Fraction(1, 3)]))
        [Fraction(1, 3)]
    """
    if not _TAG.fullmatch(tag) or tag in _RESERVED or tag in _READERS:
        raise InvalidInput(f"{tag!r} cannot be the tag of {_name(type_)}: malformed or built in")
    if tag in _EXTRA_READERS and _EXTRA_READERS[tag][0] != _name(type_):
        raise InvalidInput(f"the tag {tag!r} belongs to {_EXTRA_READERS[tag][0]} already")
    _EXTRA_WRITERS[type_] = (tag, to_json)
    _EXTRA_READERS[tag] = (_name(type_), from_json)


def part(key: object) -> str:
    """A dictionary key as one part of a path: ``/`` and ``~`` escaped, other types than text marked.

    Example:
        >>> part("a/b"), part(3), part("3")
        ('a~1b', '~(3)', '3')
    """
    if isinstance(key, str):
        return _escaped(key) or "~2"
    return f"~({_escaped(_text(encode(key)))})"


def join(path: str, key: object) -> str:
    """The path of what lies under ``key`` in the container at ``path``."""
    return f"{path}/{part(key)}" if path else part(key)


def display(data: Json) -> Json:
    """Tagged JSON as plain JSON for people: never fails on a tag, needs no torch, cannot be read back."""
    if isinstance(data, list):
        return [display(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "$" not in data:
        return {key: display(item) for key, item in data.items()}
    return _shown(str(data["$"]), {key: item for key, item in data.items() if key != "$"})


# --- writing -------------------------------------------------------------------------------------------------


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
            return _enum_out(value, path)
        if type(value) not in _EXTRA_WRITERS:
            raise UnsupportedValue(_refusal(value, path))
        tag, to_json = _EXTRA_WRITERS[type(value)]
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
        if name is not None and _FACTORIES.get(name) is not factory:
            raise UnsupportedValue(
                f"{path or 'a defaultdict'} has the factory {factory!r}, which cannot be stored; "
                f"use one of {', '.join(_FACTORIES)}, or a dict"
            )
        return {"$": "defaultdict", "factory": name, "v": self.items(value, path)}


def _set_out(encoder: _Encoder, value: Iterable[object], path: str, *, tag: str) -> Json:
    # Iteration order of a set of texts differs from process to process; equal sets must give equal bytes.
    where = f"{path} (in a set)" if path else "(in a set)"
    return {"$": tag, "v": sorted((encoder.apart(item, where) for item in value), key=_text)}


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


def _enum_out(value: enum.Enum, path: str) -> Json:
    cls = type(value)
    flag = isinstance(value, enum.Flag)
    names = [member.name for member in value] if isinstance(value, enum.Flag) else [value.name]
    data = {"$": "flag" if flag else "enum", "type": _name(cls), "v": names}
    try:
        found = _enum_in(data)
    except (HoldfastError, KeyError, TypeError) as error:
        raise UnsupportedValue(f"{path or repr(value)} cannot be stored: {error}") from None
    if found != value or type(found) is not cls:
        raise UnsupportedValue(f"{path or repr(value)} cannot be stored: {_name(cls)} does not lead back to it")
    return data


def _plain(value: object) -> Json:
    return value


def _refusal(value: object, path: str) -> str:
    what = f"{path or 'the value'} is a {_name(type(value))}, which has no codec"
    if isinstance(value, (dict, list, tuple, set, frozenset, str, int, float, bytes)):
        base = next(b for b in type(value).__mro__ if b in _SCALARS or b in _CONTAINERS)
        return f"{what}; convert it to a plain {base.__name__}, or use holdfast.values.register"
    return f"{what}; store plain values, or teach it with holdfast.values.register"


# --- reading -------------------------------------------------------------------------------------------------


class _Decoder:
    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self._readers = readers
        self._depth = 0

    def __call__(self, data: Json) -> Any:
        if isinstance(data, (str, int, float)) or data is None:
            return data
        self._depth += 1
        if self._depth > DEPTH:
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
        if tag in _READERS:
            return _READERS[tag](self, data)
        if tag in _EXTRA_READERS:
            return _EXTRA_READERS[tag][1](self(data["v"]))
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
    factory = None if data["factory"] is None else _FACTORIES[data["factory"]]
    return defaultdict(factory, decoder.pairs(data))


def _counter_in(decoder: _Decoder, data: dict[str, Any]) -> Counter[Any]:
    return Counter(dict(decoder.pairs(data)))


def _enum_in(data: dict[str, Any]) -> enum.Enum:
    cls = _enum_class(data["type"])
    try:
        members = [cls.__members__[name] for name in data["v"]]
    except KeyError as error:
        raise StateError(f"the enum {data['type']} has no member {error} any more; add it to read the value") from None
    if data["$"] == "enum":
        (member,) = members
        return member
    if not issubclass(cls, enum.Flag):
        raise StateError(f"{data['type']} was a Flag when it was stored, and is none now")
    flags = cls(0)
    for member in members:
        flags |= member  # type: ignore[operator]  # members of a Flag combine
    return flags


def _enum_class(name: str) -> type[enum.Enum]:
    module, _, qualname = name.partition(":")
    # Only what the program has imported by itself: a stored name must not make code run.
    found: Any = sys.modules.get(module)
    for attribute in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(attribute)
    if not (isinstance(found, type) and issubclass(found, enum.Enum)):
        raise StateError(f"the enum {name} is not to be found; define it at the top of a module and import that first")
    return found


# --- for people ----------------------------------------------------------------------------------------------


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
    return shown if isinstance(shown, str) else _text(shown)


# --- tables and small things ---------------------------------------------------------------------------------


def _name(type_: type) -> str:
    return f"{type_.__module__}:{type_.__qualname__}"


def _text(data: Json) -> str:
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


def _bytes_in(data: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(data["v"], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


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

_READERS: dict[str, Callable[[_Decoder, dict[str, Any]], object]] = {
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
    "enum": lambda _, d: _enum_in(d),
    "flag": lambda _, d: _enum_in(d),
}

_RESERVED = frozenset({"tensor", "ndarray", "sparse_coo", "sparse_compressed", "quantized", "subclass"})
# Written by the trees of training state (state/tree.py), which pass their own readers.

_EXTRA_WRITERS: dict[type, tuple[str, Callable[[Any], object]]] = {}
_EXTRA_READERS: dict[str, tuple[str, Callable[[Any], object]]] = {}
