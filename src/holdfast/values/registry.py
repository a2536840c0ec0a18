"""Types that the codec learns while a program runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from holdfast.errors import InvalidInput
from holdfast.values import reading, writing
from holdfast.values.enums import class_name

_TAG = re.compile(r"[a-z][a-z0-9_.-]*")
RESERVED = frozenset({"tensor", "ndarray", "sparse_coo", "sparse_compressed", "quantized", "subclass"})
# Written by the trees of training state (state/tree.py), which pass their own readers.


def register(type_: type, tag: str, to_json: Callable[[Any], object], from_json: Callable[[Any], object]) -> None:
    """Teaches the codec one more type (exactly this, not its subclasses).

    ``to_json`` gives any value that the codec can write; ``from_json`` gets that
    value back. Not thread-safe: register where the type is defined.

    Raises:
        InvalidInput: the tag is malformed, built in, or taken by another type.

    Example:
        >>> from fractions import Fraction
        >>> from holdfast.values import decode, encode
        >>> register(Fraction, "example.fraction", lambda f: (f.numerator, f.denominator), lambda p: Fraction(*p))
        >>> decode(encode([Fraction(1, 3)]))
        [Fraction(1, 3)]
    """
    if not _TAG.fullmatch(tag) or tag in RESERVED or tag in reading.READERS:
        raise InvalidInput(f"{tag!r} cannot be the tag of {class_name(type_)}: malformed or built in")
    if tag in reading.EXTRA and reading.EXTRA[tag][0] != class_name(type_):
        raise InvalidInput(f"the tag {tag!r} belongs to {reading.EXTRA[tag][0]} already")
    writing.EXTRA[type_] = (tag, to_json)
    reading.EXTRA[tag] = (class_name(type_), from_json)
