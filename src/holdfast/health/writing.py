"""Checks and actions as text, and callables as paths: what a person writes, and can be read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from typing import Any

from holdfast.errors import InvalidPolicy


def written(verb: str, one: Any, *first: str, last: tuple[str, ...] = ()) -> str:
    """A call of ``verb`` that makes ``one``: the fields ``first`` by place, the others by name where they differ.

    Args:
        verb: the function.
        one: a dataclass.
        first: fields that are always written, without their names.
        last: fields that are no arguments.
    """
    words = [literal(getattr(one, name)) for name in first]
    for field in fields(one):
        value = getattr(one, field.name)
        if field.name not in first + last and value != field.default:
            words.append(f"{field.name}={literal(value)}")
    return f"{verb}({', '.join(words)})"


def literal(value: object) -> str:
    """A value as Python writes it.

    Example:
        >>> literal("loss"), literal(True), literal(2.5), literal(json.dumps)
        ('"loss"', 'True', '2.5', '"json:dumps"')
    """
    if value is None or isinstance(value, bool):
        return str(value)
    if callable(value):
        return json.dumps(path_of(value), ensure_ascii=False)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if isinstance(value, int | float) else str(value)


def path_of(function: Callable[..., Any]) -> str:
    """``module:name`` of a function; one that has no name of its own is said to be what it is."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or '?'}:{name}"


def resolved(path: str) -> Callable[..., Any]:
    """The function that ``module:name`` names; imports the module.

    Raises:
        InvalidPolicy: there is no such thing, or it cannot be called.

    Example:
        >>> resolved("json:dumps") is json.dumps
        True
    """
    module, colon, name = path.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise InvalidPolicy(f"{path[:200]!r} names no function; write it as 'package.module:function'")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidPolicy(f"cannot find {path!r}: {error}") from error
    if not callable(found):
        raise InvalidPolicy(f"{path!r} is no function but {found!r:.100}")
    function: Callable[..., Any] = found
    return function
