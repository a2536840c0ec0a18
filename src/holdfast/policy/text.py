"""Policies from their text: what `str` writes and a person types on a command line. Nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Callable

from holdfast.catalog.naming.metrics import Mode
from holdfast.errors import InvalidPolicy
from holdfast.policy.at import at
from holdfast.policy.at_most import at_most
from holdfast.policy.auto import auto
from holdfast.policy.base import Policy, any_of
from holdfast.policy.best import best
from holdfast.policy.every import every
from holdfast.policy.latest import latest
from holdfast.policy.never import never
from holdfast.policy.newer import newer
from holdfast.policy.slips import Mistyped, check_arguments, check_names, check_verb, expression, literal, quoted

LONGEST = 32 * 1024
"""Bytes of UTF-8; more is no policy but an accident, and would not fit into a message to the saver as well."""

MOST_PARTS = 1000
"""Joined by ``|``; Python reads two thousand at the start of a program, and fewer the deeper it is in calls."""

LIKE = 'every(steps=500) | best("val_loss") or latest(3) | at_most("500GB")'
"""Examples of policies, for whoever writes none."""

_VERBS: dict[str, Callable[..., Policy]] = {
    "at": at,
    "at_most": at_most,
    "auto": auto,
    "best": best,
    "every": every,
    "latest": latest,
    "never": never,
    "newer": newer,
}
_LIKE = {
    "at": "at(steps=[100, 1000])",
    "at_most": 'at_most("500GB")',
    "best": 'best("val_loss")',
    "latest": "latest(3)",
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
    _check_length(text)
    try:
        return _policy(expression(text.strip(), LIKE))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        if isinstance(error, InvalidPolicy):
            raise
        raise InvalidPolicy(f"cannot read the policy {text[:200]!r}: {error}") from error


def readable(use: str, policy: Policy) -> Policy:
    """``policy``, checked to read back from its text: the saver and the commands know it from that alone.

    Raises:
        InvalidPolicy: it does not; ``use`` names the argument.

    Example:
        >>> from holdfast.policy import latest
        >>> print(readable("keep", latest(3)))
        latest(3)
    """
    text = str(policy)
    try:
        found = parse(text)
    except InvalidPolicy as error:
        raise InvalidPolicy(f"{use}= cannot be read back from what is stored of it: {error}") from error
    if found.parts != policy.parts:
        raise InvalidPolicy(f"{use}={text[:200]!r} reads back as {str(found)[:200]!r}; use {', '.join(_VERBS)}")
    return policy


def _check_length(text: str) -> None:
    if not text.strip():
        raise InvalidPolicy("an empty text is no policy; write one such as 'latest(3)'")
    length = len(text.encode(errors="replace"))
    if length > LONGEST:
        raise InvalidPolicy(
            f"a policy of {length} bytes, {text[:60]!r} and so on; at most {LONGEST} are read, so say it by a rule, "
            "such as every(steps=500) instead of a list of all these steps"
        )


def _policy(node: ast.expr) -> Policy:
    joined: list[Policy] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):  # a loop: one frame for each part is too many
        joined.append(_policy(node.right))
        node = node.left
    if len(joined) >= MOST_PARTS:
        raise InvalidPolicy(f"a policy of {len(joined) + 1} parts joined by |; at most {MOST_PARTS} are read")
    first = _call(node)
    return any_of(first, *reversed(joined)) if joined else first


def _call(node: ast.expr) -> Policy:
    if isinstance(node, ast.Name) and node.id in _VERBS:
        raise Mistyped(f"{node.id} wants brackets: {node.id}(...)")
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise Mistyped(f"use {', '.join(_VERBS)} joined by |, such as {LIKE}")
    check_verb(node.func.id, _VERBS)
    verb = _VERBS[node.func.id]
    check_names(verb, node)
    _check_mode(node)
    check_arguments(verb, node, _LIKE.get(node.func.id, f"{node.func.id}()"))
    named = {str(keyword.arg): literal(keyword.value, node) for keyword in node.keywords}
    return verb(*(literal(one, node) for one in node.args), **named)


def _check_mode(call: ast.Call) -> None:
    """``best("acc", max)``: the second one is how many."""
    for one in call.args[1:]:
        said = one.id if isinstance(one, ast.Name) else one.value if isinstance(one, ast.Constant) else None
        if said in tuple(Mode) and ast.unparse(call.func) == "best":
            others = ", ".join(quoted(other) for other in call.args if other is not one)
            raise Mistyped(f"best() wants mode=: best({others}, mode={str(said)!r})")
