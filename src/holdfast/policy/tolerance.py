"""How many failed saves a training bears before it is ended: a pure object over facts, written as policies are.

A save that fails costs nothing that was committed before, so one transient
error of a disk or a store need not end a training of weeks. Failures that go
on must: else there is nothing to resume from in the end.

Example:
    >>> tolerance = tolerate(failures=3) | tolerate(hours=1)
    >>> tolerance.exceeded(3, 120.0), tolerance.exceeded(4, 120.0)
    (None, '4 saves in a row have failed, and tolerate(failures=3) bears 3')
    >>> tolerance_of(str(tolerance)) == tolerance
    True
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from enum import StrEnum

from holdfast.catalog.naming.metrics import measured
from holdfast.errors import InvalidPolicy
from holdfast.policy.numbers import plain, plain_numbers
from holdfast.policy.text import LONGEST


class Bearing(StrEnum):
    """What a limit counts."""

    FAILURES = "failures"
    MINUTES = "minutes"
    HOURS = "hours"


_SECONDS = {Bearing.MINUTES: 60, Bearing.HOURS: 3600}


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a tolerance: so many of ``unit`` are borne, and no more."""

    unit: Bearing
    amount: int | float

    def __post_init__(self) -> None:
        plain_numbers(self)
        number = measured(self.amount)
        counts = self.unit is Bearing.FAILURES
        if number is None or number < 0 or (counts and not isinstance(self.amount, int)) or (not counts and not number):
            rule = "an integer of at least 0" if counts else "a finite number above 0"
            raise InvalidPolicy(f"tolerate({self.unit}=) wants {rule}, not {self.amount!r}")

    def exceeded(self, failures_in_a_row: int, seconds_since_good: float) -> str | None:
        """See `Tolerance.exceeded`."""
        if self.unit is Bearing.FAILURES:
            return self._too_many(failures_in_a_row)
        over = failures_in_a_row > 0 and seconds_since_good > self.amount * _SECONDS[self.unit]
        return (
            f"no save has succeeded for {_ago(seconds_since_good)}, and {self} was all that is borne" if over else None
        )

    def _too_many(self, failures: int) -> str | None:
        if failures <= self.amount:
            return None
        said = "1 save has failed" if failures == 1 else f"{failures} saves in a row have failed"
        return f"{said}, and {self} bears {self.amount or 'none'}"

    def __str__(self) -> str:
        return f"tolerate({self.unit}={json.dumps(self.amount)})"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """See `tolerate`; without limits, failed saves are only warned of."""

    limits: tuple[Limit, ...] = ()

    def exceeded(self, failures_in_a_row: int, seconds_since_good: float) -> str | None:
        """Why the training must end now; None if it bears this much. Pure.

        Args:
            failures_in_a_row: saves that failed since the last one that was committed.
            seconds_since_good: since that one, or since the loop began, by the monotonic clock.
        """
        found = (limit.exceeded(failures_in_a_row, seconds_since_good) for limit in self.limits)
        return next((reason for reason in found if reason), None)

    def __or__(self, other: Tolerance) -> Tolerance:
        if not isinstance(other, Tolerance):
            return NotImplemented
        return Tolerance(tuple(dict.fromkeys(self.limits + other.limits)))

    def __str__(self) -> str:
        return " | ".join(map(str, self.limits)) or "warn"


def tolerate(*, failures: int | None = None, minutes: float | None = None, hours: float | None = None) -> Tolerance:
    """Bear so many failed saves in a row, or failures for so long a time without a checkpoint; 0 failures: none.

    Of several joined by ``|``, the first limit that is exceeded ends the training. Time alone ends nothing:
    somewhere within it a save must have failed, and none have succeeded since.

    Raises:
        InvalidPolicy: not exactly one argument, or one that makes no sense.

    Example:
        >>> print(tolerate(failures=5) | tolerate(minutes=30))
        tolerate(failures=5) | tolerate(minutes=30)
    """
    amounts = {"failures": failures, "minutes": minutes, "hours": hours}
    given = {unit: amount for unit, amount in amounts.items() if amount is not None}
    if len(given) != 1:
        said = ", ".join(given) or "none"
        raise InvalidPolicy(f"tolerate() wants exactly one of {', '.join(amounts)}; given: {said}; combine two with |")
    ((unit, amount),) = given.items()
    return Tolerance((Limit(Bearing(unit), amount),))


_NAMED = {"raise": tolerate(failures=0), "warn": Tolerance()}
_DEFAULT = tolerate(failures=3)


def tolerance_of(asked: int | str | Tolerance | None) -> Tolerance:
    """The tolerance that a user asked for.

    Args:
        asked: failures in a row that are borne; ``"raise"`` for none; ``"warn"`` for any number; ``tolerate(...)`` or
            its text; None for three failures in a row.

    Raises:
        InvalidPolicy: anything else.

    Example:
        >>> print(tolerance_of(None), tolerance_of("raise"), tolerance_of("warn"))
        tolerate(failures=3) tolerate(failures=0) warn
    """
    asked = plain(asked)
    if asked is None:
        return _DEFAULT
    if isinstance(asked, Tolerance):
        return asked
    if isinstance(asked, int):
        return tolerate(failures=asked)
    if not isinstance(asked, str):
        raise InvalidPolicy(
            f"on_save_error wants a number of failures, 'raise', 'warn' or tolerate(...), not {asked!r}"
        )
    return _NAMED[asked] if asked in _NAMED else _parsed(asked)


def _parsed(text: str) -> Tolerance:
    """What `str` writes and a person types; nothing is evaluated."""
    said = f"cannot read {text[:200]!r}; write a number of failures, raise, warn, or tolerate(...) joined by |"
    if len(text) > LONGEST:
        raise InvalidPolicy(said)
    try:
        return _tolerance(ast.parse(text.strip(), mode="eval").body)
    except InvalidPolicy:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InvalidPolicy(said) from error


def _tolerance(node: ast.expr) -> Tolerance:
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _tolerance(left) | _tolerance(right)
        case ast.Constant(value=int(number)):
            return tolerate(failures=number)
        case ast.Call(func=ast.Name(id="tolerate"), args=[], keywords=named):
            return tolerate(**{str(one.arg): ast.literal_eval(one.value) for one in named})
    raise ValueError("no tolerance")


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
