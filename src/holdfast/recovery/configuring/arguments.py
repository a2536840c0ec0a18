"""From settings to the arguments of a `Checkpointer`: every key checked, and an error names the key and its place.

Example:
    >>> found = arguments_of({"save": "every(steps=500)", "keep": "latest(3)", "grace": 30})
    >>> [(name, str(value)) for name, value in found.items()]
    [('save', 'every(steps=500)'), ('keep', 'latest(3)'), ('grace', '30.0')]
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.errors import HoldfastError, InvalidInput
from holdfast.ids import RunNumber
from holdfast.recovery.configuring.aliases import ALIASES, Part, Translated, restoring, translated
from holdfast.recovery.configuring.files import Settings, read_settings
from holdfast.recovery.configuring.parts import names_of
from holdfast.recovery.configuring.paths import reference_of
from holdfast.recovery.launching.choice import NewRun, NumberedRun, new_run, wanted
from holdfast.recovery.launching.keys import KEYS, Unfit
from holdfast.recovery.launching.settings import names_in

logger = logging.getLogger(__name__)

STORE = "checkpoints"
"""Where a `Checkpointer` is that is told nothing."""

NUMBERED = "run_number"
"""The alias that numbers a run, which need not be there yet."""

PATHLIKE = "resume_from_checkpoint"
"""The alias whose value may be a path."""


def arguments_of(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of a `Checkpointer` that a file or a mapping says.

    Args:
        source: a YAML or TOML file, or a mapping; see `holdfast.recovery.configuring.files.read_settings`.
        overrides: arguments from Python, ``state`` among them; an argument that is given here is not taken from
            ``source``, by whatever name it goes there. Objects that are not to be saved are taken out of ``state``.

    Raises:
        InvalidInput: a key that is not known, with the one that was meant perhaps; a value of the wrong kind; or two
            keys that contradict each other.
    """
    given = dict(overrides or {})
    state = given.pop("state", None)
    file, python = read_settings(source), Settings(values=given, source="from Python")
    for settings in (file, python):
        _check_known(settings)
    aliases = translated(file, python)
    for note in aliases.notes:
        logger.info("%s", note)
    own = _own(python)
    told = _together(_own(file), own, aliases)
    if aliases.new_run:
        told["run"] = _new_run(told)
    elif "run" in told:
        told["run"] = _numbered(told["run"], aliases)
    arguments = {key: one.value for key, one in told.items()}
    if not isinstance(state, Mapping):
        return arguments if state is None else {**arguments, "state": state}
    kept = _kept(state, aliases)
    left = _not_restored(state, kept, told.get("not_restored"), _counting(aliases, own))
    return {**arguments, "state": kept} | ({"not_restored": left} if left or "not_restored" in told else {})


class _Told(NamedTuple):
    """The value of an argument, and who says it."""

    value: Any
    by: str
    """The key, with its place."""


def _own(settings: Settings) -> dict[str, _Told]:
    """What is said in our own terms."""
    there = [key for key in settings.values if key in KEYS and settings.values[key] is not None]
    return {key: _told(key, settings.values[key], f"{key}{settings.where(key)}") for key in there}


def _together(file: Mapping[str, _Told], python: Mapping[str, _Told], aliases: Translated) -> dict[str, _Told]:
    """What Python says counts before what the file says, by whatever name; two that count alike must agree."""
    found = {**file, **python}
    if "not_restored" not in python and not aliases.over.isdisjoint(map(restoring, Part)):
        found.pop("not_restored", None)
    for key, meant in aliases.arguments.items():  # the store comes first
        by_python = not aliases.over.isdisjoint(meant.by)
        if key in python and not by_python:
            continue
        value = _resume(meant.value, found.get("store"), aliases) if meant.by == (PATHLIKE,) else meant.value
        other = python.get(key) if by_python else file.get(key)
        if other is not None and other.value != value:
            means = " with ".join(f"{alias}{aliases.places[alias]}" for alias in meant.by)
            raise _contradiction(other, f"{means} means {value}")
        # What aliases mean goes the way of what is said in our own terms.
        found[key] = _told(key, value, f"{meant.by[0]}{aliases.places[meant.by[0]]}")
    return found


def _resume(value: str, store: _Told | None, aliases: Translated) -> str:
    """What a path means that ``resume_from_checkpoint`` names, in the store that is configured."""
    try:
        return reference_of(value, STORE if store is None else store.value)
    except InvalidInput as error:
        raise InvalidInput(f"{PATHLIKE}{aliases.places[PATHLIKE]}: {error}") from error


def _contradiction(one: _Told, means: str) -> InvalidInput:
    return InvalidInput(f"{one.by} is {one.value}, and {means}: they contradict each other; leave one of them out")


def _check_known(settings: Settings) -> None:
    known = [*KEYS, *ALIASES]
    unknown = [key for key in settings.values if key not in known]
    if not unknown:
        return
    said = []
    if "state" in unknown:
        raise InvalidInput(
            f"'state'{settings.where('state')}: its objects are given in Python, "
            "such as Checkpointer.from_config(..., state={'model': model})"
        )
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


def _told(name: str, value: Any, by: str) -> _Told:
    key = KEYS[name]
    try:
        return _Told(key.read(value), by)
    except Unfit:
        raise InvalidInput(f"{by}: wants {key.wants}, not {_kind(value)}{value!r}") from None
    except HoldfastError as error:
        raise InvalidInput(f"{by}: {error}") from error


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


def _new_run(told: Mapping[str, _Told]) -> _Told:
    run, resume = told.get("run", _Told(None, "run")), told.get("resume")
    if isinstance(run.value, NewRun):
        return run
    if isinstance(wanted(run.value), RunNumber):
        raise InvalidInput(
            f"overwrite_output_dir means a new run, and {run.by} is {run.value}, which is one run; leave one out"
        )
    if resume is not None and resume.value == "must":
        raise InvalidInput(f"overwrite_output_dir means a new run, and {resume.by} means 'must'; leave one out")
    return _Told(new_run(run.value), run.by)


def _numbered(run: _Told, aliases: Translated) -> _Told:
    """The run of a ``run_number``, which may be the one that is to be made."""
    meant = aliases.arguments.get("run")
    if meant is None or meant.by != (NUMBERED,) or run.by != f"{NUMBERED}{aliases.places[NUMBERED]}":
        return run
    return _Told(NumberedRun(RunNumber(run.value), run.by), run.by)


def _kept(state: Mapping[str, object], aliases: Translated) -> dict[str, object]:
    """The state without what is not saved."""
    gone = names_of(state, _true(aliases.not_saved))
    return {name: value for name, value in state.items() if name not in gone}


def _counting(aliases: Translated, python: Mapping[str, _Told]) -> Translated:
    """Without what the file says of single parts, where Python has a list of all that is not restored."""
    if "not_restored" not in python:
        return aliases
    parts = {part: left for part, left in aliases.not_restored.items() if restoring(part) in aliases.over}
    return replace(aliases, not_restored=parts)


def _not_restored(
    state: Mapping[str, object], kept: Mapping[str, object], own: _Told | None, aliases: Translated
) -> tuple[str, ...]:
    """The names of what is not restored of ``kept``; a list of them must agree with the aliases."""
    left = names_of(kept, _true(aliases.not_restored))
    if own is None:
        return left
    try:
        # What is not saved is left as it is anyway.
        names = tuple(name for name in names_in(state, own.value) if name in kept)
    except InvalidInput as error:
        raise InvalidInput(f"{own.by}: {error}") from error
    for part, said in aliases.not_restored.items():
        alias, these = restoring(part), names_of(kept, [part])
        if said and set(left) != set(names):
            raise _contradiction(own, f"{alias}{aliases.places[alias]} means {list(these)}")
        if not said and not set(these).isdisjoint(names):
            raise _contradiction(own, f"{alias}{aliases.places[alias]} means that {', '.join(these)} is restored")
    return names


def _true(parts: Mapping[Part, bool]) -> set[Part]:
    return {part for part, said in parts.items() if said}
