"""Rules that arguments of checks and actions keep, said with the name of the argument."""

from __future__ import annotations

from holdfast.catalog.naming.metrics import is_metric_name, measured
from holdfast.errors import InvalidInput, InvalidPolicy
from holdfast.policy import Every, Unit
from holdfast.policy.sizes import parse_size


def count(where: str, value: object, *, least: int = 1) -> None:
    """An integer of at least ``least``.

    Raises:
        InvalidPolicy: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidPolicy(f"{where} wants an integer of at least {least}, not {value!r}")


def number(where: str, value: object, *, above: float = 0.0, most: float | None = None) -> None:
    """A finite number above a bound, and at most another one.

    Raises:
        InvalidPolicy: it is none.
    """
    found = measured(value)
    if found is None or found <= above or (most is not None and found > most):
        limits = f"above {above:g}" + (f" and at most {most:g}" if most is not None else "")
        raise InvalidPolicy(f"{where} wants a finite number {limits}, not {value!r}")


def metric(where: str, value: object) -> None:
    """The name of a metric.

    Raises:
        InvalidPolicy: it is none.
    """
    if not is_metric_name(value):
        raise InvalidPolicy(f"{where} wants a name of 1 to 200 characters without spaces and ':', not {value!r}")


def cadence(where: str, value: object) -> None:
    """``every(steps=)`` or ``every(seconds= | minutes= | hours=)``.

    Raises:
        InvalidPolicy: anything else.
    """
    if not isinstance(value, Every) or value.unit is Unit.EPOCHS:
        raise InvalidPolicy(f"{where} wants every(steps=...) or every(seconds=...), not {value}")


def size(where: str, value: object) -> int:
    """Bytes: a number of them above 0, or a text such as ``"8GB"``.

    Raises:
        InvalidPolicy: anything else.
    """
    if isinstance(value, str):
        try:
            return parse_size(value)
        except InvalidInput as error:
            raise InvalidPolicy(f"{where}: {error}") from error
    count(where, value)
    assert isinstance(value, int)
    return value
