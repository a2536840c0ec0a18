"""Enums by name: written only if the name leads back, read only from modules that the program has imported."""

from __future__ import annotations

import enum
import sys
from typing import Any

from holdfast.errors import HoldfastError, StateError, UnsupportedValue


def write(value: enum.Enum, path: str) -> dict[str, Any]:
    """The tagged JSON of a member or of a combination of flags.

    Raises:
        UnsupportedValue: its class is not at the top of a module.
    """
    cls = type(value)
    flag = isinstance(value, enum.Flag)
    names = [member.name for member in value] if isinstance(value, enum.Flag) else [value.name]
    data = {"$": "flag" if flag else "enum", "type": class_name(cls), "v": names}
    try:
        found = read(data)
    except (HoldfastError, KeyError, TypeError) as error:
        raise UnsupportedValue(f"{path or repr(value)} cannot be stored: {error}") from None
    if found != value or type(found) is not cls:
        raise UnsupportedValue(f"{path or repr(value)} cannot be stored: {class_name(cls)} does not lead back to it")
    return data


def read(data: dict[str, Any]) -> enum.Enum:
    """The member.

    Raises:
        StateError: the class is not imported, is no enum, or has lost the member.
    """
    cls = _class(data["type"])
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


def _class(name: str) -> type[enum.Enum]:
    module, _, qualname = name.partition(":")
    # Only what the program has imported by itself: a stored name must not make code run.
    found: Any = sys.modules.get(module)
    for attribute in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(attribute)
    if not (isinstance(found, type) and issubclass(found, enum.Enum)):
        raise StateError(f"the enum {name} is not to be found; define it at the top of a module and import that first")
    return found


def class_name(type_: type) -> str:
    """``module:qualname``."""
    return f"{type_.__module__}:{type_.__qualname__}"
