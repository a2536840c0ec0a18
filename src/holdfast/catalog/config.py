"""The configuration of a run: stored with a digest, compared at every launch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from holdfast import values
from holdfast.ids import Digest

_SECRET = ("secret", "password", "passwd", "token_", "api_key", "apikey", "access_key", "credential")


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


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """One line for each key that differs.

    Example:
        >>> list(config_changes({"lr": 0.1, "seed": 1}, {"lr": 0.2, "seed": 1}))
        ['lr was 0.1 and is 0.2']
    """
    for key in sorted({*before, *after}):
        then, now = before.get(key, "absent"), after.get(key, "absent")
        if not _same(then, now):
            yield f"{key} was {then!r} and is {now!r}"


def _same(then: object, now: object) -> bool:
    """As stored: NaN is NaN; and what the reader could only show (a class that has moved) is as it shows now."""
    stored = values.encode(now)
    return _text(values.encode(then)) in (_text(stored), _text(values.display(stored)))


def _text(stored: values.Json) -> str:
    return json.dumps(stored, sort_keys=True)


def _redacted(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(inner): _redacted(str(inner), item) for inner, item in value.items()}
    return "<redacted>" if any(word in key.lower() for word in _SECRET) else value
