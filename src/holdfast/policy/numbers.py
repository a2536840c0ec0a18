"""Numbers of NumPy and of others as Python's own: a rule is written down as text, which has room for no others."""

from __future__ import annotations

import operator
from dataclasses import fields
from numbers import Integral, Real
from typing import Any


def plain(value: Any) -> Any:
    """``value`` as Python's int or float, if it is a number; anything else as it is, truth values among it.

    Example:
        >>> from fractions import Fraction
        >>> plain(Fraction(1, 4)), plain(True), plain("4")
        (0.25, True, '4')
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return operator.index(value)
    try:
        return float(value) if isinstance(value, Real) else value
    except OverflowError:
        return value


def plain_numbers(rule: Any) -> None:
    """Makes the numbers among the fields of a frozen dataclass plain; for its ``__post_init__``, before all checks."""
    for field in fields(rule):
        object.__setattr__(rule, field.name, plain(getattr(rule, field.name)))
