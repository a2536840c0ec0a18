"""The configuration of a run: stored with a digest, compared at every launch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from holdfast import values
from holdfast.catalog.blotting import blotted, is_blotted, unblotted
from holdfast.errors import InvalidInput
from holdfast.ids import Digest


class _Absent:
    """No value, where None is one."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
"""Stands for the value of a key that is not there."""


def plain_config(config: object) -> dict[str, Any]:
    """A configuration as it is stored and shown: keys are text, and everything below a secret one is blotted out.

    Args:
        config: a mapping, a dataclass, an ``argparse.Namespace``, or None.

    Raises:
        InvalidInput: it is nothing of that kind.

    Example:
        >>> plain_config({"lr": 0.1, "api_key": "abc"})
        {'lr': 0.1, 'api_key': '<redacted>'}
    """
    return {str(key): blotted(str(key), value) for key, value in items_of(config).items()}


def items_of(config: object) -> Mapping[Any, Any]:
    """A configuration as given, by its keys: what the program gets back.

    Raises:
        InvalidInput: as `plain_config`.
    """
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    if hasattr(config, "__dict__"):
        return dict(vars(config))
    if is_dataclass(config):  # with slots
        return {one.name: getattr(config, one.name) for one in fields(config)}
    raise InvalidInput(f"config wants a mapping, a dataclass or a namespace, not {config!r:.200}")


def config_digest(config: Mapping[str, Any]) -> str:
    """The digest of a configuration, whatever the order of its keys."""
    return str(Digest.of(_text(values.encode(dict(config))).encode()))


def dotted_keys(config: Mapping[Any, Any]) -> Iterator[str]:
    """Every key that a rule can name, those of tables and those in them.

    Example:
        >>> list(dotted_keys({"optim": {"lr": 0.1}, "seed": 3}))
        ['optim', 'optim.lr', 'seed']
    """
    for key, value in config.items():
        yield str(key)
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in dotted_keys(value))


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Each key that differs, with both values, one of them `ABSENT` perhaps; within mappings the keys of those.

    What is blotted out on either side is passed over: nobody can tell whether it has changed, and it cannot be kept.

    Example:
        >>> list(changed_keys({"optim": {"lr": 0.1, "eps": 1}}, {"optim": {"lr": 0.2, "eps": 1}, "seed": 3}))
        [(('optim', 'lr'), 0.1, 0.2), (('seed',), absent, 3)]
    """
    for key in sorted({*before, *after}):
        then, now = before.get(key, ABSENT), after.get(key, ABSENT)
        if is_blotted(then) or is_blotted(now):
            continue
        if _is_tree(then) and _is_tree(now):
            yield from (((key, *path), *both) for path, *both in changed_keys(then, now))
        elif not _same(then, now):
            yield (key,), then, now


def with_value(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of a configuration with another value at a path; `ABSENT` takes the key away.

    Keys that are no text are found by their text, as `plain_config` has them; what is blotted out of the value stays
    what it is in ``config``.

    Example:
        >>> with_value({"optim": {"lr": 0.1}}, ("optim", "lr"), 0.2)
        {'optim': {'lr': 0.2}}
    """
    first, *rest = path
    found = dict(config)
    key = first if first in found else next((one for one in found if str(one) == first), first)
    if rest:
        found[key] = with_value(found.get(key, {}), tuple(rest), value)
    elif value is ABSENT:
        found.pop(key, None)
    else:
        found[key] = unblotted(value, found.get(key, value))
    return found


def _is_tree(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(key, str) for key in value)


def _same(then: object, now: object) -> bool:
    """As stored: NaN is NaN; and what the reader could only show (a class that has moved) is as it shows now."""
    if then is ABSENT or now is ABSENT:
        return False
    stored = values.encode(now)
    return _text(values.encode(then)) in (_text(stored), _text(values.display(stored)))


def _text(stored: values.Json) -> str:
    return json.dumps(stored, sort_keys=True)
