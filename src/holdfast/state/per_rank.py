"""What belongs to each rank alone, and names that tell ranks apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from holdfast.errors import InvalidInput

_NAME = re.compile(r".+@rank(\d+)")


class PerRank:
    """See `per_rank`."""

    def __init__(self, value: Any) -> None:
        self.value = value


def per_rank(value: Any) -> PerRank:
    """Marks an object of ``state`` as each rank's own: every rank stores and gets back what it has.

    Where another number of ranks loads the checkpoint, it stays as it is, and that is said.

    Example:
        >>> import torch
        >>> {"statistics": per_rank(torch.nn.BatchNorm1d(4))}  # doctest: +ELLIPSIS
        {'statistics': ...PerRank object at ...}
    """
    return PerRank(value)


def named(state: Mapping[str, object], prefix: str, rank: int) -> dict[str, object]:
    """The objects of one rank under the names that they have in a checkpoint.

    Raises:
        InvalidInput: a name that looks like one of these.
    """
    if odd := [name for name in state if isinstance(name, str) and is_per_rank(name)]:
        raise InvalidInput(f"state[{odd[0]!r}]: names that end in @rank and a number belong to holdfast.per_rank()")
    return {
        prefix + name + (f"@rank{rank}" if isinstance(value, PerRank) else ""): bare(value)
        for name, value in state.items()
    }


def bare(value: object) -> object:
    """An object without its mark."""
    return value.value if isinstance(value, PerRank) else value


def is_per_rank(name: str) -> bool:
    """Whether it is the name of an object that belongs to one rank."""
    return _NAME.fullmatch(name) is not None
