"""From settings to the arguments of a `Checkpointer`: every key checked, and an error names the key and its place.

Example:
    >>> found = arguments_of({"save": "every(steps=500)", "keep": "latest(3)", "grace": 30})
    >>> [(name, str(value)) for name, value in found.items()]
    [('save', 'every(steps=500)'), ('keep', 'latest(3)'), ('grace', '30.0')]
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, InvalidInput
from holdfast.health import Watchdog, rules_of, watchdog_of
from holdfast.health import parse as parse_rule
from holdfast.policy import Policy, any_of, for_keeping, for_saving, parse
from holdfast.policy.tolerance import tolerance_of
from holdfast.recovery.aliases import ALIASES, Meant, Part, Translated, translated
from holdfast.recovery.choice import NewRun, new_run
from holdfast.recovery.config_changes import ChangeRules, change_rules
from holdfast.recovery.config_files import Settings, read_settings
from holdfast.recovery.config_state import names_of

logger = logging.getLogger(__name__)


class _Unfit(Exception):
    """A value is of the wrong kind."""


@dataclass(frozen=True, slots=True)
class Key:
    """One setting."""

    wants: str
    """In words, for an error and for the page."""
    read: Callable[[Any], Any]
    """The argument that a value gives; raises `_Unfit`, or an error of the library that says more."""


def arguments_of(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of a `Checkpointer` that a file or a mapping says.

    Args:
        source: a YAML or TOML file, or a mapping; see `holdfast.recovery.config_files.read_settings`.
        overrides: arguments from Python, ``state`` among them; an argument that is given here is not taken from
            ``source``, by whatever name it goes there. Objects that are not to be saved are taken out of ``state``.

    Raises:
        InvalidInput: a key that is not known, with the one that was meant perhaps; a value of the wrong kind; or two
            keys that contradict each other.
    """
    given = dict(overrides or {})
    state = given.pop("state", None)
    said = _Said.of(read_settings(source)), _Said.of(Settings(values=given, source="from Python"))
    arguments = {**said[0].arguments, **said[1].arguments}
    if said[0].aliases.new_run or said[1].aliases.new_run:
        arguments["run"] = _new_run(arguments)
    for note in (*said[0].aliases.notes, *said[1].aliases.notes):
        logger.info("%s", note)
    not_saved = {**said[0].aliases.not_saved, **said[1].aliases.not_saved}
    not_restored = {**said[0].aliases.not_restored, **said[1].aliases.not_restored}
    return arguments | _state(state, _true(not_saved), _true(not_restored))


@dataclass(frozen=True, slots=True)
class _Said:
    """What one source says."""

    arguments: dict[str, Any]
    aliases: Translated

    @classmethod
    def of(cls, settings: Settings) -> _Said:
        _check_known(settings)
        aliases = translated(settings)
        own = {key: _read(settings, key) for key in settings.values if key in KEYS and settings.values[key] is not None}
        for key, meant in aliases.arguments.items():
            if key in own and own[key] != meant.value:
                raise _contradiction(settings, key, own[key], meant)
        meanings = {key: _checked(settings, meant) for key, meant in aliases.arguments.items()}
        return cls({key: value for key, value in (meanings | own).items() if key in KEYS}, aliases)


def _contradiction(settings: Settings, key: str, value: Any, meant: Meant) -> InvalidInput:
    by = " with ".join(f"{alias}{settings.where(alias)}" for alias in meant.by)
    return InvalidInput(
        f"{key}{settings.where(key)} is {value}, and {by} means {meant.value}: they contradict each other; "
        "leave one of them out"
    )


def _checked(settings: Settings, meant: Meant) -> Any:
    """What aliases mean goes the way of what is said in our own terms."""
    return _read(Settings(values={meant.key: meant.value}, source=settings.source), meant.key, by=meant.by[0])


def _check_known(settings: Settings) -> None:
    known = [*KEYS, *ALIASES]
    unknown = [key for key in settings.values if key not in known]
    if not unknown:
        return
    said = []
    for key in unknown:
        near = get_close_matches(key, known, n=1, cutoff=0.6)
        said.append(f"{key!r}{settings.where(key)}" + (f", did you mean {near[0]!r}?" if near else ""))
    what = "unknown key" if len(said) == 1 else "unknown keys"
    hint = (
        ""
        if settings.section or not settings.source
        else "; if the file has other settings, too, write these under holdfast"
    )
    raise InvalidInput(
        f"{what} {'; '.join(said)}; there is {', '.join(KEYS)}, and the names of docs/configuration.md{hint}"
    )


def _read(settings: Settings, name: str, by: str = "") -> Any:
    value, key, where = settings.values[name], KEYS[name], f"{by or name}{settings.where(by or name)}"
    try:
        return key.read(value)
    except _Unfit:
        raise InvalidInput(f"{where}: wants {key.wants}, not {_kind(value)}{value!r}") from None
    except HoldfastError as error:
        raise InvalidInput(f"{where}: {error}") from error


def _kind(value: Any) -> str:
    kinds = {
        bool: "",
        str: "the text ",
        int: "the number ",
        float: "the number ",
        list: "the list ",
        dict: "the table ",
    }
    return kinds.get(type(value), "")


def _new_run(arguments: Mapping[str, Any]) -> NewRun:
    run, resume = arguments.get("run"), arguments.get("resume")
    if isinstance(run, int):
        raise InvalidInput(f"overwrite_output_dir means a new run, and run is {run}, which is there; leave one out")
    if resume == "must":
        raise InvalidInput("overwrite_output_dir means a new run, and resume is 'must'; leave one out")
    return run if isinstance(run, NewRun) else new_run(run)


def _true(parts: Mapping[Part, bool]) -> set[Part]:
    return {part for part, said in parts.items() if said}


def _state(state: Any, not_saved: set[Part], not_restored: set[Part]) -> dict[str, Any]:
    if not isinstance(state, Mapping):
        return {} if state is None else {"state": state}
    gone = names_of(state, not_saved)
    kept = {name: value for name, value in state.items() if name not in gone}
    fresh = names_of(kept, not_restored)
    return {"state": kept} | ({"not_restored": fresh} if fresh else {})


# What each key takes


def _path(value: Any) -> str | Path:
    if not isinstance(value, str | Path) or not str(value):
        raise _Unfit
    return value


def _run(value: Any) -> Any:
    if isinstance(value, NewRun) or (isinstance(value, str) and value):
        return value
    return _whole(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit
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
        raise _Unfit
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _Unfit
    return value


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise _Unfit
    return float(value)


def _bytes(value: Any) -> int | str:
    return _whole(value) if not isinstance(value, str) else value


def _tolerance(value: Any) -> Any:
    if isinstance(value, bool):
        raise _Unfit
    tolerance_of(value)
    return value


def _signals(value: Any) -> tuple[str | int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _Unfit
    found = tuple(value)
    if not all(isinstance(one, str | int) and not isinstance(one, bool) for one in found):
        raise _Unfit
    return found


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _Unfit
    found = tuple(value)
    if not all(isinstance(one, str) and one for one in found):
        raise _Unfit
    return found


def _rules(value: Any) -> list[Any]:
    if not isinstance(value, str | list | tuple):
        raise _Unfit
    given = [value] if isinstance(value, str) else value
    rules = [parse_rule(one) if isinstance(one, str) else one for one in given]
    rules_of(rules)  # refuses what is no rule
    return rules


def _watchdog(value: Any) -> Watchdog | str:
    return value if isinstance(value, Watchdog) or value == "off" else watchdog_of(_text(value))


def _config(value: Any) -> Any:
    if isinstance(value, str | int | float | list):
        raise _Unfit
    return value


def _changes(value: Any) -> ChangeRules | Any:
    change_rules(value)
    return value


def _function(value: Any) -> Any:
    if not callable(value):
        raise _Unfit
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
    "resume": Key("auto, must, never or a reference such as run-003@500", _text),
    "accumulate": Key("an integer above 0", _whole),
    "prefix": Key("text", _text),
    "peer_timeout": Key("a number of seconds above 0", _seconds),
    "codec": Key("raw, zstd, openzl or auto", _text),
    "saver": Key("process or inline", _text),
    "ram_budget": Key("a number of bytes, or text such as '8GB'", _bytes),
    "on_save_error": Key("a number of failures, raise, warn, or text such as 'tolerate(hours=1)'", _tolerance),
    "on_full": Key("skip or pause", _text),
    "check_staging": Key("true or false", _flag),
    "progress": Key("true or false", _flag),
    "signals": Key("a list of signals, such as [SIGTERM, SIGUSR1]", _signals),
    "grace": Key("a number of seconds above 0", _seconds),
    "notice": Key("aws, gce, azure or auto", _text),
    "health": Key("a list of rules as text, such as \"when(nonfinite('loss'), stop())\"", _rules),
    "watchdog": Key("a watchdog as text, such as 'watchdog(hung=600)'", _watchdog),
    "good_after": Key("a number of steps above 0", _whole),
    "not_restored": Key("a list of names of state, such as [optimizer]", _names),
    "on_preempt": Key("a function, so it is given in Python", _function),
}
"""Every setting, by the name of its argument."""
