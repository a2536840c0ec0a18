"""The configuration of a run: stored with a digest, compared at every launch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from holdfast import values
from holdfast.ids import Digest

_SECRET = ("secret", "password", "passwd", "token_", "api_key", "apikey", "access_key", "credential")


class _Absent:
    """No value, where None is one."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
"""Stands for the value of a key that is not there."""


def plain_config(config: object) -> dict[str, Any]:
    """A configuration as a dictionary: from a mapping, a dataclass or an ``argparse.Namespace``; secrets blotted out.

    Example:
        >>> plain_config({"lr": 0.1, "api_key": "abc"})
        {'lr': 0.1, 'api_key': '<redacted>'}
    """
    if config is None:
        return {}
    items = config if isinstance(config, Mapping) else vars(config)
    return {str(key): _redacted(str(key), value) for key, value in items.items()}


def config_digest(config: Mapping[str, Any]) -> str:
    """The digest of a configuration, whatever the order of its keys."""
    return str(Digest.of(_text(values.encode(dict(config))).encode()))


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Each key that differs, with both values, one of them `ABSENT` perhaps; within mappings the keys of those.

    Example:
        >>> list(changed_keys({"optim": {"lr": 0.1, "eps": 1}}, {"optim": {"lr": 0.2, "eps": 1}, "seed": 3}))
        [(('optim', 'lr'), 0.1, 0.2), (('seed',), absent, 3)]
    """
    for key in sorted({*before, *after}):
        then, now = before.get(key, ABSENT), after.get(key, ABSENT)
        if _is_tree(then) and _is_tree(now):
            yield from (((key, *path), *both) for path, *both in changed_keys(then, now))
        elif not _same(then, now):
            yield (key,), then, now


def with_value(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of a configuration with another value at a path; `ABSENT` takes the key away.

    Example:
        >>> with_value({"optim": {"lr": 0.1}}, ("optim", "lr"), 0.2)
        {'optim': {'lr': 0.2}}
    """
    first, *rest = path
    found = dict(config)
    if rest:
        found[first] = with_value(found.get(first, {}), tuple(rest), value)
    elif value is ABSENT:
        found.pop(first, None)
    else:
        found[first] = value
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


def _redacted(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(inner): _redacted(str(inner), item) for inner, item in value.items()}
    return "<redacted>" if any(word in key.lower() for word in _SECRET) else value
