r"""Small objects as sealed JSON: readable by people, and every bit of them is covered.

A sealed object is UTF-8 JSON, two spaces of indent, fields in the order of
their declaration, and ends in exactly ``  "seal": "<64 hex>"\n}\n``. The seal
is the BLAKE3 digest of every byte before that last line, so no canonical form
is needed to check it. The object states its own name, so two objects that were
swapped are found too. Source: docs/format.md, "Small objects".

Example:
    >>> from holdfast.ids import ObjectName
    >>> from holdfast.records import StoreInfo
    >>> info = StoreInfo(id="00ff00ff00ff00ff", created="2026-01-01T00:00:00Z")
    >>> data = seal(ObjectName("holdfast.json"), info)
    >>> unseal(ObjectName("holdfast.json"), data, StoreInfo) == info
    True
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from holdfast import values
from holdfast.errors import Corrupt, HoldfastError, UnknownFormat
from holdfast.ids import ObjectName

FORMAT = 1
"""The format version that this package writes."""

READABLE = frozenset({1})
"""The format versions that this package reads."""

_TAIL = re.compile(rb'  "seal": "([0-9a-f]{64})"\n}\n')
_TAIL_LENGTH = len('  "seal": ""\n}\n') + 64

T = TypeVar("T", bound=msgspec.Struct)


def seal(name: ObjectName, content: msgspec.Struct) -> bytes:
    """The bytes of a small object: ``content`` with its type, format and name, sealed.

    Raises:
        UnsupportedValue: no codec can write a value in it; the message has its path.
    """
    fields = {"format": FORMAT, "type": _type_of(type(content)), "object": str(name)}
    fields |= _fields_out(content)
    body = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)[:-2].encode() + b",\n"
    return body + b'  "seal": "' + blake3(body).hexdigest().encode() + b'"\n}\n'


def unseal(name: ObjectName, data: bytes, type_: type[T] | tuple[type[T], ...]) -> T:
    """The content of a small object, checked: seal first, then format, name, type and every field.

    Raises:
        Corrupt: the seal does not match, the object belongs elsewhere, or a field is malformed.
        UnknownFormat: the seal is right, but the format is not one that this version reads.
    """
    fields = _checked(name, data)
    types = _types(type_)
    found = types.get(str(fields.pop("type", None)))
    if found is None:
        raise Corrupt(f"{name} is sealed but is no {' or '.join(types)}; an object was moved here by hand")
    try:
        # Most objects hold plain JSON only; a tagged value has the key "$", and quotes in texts are escaped.
        if b'"$"' in data:
            fields = {key: values.decode_or_show(value) for key, value in fields.items()}
        content: T = msgspec.convert(fields, found, strict=True)
        home = getattr(content, "home", None)
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError, HoldfastError) as error:
        raise Corrupt(f"{name} is sealed but malformed: {error}") from error
    if home is not None and home != name:
        raise Corrupt(f"{name} is sealed, but its content belongs under {home}; whoever wrote it has a bug")
    return content


def _fields_out(content: msgspec.Struct) -> dict[str, Any]:
    free = _free(type(content))
    items = ((key, getattr(content, key)) for key in content.__struct_fields__)
    return {key: values.encode(value, key) if key in free else _field_out(value, key) for key, value in items}


def _field_out(value: object, path: str) -> Any:
    """The JSON of a field with a type of its own: structures become objects, names and kinds become texts."""
    if isinstance(value, msgspec.Struct):
        return _fields_out(value)
    if isinstance(value, list) and any(isinstance(item, msgspec.Struct) for item in value):
        return [_field_out(item, path) for item in value]
    if isinstance(value, dict) and any(isinstance(item, msgspec.Struct) for item in value.values()):
        return {key: _field_out(item, path) for key, item in value.items()}
    return values.encode(msgspec.to_builtins(value), path)


@lru_cache
def _free(type_: type[msgspec.Struct]) -> frozenset[str]:
    """The fields that hold whatever the user put there; `msgspec` would write it in its own way, not in ours."""
    return frozenset(field.name for field in msgspec.structs.fields(type_) if field.type == dict[str, Any])


def _checked(name: ObjectName, data: bytes) -> dict[str, Any]:
    body, tail = data[:-_TAIL_LENGTH], _TAIL.fullmatch(data[-_TAIL_LENGTH:])
    if tail is None or blake3(body).hexdigest().encode() != tail[1]:
        raise Corrupt(f"{name} does not match its seal; run 'holdfast verify' to see what still holds")
    try:
        fields: dict[str, Any] = msgspec.json.decode(data, type=dict)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Corrupt(f"{name} is sealed but no JSON: {error}") from error
    fields.pop("seal")
    version = fields.pop("format", None)
    if type(version) is not int or version not in READABLE:
        raise UnknownFormat(f"{name} has format {version!r}; this holdfast reads {sorted(READABLE)}; upgrade holdfast")
    stated = fields.pop("object", None)
    if stated != name:
        raise Corrupt(f"{name} says that it is {stated!r}; objects were swapped or renamed")
    return fields


@lru_cache
def _types(type_: Any) -> dict[str, type[Any]]:
    return {_type_of(t): t for t in (type_ if isinstance(type_, tuple) else (type_,))}


def _type_of(type_: type[msgspec.Struct]) -> str:
    return type_.__name__.lower()
