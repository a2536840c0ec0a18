"""Policies from their text: what `str` writes and a person types on a command line. Nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Callable

from holdfast.errors import InvalidPolicy
from holdfast.policy.at import at
from holdfast.policy.at_most import at_most
from holdfast.policy.auto import auto
from holdfast.policy.base import Policy
from holdfast.policy.best import best
from holdfast.policy.every import every
from holdfast.policy.latest import latest
from holdfast.policy.newer import newer

LONGEST = 10_000
"""Characters; more is no policy but an accident."""

_VERBS: dict[str, Callable[..., Policy]] = {
    "at": at,
    "at_most": at_most,
    "auto": auto,
    "best": best,
    "every": every,
    "latest": latest,
    "newer": newer,
}


def parse(text: str) -> Policy:
    """The policy that ``text`` writes, as `str` prints it.

    Raises:
        InvalidPolicy: anything but the policies of this package with literal arguments, joined by ``|``.

    Example:
        >>> from holdfast.policy import best, latest
        >>> parse('latest(3) | best("val_loss", 2)') == latest(3) | best("val_loss", 2)
        True
    """
    if len(text) > LONGEST:
        raise InvalidPolicy(f"a policy of {len(text)} characters; at most {LONGEST} are read")
    try:
        return _policy(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        if isinstance(error, InvalidPolicy):
            raise
        raise InvalidPolicy(f"cannot read the policy {text[:200]!r}: {error}") from error


def _policy(node: ast.expr, text: str) -> Policy:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _policy(node.left, text) | _policy(node.right, text)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in _VERBS:
        raise InvalidPolicy(f"cannot read the policy {text[:200]!r}; use {', '.join(_VERBS)} joined by |")
    return _call(_VERBS[node.func.id], node)


def _call(verb: Callable[..., Policy], node: ast.Call) -> Policy:
    named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    return verb(*map(ast.literal_eval, node.args), **named)
