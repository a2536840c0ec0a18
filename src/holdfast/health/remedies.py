"""``free_space``, ``shrink_batch``, ``rollback``, ``stop``: what may help, each one when those before it have not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from holdfast.catalog.naming.grammar import parse
from holdfast.errors import InvalidInput, InvalidPolicy
from holdfast.health import arguments
from holdfast.health.actions import Action, Weight, check_callable
from holdfast.health.verdict import Verdict
from holdfast.health.writing import resolved, written
from holdfast.policy import Every, every
from holdfast.policy.numbers import plain_numbers

_FREEING = every(minutes=1)


@dataclass(frozen=True, slots=True)
class FreeSpace(Action):
    """See `free_space`."""

    verb: ClassVar[str] = "free_space"
    weight: ClassVar[Weight] = Weight.FREE_SPACE
    times: int = 10
    every: Every = _FREEING

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.count("free_space(times=)", self.times)
        arguments.cadence("free_space(every=)", self.every)

    def __str__(self) -> str:
        return written(self.verb, self)


@dataclass(frozen=True, slots=True)
class ShrinkBatch(Action):
    """See `shrink_batch`."""

    verb: ClassVar[str] = "shrink_batch"
    weight: ClassVar[Weight] = Weight.SHRINK_BATCH
    callback: Callable[[Verdict], object]
    times: int = 3

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_callable("shrink_batch(callback)", self.callback)
        arguments.count("shrink_batch(times=)", self.times)

    def __str__(self) -> str:
        return written(self.verb, self, "callback")


@dataclass(frozen=True, slots=True)
class Rollback(Action):
    """See `rollback`."""

    verb: ClassVar[str] = "rollback"
    weight: ClassVar[Weight] = Weight.ROLLBACK
    to: str = "good"
    skip_data: bool = True
    scale_lr: float | None = None
    times: int = 3

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.count("rollback(times=)", self.times)
        if self.scale_lr is not None:
            arguments.number("rollback(scale_lr=)", self.scale_lr)
        if not isinstance(self.skip_data, bool):
            raise InvalidPolicy(f"rollback(skip_data=) wants True or False, not {self.skip_data!r}")
        _check_selector(self.to)

    def __str__(self) -> str:
        return written(self.verb, self)


@dataclass(frozen=True, slots=True)
class Stop(Action):
    """See `stop`."""

    verb: ClassVar[str] = "stop"
    weight: ClassVar[Weight] = Weight.STOP

    def __str__(self) -> str:
        return written(self.verb, self)


def free_space(*, times: int = 10, every: Every | None = None) -> FreeSpace:
    """Delete at once what retention allows to delete.

    Args:
        times: how often in a run.
        every: at most once in so many steps or so much time; 1 minute if left out: deleting takes a while.

    Raises:
        InvalidPolicy: an argument makes no sense.
    """
    return FreeSpace(times, _FREEING if every is None else every)


def shrink_batch(callback: Callable[[Verdict], object] | str, *, times: int = 3) -> ShrinkBatch:
    """Call a function of the user's that makes batches smaller, and go on; after ``times`` the run stops.

    Args:
        callback: gets the verdict; or its path ``"package.module:function"``.
        times: how often in a run.

    Raises:
        InvalidPolicy: no such function, or ``times`` below 1.
    """
    return ShrinkBatch(resolved(callback) if isinstance(callback, str) else callback, times)


def rollback(to: str = "good", *, skip_data: bool = True, scale_lr: float | None = None, times: int = 3) -> Rollback:
    """Go back to a checkpoint in this very process and go on from there, on a new timeline.

    Args:
        to: what follows the ``@`` of a reference: ``"good"`` (the newest one that is marked so), a step, ``"last"`` ...
        skip_data: whether the data of the suspect steps is left out this time.
        scale_lr: factor for the learning rates from there on; None leaves them.
        times: how often in a run; after that the run stops.

    Raises:
        InvalidPolicy: an argument makes no sense.

    Example:
        >>> print(rollback(to="good", scale_lr=0.5))
        rollback(scale_lr=0.5)
    """
    return Rollback(to, skip_data, scale_lr, times)


def stop() -> Stop:
    """End the training at this boundary, with a save unless the state is broken."""
    return Stop()


def _check_selector(to: object) -> None:
    try:
        if not isinstance(to, str) or not to:
            raise InvalidInput("it is no text")
        parse(f"@{to}")
    except InvalidInput as error:
        raise InvalidPolicy(f"rollback(to=) wants 'good', 'last', a step or the like, not {to!r}: {error}") from error
