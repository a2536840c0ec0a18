"""Rules, checks, actions and watchdogs from their text: what `str` writes and a configuration holds.

Nothing is evaluated. Functions are named by their path, and such a text
imports a module: read no rules that somebody else has written.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from holdfast.errors import InvalidPolicy
from holdfast.health.actions import Action
from holdfast.health.base import Check
from holdfast.health.beside import notify, save_now
from holdfast.health.disk import disk_low
from holdfast.health.gpu import gpu_errors, gpu_hot, gpu_throttled
from holdfast.health.memory import cgroup_memory, gpu_memory, host_memory, out_of_memory
from holdfast.health.nonfinite import nonfinite
from holdfast.health.own import own
from holdfast.health.remedies import free_space, rollback, shrink_batch, stop
from holdfast.health.rules import Rule, when
from holdfast.health.slow import slow_steps
from holdfast.health.spike import spike
from holdfast.health.watchdog import Watchdog, watchdog
from holdfast.policy import every
from holdfast.policy.slips import Mistyped, check_names, check_verb, expression, literal

LONGEST = 10_000
"""Characters; more is no rule but an accident."""

_CHECKS: tuple[Callable[..., Check], ...] = (
    *(nonfinite, spike, slow_steps, host_memory, cgroup_memory, gpu_memory, out_of_memory),
    *(disk_low, gpu_errors, gpu_hot, gpu_throttled, own),
)
_ACTIONS: tuple[Callable[..., Action], ...] = (rollback, shrink_batch, save_now, free_space, notify, stop)
_ALL: tuple[Callable[..., Any], ...] = (*_CHECKS, *_ACTIONS, when, watchdog, every)
_VERBS = {verb.__name__: verb for verb in _ALL}


def parse(text: str) -> Rule:
    """The rule that ``text`` writes; a check alone is a rule without actions.

    Raises:
        InvalidPolicy: anything else, or an argument makes no sense.

    Example:
        >>> print(parse("when(nonfinite('loss'), rollback(scale_lr=0.5), stop())"))
        when(nonfinite("loss"), rollback(scale_lr=0.5), stop())
    """
    found = _read(text, 'when(nonfinite("loss"), rollback(), stop())')
    if isinstance(found, Check):
        return when(found)
    if not isinstance(found, Rule):
        raise InvalidPolicy(f"{text[:200]!r} is no rule; write when(check, actions...) or a check")
    return found


def check_of(text: str) -> Check:
    """The check that ``text`` writes.

    Raises:
        InvalidPolicy: anything else, or an argument makes no sense.
    """
    found = _read(text, 'nonfinite("loss")')
    if not isinstance(found, Check):
        raise InvalidPolicy(f"{text[:200]!r} is no check; there is {_named(_CHECKS)}")
    return found


def action_of(text: str) -> Action:
    """The action that ``text`` writes.

    Raises:
        InvalidPolicy: anything else, or an argument makes no sense.
    """
    found = _read(text, "rollback()")
    if not isinstance(found, Action):
        raise InvalidPolicy(f"{text[:200]!r} is no action; there is {_named(_ACTIONS)}")
    return found


def watchdog_of(text: str) -> Watchdog:
    """The watchdog that ``text`` writes.

    Raises:
        InvalidPolicy: anything else, or an argument makes no sense.
    """
    found = _read(text, "watchdog(hung=600)")
    if not isinstance(found, Watchdog):
        raise InvalidPolicy(f"{text[:200]!r} is no watchdog; write watchdog(...)")
    return found


def _named(verbs: tuple[Callable[..., Any], ...]) -> str:
    return ", ".join(verb.__name__ for verb in verbs)


def _read(text: str, like: str) -> Any:
    if len(text) > LONGEST:
        raise InvalidPolicy(f"a rule of {len(text)} characters; at most {LONGEST} are read")
    try:
        return _called(expression(text.strip(), like), like)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        if isinstance(error, InvalidPolicy):
            raise
        raise InvalidPolicy(f"cannot read {text[:200]!r}: {error}") from error


def _called(node: ast.expr, like: str) -> Any:
    if isinstance(node, ast.Call):
        return _made(node, node)
    if isinstance(node, ast.Name) and node.id in _VERBS:
        raise Mistyped(f"{node.id} wants brackets: {node.id}(...)")
    raise Mistyped(f"it is written like {like}")


def _made(node: ast.expr, within: ast.Call) -> Any:
    if not isinstance(node, ast.Call):
        return literal(node, within, _VERBS)
    if not isinstance(node.func, ast.Name):
        raise Mistyped(f"{ast.unparse(node.func)[:200]!r} is none of {', '.join(_VERBS)}")
    check_verb(node.func.id, _VERBS)
    verb = _VERBS[node.func.id]
    check_names(verb, node)
    named = {str(keyword.arg): _made(keyword.value, node) for keyword in node.keywords}
    return verb(*(_made(one, node) for one in node.args), **named)
