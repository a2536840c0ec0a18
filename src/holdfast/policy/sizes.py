"""Amounts of bytes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from holdfast.errors import InvalidInput

_SIZE = re.compile(r"(?P<amount>[0-9]+(?:\.[0-9]+)?) ?(?:(?P<prefix>[kmgtp])(?P<binary>i)?)?b?", re.IGNORECASE)
_LONGEST = 40
"""Characters; more is no size but an accident."""


def parse_size(text: str) -> int:
    """Bytes, rounded down: ``kB MB GB TB PB`` are powers of 1000, ``KiB MiB GiB TiB PiB`` of 1024.

    The ``B`` may be left out, and case does not count.

    Raises:
        InvalidInput: anything else, or less than one byte.

    Example:
        >>> parse_size("8GB"), parse_size("1.5 GiB"), parse_size("512Mi"), parse_size("4096")
        (8000000000, 1610612736, 536870912, 4096)
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        raise InvalidInput(f"not a size: {text[:_LONGEST]!r}; write one such as '8GB', '512MiB' or '4096'")
    exponent = " kmgtp".index((match["prefix"] or " ").lower())
    size = int(Fraction(match["amount"]) * (1024 if match["binary"] else 1000) ** exponent)
    if size < 1:
        raise InvalidInput(f"{text!r} is less than one byte")
    return size


def show_size(count: int) -> str:
    """Bytes for people, by powers of 1024.

    Example:
        >>> show_size(1_610_612_736), show_size(999)
        ('1.5 GiB', '999 B')
    """
    amount, units = float(count), iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = "B"
    while amount >= 1024 and (larger := next(units, None)):
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
