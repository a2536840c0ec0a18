"""What each argument of a `Checkpointer` and of its loops takes, whether a file says it or Python."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from holdfast.catalog.config import plain_config
from holdfast.catalog.naming.grammar import parse as parse_reference
from holdfast.errors import InvalidInput
from holdfast.health import Watchdog, rules_of, watchdog_of
from holdfast.health import parse as parse_rule
from holdfast.packs.codec import Codec, check_available
from holdfast.policy import Policy, any_of, for_keeping, for_saving, parse
from holdfast.policy.sizes import parse_size
from holdfast.policy.tolerance import tolerance_of
from holdfast.recovery.environment.signal_names import signal_numbers
from holdfast.recovery.launching.choice import NewRun, NumberedRun, wanted
from holdfast.recovery.launching.config_changes import ChangeRules, change_rules
from holdfast.recovery.launching.session import MODES


class Unfit(Exception):
    """A value is of the wrong kind."""


@dataclass(frozen=True, slots=True)
class Key:
    """One setting."""

    wants: str
    """In words, for an error and for the page."""
    read: Callable[[Any], Any]
    """The argument that a value gives; raises `Unfit`, or an error of the library that says more."""


def _path(value: Any) -> str | Path:
    if not isinstance(value, str | Path) or not str(value):
        raise Unfit
    return value


def _run(value: Any) -> Any:
    if isinstance(value, NewRun | NumberedRun):
        return value
    found = value if isinstance(value, str) else _integer(value)
    wanted(found)  # refuses what is no name and no number of a run
    return found


def _resume_mode(value: Any) -> str:
    if _text(value) not in MODES:
        parse_reference(value)
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit
    return value


def _policy(check: Callable[[object], Policy]) -> Callable[[Any], Policy]:
    def read(value: Any) -> Policy:
        if isinstance(value, list | tuple) and value:
            return check(any_of(*map(_one_policy, value)))
        return check(_one_policy(value))

    return read


def _one_policy(value: Any) -> Policy:
    if isinstance(value, Policy):
        return value
    return parse(_text(value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unfit
    return value


def _integer(value: Any) -> int:
    """Those of NumPy are made Python's: a checkpoint has room for no others."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise Unfit
    return operator.index(value)


def _from(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if _integer(value) < least:
            raise Unfit
        return _integer(value)

    return read


_whole = _from(1)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise Unfit
    return float(value)


def _bytes(value: Any) -> int | str:
    if not isinstance(value, str):
        return _whole(value)
    parse_size(value)  # refuses what is no size
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if _text(value) not in words:
            raise Unfit
        return str(value)

    return read


def _codec(value: Any) -> str:
    if _one_of(*Codec, "auto")(value) != "auto":
        check_available(Codec(value))
    return str(value)


def _tolerance(value: Any) -> Any:
    if isinstance(value, bool):
        raise Unfit
    tolerance_of(value)
    return value


def _listed(value: Any) -> tuple[Any, ...]:
    """What is one after the other; a text or a table is not meant as that."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise Unfit
    return tuple(value)


def _signals(value: Any) -> tuple[str | int, ...]:
    found = _listed(value)
    if not all(isinstance(one, str | int) and not isinstance(one, bool) for one in found):
        raise Unfit
    signal_numbers(found)  # refuses what is no signal
    return found


def _names(value: Any) -> tuple[str, ...]:
    found = _listed(value)
    if not all(isinstance(one, str) and one for one in found):
        raise Unfit
    return found


def _off(value: Any) -> bool:
    return value is False or value == "off"


def _rules(value: Any) -> list[Any]:
    if _off(value):
        return []
    if not isinstance(value, str | list | tuple):
        raise Unfit
    given = [value] if isinstance(value, str) else value
    rules = [parse_rule(one) if isinstance(one, str) else one for one in given]
    rules_of(rules)  # refuses what is no rule
    return rules


def _watchdog(value: Any) -> Watchdog | str:
    if _off(value):
        return "off"
    return value if isinstance(value, Watchdog) else watchdog_of(_text(value))


def _config(value: Any) -> Any:
    try:
        plain_config(value)
    except InvalidInput:
        raise Unfit from None
    return value


def _changes(value: Any) -> ChangeRules | Any:
    change_rules(value)
    return value


def _function(value: Any) -> Any:
    if not callable(value):
        raise Unfit
    return value


_POLICY = "a policy as text, such as 'every(steps=500) | best(\"val_loss\")', or a list of them"

KEYS: dict[str, Key] = {
    "store": Key("the path of a folder", _path),
    "run": Key("the name or the number of a run", _run),
    "save": Key(_POLICY, _policy(for_saving)),
    "keep": Key(_POLICY.replace("every(steps=500)", "latest(3)"), _policy(for_keeping)),
    "stage": Key("a policy as text, such as 'every(steps=10)'", _policy(for_saving)),
    "config": Key("a table: the configuration of the training", _config),
    "on_config_change": Key("override, keep or refuse, or a table of keys to these", _changes),
    "resume": Key("auto, must, never or a reference such as run-003@500", _resume_mode),
    "accumulate": Key("an integer above 0", _whole),
    "prefix": Key("text", _text),
    "peer_timeout": Key("a number of seconds above 0", _seconds),
    "codec": Key("raw, zstd, openzl or auto", _codec),
    "saver": Key("process or inline", _one_of("process", "inline")),
    "ram_budget": Key("a number of bytes, or text such as '8GB'", _bytes),
    "on_save_error": Key("a number of failures, raise, warn, or text such as 'tolerate(hours=1)'", _tolerance),
    "on_full": Key("skip or pause", _one_of("skip", "pause")),
    "check_staging": Key("true or false", _flag),
    "progress": Key("true or false", _flag),
    "signals": Key("a list of signals, such as [SIGTERM, SIGUSR1]", _signals),
    "grace": Key("a number of seconds above 0", _seconds),
    "notice": Key("aws, gce, azure or auto", _one_of("aws", "gce", "azure", "auto")),
    "health": Key("a list of rules as text, such as \"when(nonfinite('loss'), stop())\", or off", _rules),
    "watchdog": Key("a watchdog as text, such as 'watchdog(hung=600)', or off", _watchdog),
    "good_after": Key("a number of steps above 0", _whole),
    "not_restored": Key("a list of names of state, such as [optimizer]", _names),
    "on_preempt": Key("a function, which only Python can give", _function),
}
"""Every setting, by the name of its argument."""


def _end(value: Any) -> int:
    """``1e5`` is what people write for a hundred thousand."""
    whole = isinstance(value, float) and value.is_integer()
    return _from(0)(int(value) if whole else value)


_LOOP = {name: Key("an integer of at least 0", _end) for name in ("total_steps", "epochs")}


def fit(name: str, value: Any) -> Any:
    """An argument that Python gives, read as a file's is.

    Raises:
        InvalidInput: it cannot be right; the message names it.

    Example:
        >>> fit("grace", 30)
        30.0
        >>> fit("accumulate", 2.5)
        Traceback (most recent call last):
        holdfast.errors.InvalidInput: accumulate=2.5: wants an integer above 0
    """
    key = (KEYS | _LOOP)[name]
    try:
        return key.read(value)
    except Unfit:
        raise InvalidInput(f"{name}={value!r}: wants {key.wants}") from None


def fit_or_none(name: str, value: Any) -> Any:
    """As `fit`, where None is what is meant by saying nothing."""
    return None if value is None else fit(name, value)
