"""``notify`` and ``save_now``: what is done beside whatever else is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from holdfast.errors import InvalidPolicy
from holdfast.health import arguments
from holdfast.health.actions import Action, Weight, check_callable
from holdfast.health.verdict import Verdict
from holdfast.health.writing import literal, resolved, written
from holdfast.policy import Every, every
from holdfast.policy.numbers import plain_numbers

_TELLING = every(minutes=10)
_SAVING = every(minutes=10)


@dataclass(frozen=True, slots=True)
class Notify(Action):
    """See `notify`."""

    verb: ClassVar[str] = "notify"
    weight: ClassVar[Weight] = Weight.NOTIFY
    to: Callable[[Verdict], object] | str
    times: int = 100
    every: Every = _TELLING

    def __post_init__(self) -> None:
        plain_numbers(self)
        if isinstance(self.to, str):
            _check_webhook(self.to)
        else:
            check_callable("notify(to)", self.to)
        arguments.count("notify(times=)", self.times)
        arguments.cadence("notify(every=)", self.every)

    @property
    def shown(self) -> str:
        """As it is written, but of a webhook only the host: whoever knows the rest can write there, too."""
        if not isinstance(self.to, str):
            return str(self)
        return str(self).replace(literal(self.to), literal(f"https://{urlsplit(self.to).hostname}/..."))

    def __str__(self) -> str:
        return written(self.verb, self, "to")


@dataclass(frozen=True, slots=True)
class SaveNow(Action):
    """See `save_now`."""

    verb: ClassVar[str] = "save_now"
    weight: ClassVar[Weight] = Weight.SAVE
    times: int = 3
    every: Every = _SAVING

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.count("save_now(times=)", self.times)
        arguments.cadence("save_now(every=)", self.every)

    def __str__(self) -> str:
        return written(self.verb, self)


def notify(to: Callable[[Verdict], object] | str, *, times: int = 100, every: Every | None = None) -> Notify:
    """Tell somebody.

    Args:
        to: a function that gets the verdict, its path ``"package.module:function"``, or the ``https://`` address of a
            webhook.
        times: how often in a run.
        every: at most once in so many steps or so much time; 10 minutes if left out.

    Raises:
        InvalidPolicy: an argument makes no sense.

    Example:
        >>> action = notify("https://hooks.example.com/T0/secret", times=5)
        >>> print(action, action.shown)
        notify("https://hooks.example.com/T0/secret", times=5) notify("https://hooks.example.com/...", times=5)
    """
    if isinstance(to, str) and "://" not in to:
        to = resolved(to)
    return Notify(to, times, _TELLING if every is None else every)


def save_now(*, times: int = 3, every: Every | None = None) -> SaveNow:
    """Save at this boundary, unless the state is broken or about to be rolled back.

    Args:
        times: how often in a run.
        every: at most once in so many steps or so much time; 10 minutes if left out.

    Raises:
        InvalidPolicy: an argument makes no sense.
    """
    return SaveNow(times, _SAVING if every is None else every)


def _check_webhook(address: str) -> None:
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = None
    if parts is None or parts.scheme != "https" or not parts.hostname or not address.isprintable() or " " in address:
        # Without the address: it may hold a secret.
        raise InvalidPolicy("notify(to) wants a function or the https:// address of a webhook")
