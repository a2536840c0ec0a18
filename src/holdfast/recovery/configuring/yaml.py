"""YAML as people mean it: version 1.2's core schema, with the line of every key, and no key twice.

PyYAML reads version 1.1, where ``no`` and ``off`` are booleans, ``1e-3`` is text and ``010`` is 8. So its parser and
its safe constructor are used, and the rules by which plain words become values are those of YAML 1.2.2, section 10.3.2.
Tags that would make objects are refused by the safe constructor. PyYAML, because whoever trains mostly
has it (transformers needs it) and its nodes have lines; ruamel.yaml reads version 1.2 by itself, and would be one more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from holdfast.errors import InvalidInput

_MERGE = "tag:yaml.org,2002:merge"
_DEEP = 20
"""Levels of keys whose lines are known."""


class _Loader(yaml.SafeLoader):
    """Core schema."""

    def construct_yaml_int(self, node: Any) -> int:
        """Octal numbers begin with ``0o``; all others are decimal or ``0x``."""
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.yaml_implicit_resolvers = {}  # those of version 1.1 are inherited otherwise
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)

for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def read_yaml(text: str, name: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    r"""The values of a document, and the lines of its keys.

    Raises:
        InvalidInput: no YAML, more than one document, a key twice, or a tag that makes objects; with the line.

    Example:
        >>> read_yaml("save_strategy: no\nlr: 1e-3", "train.yaml")
        ({'save_strategy': 'no', 'lr': 0.001}, {('save_strategy',): 1, ('lr',): 2})
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _check_keys(node)
        values = {} if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidInput(f"{name}{_place(error)}: {_problem(error)}") from error
    finally:
        loader.dispose()
    return values, {} if node is None else dict(_lines(node, ()))


def _check_keys(root: Any) -> None:
    """Refuses a key that is there twice: the second one would win in silence.

    Before anything is constructed, for that writes what is merged into the nodes, and some of them are merged again.
    """
    waiting, known = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_mapping(node)
            waiting += [part for pair in node.value for part in pair]
        else:
            waiting += node.value


def _check_mapping(node: Any) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if key.value in seen:
                said = f"{key.value!r} is there already, in line {seen[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen[key.value] = key.start_mark.line + 1


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _lines(node: Any, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if not isinstance(node, yaml.MappingNode) or len(above) >= _DEEP:
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            path = (*above, str(key.value))
            yield path, key.start_mark.line + 1
            yield from _lines(value, path)
