"""What a `Checkpointer` was asked for, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from holdfast.catalog.config import plain_config
from holdfast.catalog.naming.selecting import near_misses
from holdfast.errors import InvalidInput
from holdfast.policy import At, Best, Policy, any_of, best, every, for_keeping, for_saving, latest
from holdfast.policy.text import readable
from holdfast.recovery.launching.choice import NewRun, NumberedRun, wanted
from holdfast.recovery.launching.config_changes import change_rules
from holdfast.recovery.launching.keys import fit, fit_or_none


def checked(
    store: str | Path,
    run: str | int | NewRun | NumberedRun | None,
    resume: str,
    config: object,
    save: Policy | None,
    keep: Policy | None,
    stage: Policy | None,
    peer_timeout: float,
    on_config_change: object,
    not_restored: Iterable[str],
    state: Mapping[str, object],
) -> dict[str, Any]:
    """Fields of a `holdfast.recovery.launching.session.Plan`; the arguments are those of `Checkpointer`.

    Raises:
        InvalidInput: one that cannot be right.
    """
    _check_state(state)
    return {
        "url": fit("store", store),
        "want": wanted(fit_or_none("run", run)),
        "resume": fit("resume", resume),
        "config": plain_config(config),
        "save": (when := readable("save", for_saving(save if save is not None else every(minutes=15)))),
        "keep": readable("keep", for_keeping(keep if keep is not None else kept_beside(when))),
        "stage": None if stage is None else for_saving(stage, "stage"),
        "patience": fit("peer_timeout", peer_timeout),
        "on_config_change": change_rules(on_config_change),
        "not_restored": _left(state, not_restored),
    }


def kept_beside(save: Policy) -> Policy:
    """What is kept where nobody says what: the newest three, and what ``save`` makes for more than its being new.

    Else three later checkpoints would be the end of the best one and of each milestone.

    Example:
        >>> print(kept_beside(every(steps=500) | best("acc", 2, mode="max")))
        latest(3) | best("acc", mode="max")
    """
    more = [
        best(part.metric, mode=part.mode) if isinstance(part, Best) else part
        for part in save.parts
        if isinstance(part, Best | At)
    ]
    return any_of(latest(3), *more) if more else latest(3)


def _check_state(state: object) -> None:
    if not isinstance(state, Mapping) or not state:
        raise InvalidInput('state= wants a mapping of names to objects, such as {"model": model}')
    if odd := [name for name in state if not isinstance(name, str)]:
        raise InvalidInput(f"state[{odd[0]!r}]: a name of state is text, such as 'model'")


def names_in(state: Mapping[str, object], names: object) -> tuple[str, ...]:
    """Names of ``state``, each once.

    Raises:
        InvalidInput: no list of names, or one of them is not there, with the one that was meant perhaps.

    Example:
        >>> names_in({"model": 1, "optimizer": 2}, ["optimizer"])
        ('optimizer',)
    """
    if isinstance(names, str | bytes | Mapping) or not isinstance(names, Iterable):
        raise InvalidInput(f"wants a list of names of state, such as ['optimizer'], not {names!r}")
    found = tuple(names)
    for name in found:
        if not isinstance(name, str) or name not in state:
            there = ", ".join(map(str, state))
            raise InvalidInput(f"{name!r} is not in state, which has {there}{near_misses(str(name), state)}")
    return tuple(dict.fromkeys(found))


def _left(state: Mapping[str, object], names: object) -> tuple[str, ...]:
    try:
        return names_in(state, names)
    except InvalidInput as error:
        raise InvalidInput(f"not_restored: {error}") from None
