"""``when``: a check, and what is done about its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from holdfast.errors import InvalidPolicy
from holdfast.health.actions import Action
from holdfast.health.base import Check
from holdfast.health.disk import disk_low
from holdfast.health.memory import cgroup_memory
from holdfast.health.nonfinite import nonfinite
from holdfast.health.own import own


@dataclass(frozen=True, slots=True)
class Rule:
    """See `when`."""

    check: Check
    actions: tuple[Action, ...] = ()

    @property
    def shown(self) -> str:
        """As it is written, without what others must not read."""
        return f"when({', '.join([str(self.check), *(action.shown for action in self.actions)])})"

    def __str__(self) -> str:
        return f"when({', '.join(map(str, (self.check, *self.actions)))})"


def when(check: Check | Callable[[Any], str | None], *actions: Action) -> Rule:
    """``actions`` are taken when ``check`` judges; without any its verdicts are noted, and withhold the mark good.

    `notify` and `save_now` are done beside the others. Of the others the first one with budget left is tried, and the
    next one once it is used up; `rollback` and `shrink_batch` end in `stop` when nothing comes after them.

    Args:
        check: a check, or a function of an `Observation` that gives what is wrong or None.
        actions: in order.

    Raises:
        InvalidPolicy: no check, or something that is no action.

    Example:
        >>> from holdfast.health.remedies import free_space, stop
        >>> print(when(disk_low(), free_space(times=3), stop()))
        when(disk_low(), free_space(times=3), stop())
    """
    if not isinstance(check, Check):
        if isinstance(check, type) or not callable(check):
            raise InvalidPolicy(f"when() wants a check such as nonfinite('loss') or a function, not {check!r}")
        check = own(check)
    for action in actions:
        if not isinstance(action, Action):
            raise InvalidPolicy(f"when({check}) wants actions such as stop() after the check, not {action!r}")
    return Rule(check, tuple(dict.fromkeys(actions)))


GUARDS = (Rule(nonfinite("loss")), Rule(nonfinite("parameters")))
"""Always there, beside other rules: a checkpoint of what is no number is never good. They change nothing."""

DEFAULTS = (*GUARDS, Rule(disk_low()), Rule(cgroup_memory()))
"""Where no rules are given: they note what they find, withhold the mark good, and change nothing."""


Rules = Iterable[Rule | Check] | Rule | Check | Literal["off"] | None
"""What ``health=`` takes."""
"""What a user may give as ``health=``."""


def rules_of(given: Rules) -> tuple[Rule, ...]:
    """The rules that a user gave, each check once; `DEFAULTS` for None, none at all for an empty list or "off".

    One rule alone is a list of one.

    Raises:
        InvalidPolicy: something that is neither a rule nor a check.

    Example:
        >>> [str(rule) for rule in rules_of([nonfinite("loss")])]
        ['when(nonfinite("loss"))', 'when(nonfinite("parameters"))']
    """
    if given is None:
        return DEFAULTS
    if given == "off":
        return ()
    rules = [_rule(one) for one in _listed(given)]
    actions: dict[Check, tuple[Action, ...]] = {}
    for rule in [*rules, *(GUARDS if rules else ())]:
        actions[rule.check] = tuple(dict.fromkeys(actions.get(rule.check, ()) + rule.actions))
    return tuple(Rule(check, found) for check, found in actions.items())


def _listed(given: object) -> Iterable[object]:
    return given if isinstance(given, Iterable) and not isinstance(given, str) else [given]


def _rule(one: object) -> Rule:
    if isinstance(one, Rule):
        return one
    if isinstance(one, Check):
        return Rule(one)
    as_text = f"; holdfast.health.parse({one!r}) reads one from its text" if isinstance(one, str) else ""
    raise InvalidPolicy(f"health= wants rules such as when(nonfinite('loss'), rollback()), not {one!r}{as_text}")
