"""One number out of those of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.errors import InvalidInput
from holdfast.recovery.ranks.group import Group
from holdfast.recovery.steps.measuring import plain

WAYS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "sum": sum,
    "min": min,
    "max": max,
}


def reduced(group: Group, metrics: Mapping[str, Any], way: str) -> dict[str, Any]:
    """The metrics of all ranks, brought together; every rank gets the same, and waits for the others.

    Raises:
        InvalidInput: there is no such way, or the ranks have logged different names.
        PeerLost: a rank has ended or does not answer.
    """
    if way not in WAYS:
        raise InvalidInput(f"reduce={way!r}: there is {', '.join(WAYS)}")
    mine = {name: float(value) for name, value in plain(metrics).items()}
    said = group.gathered(msgspec.msgpack.encode(mine), "metrics of all ranks")
    each = [msgspec.msgpack.decode(one, type=dict[str, float]) for one in said]
    if any(one.keys() != mine.keys() for one in each):
        raise InvalidInput(f"reduce={way!r}: every rank has to log the same names; this one has {', '.join(mine)}")
    return {name: WAYS[way]([one[name] for one in each]) for name in mine}
