"""Metric values and names, as policies and references read them."""

from __future__ import annotations

import math
import re
from enum import StrEnum

_NAME = re.compile(r"[^\s:\x00-\x1f\x7f\ud800-\udfff]{1,200}")


class Mode(StrEnum):
    """Which end of a metric is the good one."""

    MIN = "min"
    MAX = "max"

    def cost(self, value: float) -> float:
        """Lower is better, whatever the mode."""
        return value if self is Mode.MIN else -value


def measured(value: object) -> float | None:
    """The number that a metric value stands for; None if it is no finite number, for such a one is never best.

    Example:
        >>> measured(2), measured(float("nan")), measured("n/a")
        (2.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_metric_name(name: object) -> bool:
    """Whether ``name`` can be written in a policy and in a reference: 1 to 200 characters without spaces and ``:``."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
