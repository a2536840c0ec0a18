"""What is done about a verdict: frozen descriptions with budgets. Deciding is pure; who executes them is not here.

Two sorts. Side actions (`notify`, `save_now`) run beside whatever else is
done. Remedies (`free_space`, `shrink_batch`, `rollback`, `stop`) are a ladder:
of those of one rule the first with budget left is tried, the next one when it
is used up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import ClassVar

from holdfast.errors import InvalidPolicy
from holdfast.policy import Every


class Weight(IntEnum):
    """How much an action changes the training; the order in which actions of one boundary are executed."""

    NOTIFY = 1
    FREE_SPACE = 2
    SAVE = 3
    SHRINK_BATCH = 4
    ROLLBACK = 5
    STOP = 6


class Action(ABC):
    """What to do; frozen, compared by value, prints as it is written."""

    __slots__ = ()
    verb: ClassVar[str]
    weight: ClassVar[Weight]

    @property
    def budget(self) -> int | None:
        """How often it may be done in a run: its field ``times``; None: as often as it is wanted."""
        times: int | None = getattr(self, "times", None)
        return times

    @property
    def pace(self) -> Every | None:
        """At most once in each of these: its field ``every``; None: at each boundary."""
        every: Every | None = getattr(self, "every", None)
        return every

    @property
    def remedy(self) -> bool:
        """Whether it is a step of the ladder, and not done beside it."""
        return self.weight not in (Weight.NOTIFY, Weight.SAVE)

    @property
    def shown(self) -> str:
        """As it is written, without what others must not read."""
        return str(self)

    @abstractmethod
    def __str__(self) -> str: ...


def check_callable(where: str, value: object) -> None:
    """Refuses what cannot be called.

    Raises:
        InvalidPolicy: it cannot be called.
    """
    if not callable(value):
        raise InvalidPolicy(f"{where} wants a function of a verdict, not {value!r}")
