"""What of the budgets is spent: kept over restarts of a run, so that nothing goes on for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.health.actions import Action
from holdfast.health.rules import Rule

SAME_TARGET = 3
"""Rollbacks to one checkpoint, of all rules together: if it went wrong so often from there, it will again."""


class Budgets:
    """Counts of what was done, by action and by target of a rollback.

    Args:
        rules: as `rules_of` gives them.
        spent: what `spent` gave before; what is not understood in it counts as nothing.
    """

    def __init__(self, rules: tuple[Rule, ...], spent: Mapping[str, Any] | None = None) -> None:
        self._keys = dict(_keys(rules))
        self._actions = _counts(spent, "actions")
        self._targets = _counts(spent, "targets")

    @property
    def spent(self) -> dict[str, dict[str, int]]:
        """All counts as plain values; actions of rules that are not there now are kept."""
        return {"actions": dict(self._actions), "targets": dict(self._targets)}

    def left(self, rule: int, action: int) -> int | None:
        """How often an action may still be done; None: no limit.

        Args:
            rule: its place among the rules.
            action: its place among the rule's actions.
        """
        one, key = self._keys[rule, action]
        return None if one.budget is None else max(0, one.budget - self._actions.get(key, 0))

    def spend(self, rule: int, action: int) -> None:
        """It is done once more."""
        key = self._keys[rule, action][1]
        self._actions[key] = self._actions.get(key, 0) + 1

    def land(self, target: str) -> int:
        """A rollback goes to ``target``; gives how many have by now, this one included."""
        self._targets[target] = self._targets.get(target, 0) + 1
        return self._targets[target]


def _keys(rules: tuple[Rule, ...]) -> Iterator[tuple[tuple[int, int], tuple[Action, str]]]:
    # Without the numbers: a run whose budget was raised has still spent what it has spent.
    taken: set[str] = set()
    for place, rule in enumerate(rules):
        for number, action in enumerate(rule.actions):
            name = f"{rule.check}: {action.verb}"
            again = (f"{name} #{count}" for count in range(2, len(taken) + 3))
            key = name if name not in taken else next(one for one in again if one not in taken)
            taken.add(key)
            yield (place, number), (action, key)


def _counts(spent: Mapping[str, Any] | None, name: str) -> dict[str, int]:
    found = (spent or {}).get(name)
    if not isinstance(found, Mapping):
        return {}
    return {str(key): n for key, n in found.items() if isinstance(n, int) and not isinstance(n, bool) and n > 0}
