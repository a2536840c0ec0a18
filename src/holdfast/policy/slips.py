"""What was mistyped in the text of a policy or a rule, in words that say how it is written."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

_CAPITALS = {"true": "True", "false": "False", "none": "None", "null": "None"}
_WORDS = (ast.Name, ast.Attribute, ast.BinOp, ast.operator, ast.expr_context, ast.Constant)
"""What a name without quotes may be taken for: ``val/loss`` divides."""


class Mistyped(ValueError):
    """How it is written instead; whoever reads the text says which text it was."""


def expression(text: str, like: str) -> ast.expr:
    """What ``text`` writes.

    Raises:
        Mistyped: nothing that can be read; with ``like``, an example.
    """
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:  # its own words are about Python, and about a file that nobody has written
        raise Mistyped(f"it is written like {like}, with names and sizes in quotes") from error


def literal(node: ast.expr, call: ast.Call, verbs: Iterable[str] = ()) -> Any:
    """The number, text or list that an argument of ``call`` writes.

    Raises:
        Mistyped: something else; a name wants quotes, or brackets if it is one of ``verbs``.

    Example:
        >>> call = ast.parse("best(val_loss, 2)", mode="eval").body
        >>> literal(call.args[0], call)
        Traceback (most recent call last):
        holdfast.policy.slips.Mistyped: write names in quotes: best("val_loss", 2)
    """
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise Mistyped(_meant(node, call, verbs)) from error


def check_names(verb: Callable[..., Any], call: ast.Call) -> None:
    """Refuses an argument that ``verb`` does not have.

    Raises:
        Mistyped: there is one; with the one that was meant perhaps.
    """
    parameters = inspect.signature(verb).parameters.values()
    known = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    for keyword in call.keywords:
        if keyword.arg is None:
            raise Mistyped("write out what ** stands for")
        if keyword.arg not in known:
            there = f"{verb.__name__}() has no {keyword.arg}="
            raise Mistyped(
                there + (_near(verb.__name__, keyword, known) or f"; it takes {', '.join(known) or 'nothing'}")
            )


def check_arguments(verb: Callable[..., Any], call: ast.Call, like: str) -> None:
    """Refuses arguments without the names that ``verb`` wants, too many of them, and too few.

    Raises:
        Mistyped: with how it is written; ``like`` is an example.
    """
    if any(isinstance(one, ast.Starred) for one in call.args):
        return  # which is refused for what it is
    parameters = list(inspect.signature(verb).parameters.values())
    nameless = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    named = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    if call.args and not nameless:
        raise Mistyped(_with_a_name(verb.__name__, call.args, named))
    if len(call.args) > len(nameless):
        raise Mistyped(
            f"{verb.__name__}() takes only {' and '.join(nameless)} without names; it is written like {like}"
        )
    given = {*nameless[: len(call.args)], *(one.arg for one in call.keywords)}
    if missing := [one.name for one in parameters if one.default is one.empty and one.name not in given]:
        raise Mistyped(f"{verb.__name__}() wants {missing[0]}, such as {like}")


def _with_a_name(verb: str, args: list[ast.expr], names: list[str]) -> str:
    if not names:
        return f"{verb}() takes nothing"
    value = ast.unparse(args[0] if len(args) == 1 or len(names) > 1 else ast.List(args, ast.Load()))[:200]
    others = f", or {', '.join(f'{name}=' for name in names[1:])}" if names[1:] else ""
    return f"{verb}() wants names: {verb}({names[0]}={value}){others}"


def check_verb(name: str, verbs: Iterable[str]) -> None:
    """Refuses a name that is none of ``verbs``.

    Raises:
        Mistyped: it is none; with the one that was meant perhaps, else with all.
    """
    known = list(verbs)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise Mistyped(
            f"there is no {name}(); " + (f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}")
        )


def _near(verb: str, keyword: ast.keyword, known: list[str]) -> str:
    near = get_close_matches(str(keyword.arg), known, n=1)
    return f"; did you mean {verb}({near[0]}={ast.unparse(keyword.value)[:200]})?" if near else ""


def _meant(node: ast.expr, call: ast.Call, verbs: Iterable[str]) -> str:
    said = ast.unparse(node)[:200]
    if isinstance(node, ast.Name) and node.id in verbs:
        return f"{said} wants brackets: {said}(...)"
    if isinstance(node, ast.Name) and node.id in _CAPITALS:
        return f"write {_CAPITALS[node.id]} for {said}"
    if not _nameless(node):
        return f"write names in quotes: {_rewritten(call)}"
    return f"{said!r} is no number, text or list"


def _nameless(node: ast.expr) -> bool:
    parts = list(ast.walk(node))
    return not all(isinstance(part, _WORDS) for part in parts) or not any(isinstance(part, ast.Name) for part in parts)


def _rewritten(call: ast.Call) -> str:
    named = [f"{one.arg}={quoted(one.value)}" for one in call.keywords]
    return f"{ast.unparse(call.func)}({', '.join([*map(quoted, call.args), *named])})"


def quoted(node: ast.expr) -> str:
    """An argument as it is written, in quotes if it is a name."""
    said = ast.unparse(node)
    return said if _nameless(node) else json.dumps(said.replace(" ", ""), ensure_ascii=False)
