"""Secrets in a configuration: found by their keys, and blotted out before anything is stored or shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any, Final

REDACTED: Final = "<redacted>"
"""Stands where a secret was."""

_SECRET = re.compile(
    "secret|password|passwd|api_?key|access_key|credential|(^|_)token$"
    "|(^|_)(hf|hub|huggingface|wandb|github|auth|access|api|bearer|refresh)_tokens?(_|$)"
)
# Language models have a key for each of their special tokens, which is a word or its number.
_EVERYDAY = re.compile(
    "(^|_)(pad|eos|bos|sos|eot|eod|unk|mask|sep|cls|class|blank|special|start|end|stop|begin|first|last|next|prev|new|"
    "max|min|num|per|image|audio|video|vision|prompt|prefix|suffix|middle|fim|reg|register|dist|pool|user|assistant|"
    "system|text)_token$"
)


def is_secret(key: str) -> bool:
    """Whether what stands under a key is a secret, to go by its name.

    Example:
        >>> [key for key in ("hf_token", "apiKey", "max_tokens", "pad_token") if is_secret(key)]
        ['hf_token', 'apiKey']
    """
    word = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).lower()
    return bool(_SECRET.search(word)) and not _EVERYDAY.search(word)


def blotted(key: str, value: Any) -> Any:
    """A value of a configuration without what is secret in it: all of it, if the key says so; keys become text."""
    if is_secret(key):
        return REDACTED
    if isinstance(value, Mapping):
        return {str(inner): blotted(str(inner), item) for inner, item in value.items()}
    return _blotted_within(value)


def unblotted(value: Any, own: Any) -> Any:
    """A stored value with the program's own secrets: those that stand at the same places of ``own``.

    Example:
        >>> unblotted([{"lr": 1, "token": "<redacted>"}], [{"lr": 2, "token": "abc"}])
        [{'lr': 1, 'token': 'abc'}]
    """
    if is_blotted(value):
        return own
    if type(value) is dict and isinstance(own, Mapping):
        return {key: unblotted(item, own.get(key, REDACTED)) for key, item in value.items()}
    if type(value) in (list, tuple) and isinstance(own, list | tuple):
        return type(value)(map(unblotted, value, chain(own, repeat(REDACTED))))
    return value


def is_blotted(value: object) -> bool:
    """Whether a secret was here."""
    return isinstance(value, str) and value == REDACTED


def _blotted_within(value: Any) -> Any:
    """In lists, keys stay what they are, and so does all that has no secret: its digest is that of the value given."""
    if isinstance(value, Mapping):
        table = {key: REDACTED if is_secret(str(key)) else _blotted_within(item) for key, item in value.items()}
        return value if all(table[key] is item for key, item in value.items()) else table
    if isinstance(value, list | tuple):
        items = [_blotted_within(item) for item in value]
        same = all(one is other for one, other in zip(items, value, strict=True))
        return value if same else items if isinstance(value, list) else tuple(items)
    return value
