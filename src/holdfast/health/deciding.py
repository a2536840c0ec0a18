"""Which actions to take on several verdicts at once. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.health.actions import Action, Weight
from holdfast.health.base import LookedAt, is_due
from holdfast.health.budgets import Budgets
from holdfast.health.remedies import stop
from holdfast.health.rules import Rule
from holdfast.health.verdict import Severity, Verdict

_DRASTIC = (Weight.SHRINK_BATCH, Weight.ROLLBACK, Weight.STOP)
"""Of these only the most drastic one is done, and once."""
_ESCALATE = (Weight.SHRINK_BATCH, Weight.ROLLBACK)
"""The run cannot go on as if nothing was: when these are used up, it stops."""


@dataclass(frozen=True, slots=True)
class Due:
    """An action that is to be done now."""

    action: Action
    verdict: Verdict
    """What it is done about."""
    rule: int
    number: int | None
    """Its place in the rule; None: nobody has asked for it, it is the end of the ladder."""
    why: str = ""
    """Why it is done although nobody has asked for it."""

    @property
    def shown(self) -> str:
        """For the journal."""
        return f"{self.action.shown}: {self.why}" if self.why else self.action.shown


class Standing(NamedTuple):
    """What was done before."""

    budgets: Budgets
    done: Mapping[tuple[int, int], LookedAt]
    """When each action was done the last time, by its rule and its place in it."""
    now: LookedAt


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do."""

    actions: tuple[Due, ...] = ()
    used_up: Mapping[str, Action] = field(default_factory=dict)
    """Actions that would have been taken, had they budget left; by what there is to say."""


def decided(rules: tuple[Rule, ...], found: Mapping[int, Verdict], standing: Standing) -> Decision:
    """What to do about ``found``: by the place of its rule, one verdict each."""
    wanted = [due for place in sorted(found) for due in _of_rule(rules[place], place, found[place], standing)]
    used_up = {
        f"{action.shown} is used up: {rules[place].check} has had it {action.budget} times": action
        for place in sorted(found)
        for number, action in enumerate(rules[place].actions)
        if standing.budgets.left(place, number) == 0
    }
    return Decision(tuple(sorted(_reconciled(wanted, found), key=lambda due: due.action.weight)), used_up)


def _reconciled(wanted: list[Due], found: Mapping[int, Verdict]) -> Iterator[Due]:
    worst = max((due.action.weight for due in wanted if due.action.weight in _DRASTIC), default=None)
    broken = any(verdict.severity is Severity.BROKEN for verdict in found.values())
    taken = False
    for due in wanted:
        weight = due.action.weight
        if weight in _DRASTIC:
            if weight is worst and not taken:
                taken = True
                yield due
        elif weight is Weight.SAVE:
            if not broken and worst is not Weight.ROLLBACK:
                yield due
        elif weight is Weight.NOTIFY or worst is not Weight.STOP:
            yield due


def _of_rule(rule: Rule, place: int, verdict: Verdict, standing: Standing) -> Iterator[Due]:
    for number, action in enumerate(rule.actions):
        if not action.remedy and standing.budgets.left(place, number) != 0 and _paced(place, number, action, standing):
            yield Due(action, verdict, place, number)
    remedies = [(number, action) for number, action in enumerate(rule.actions) if action.remedy]
    for number, action in remedies:
        if standing.budgets.left(place, number) != 0:
            # Not yet time for it again: then it is waited for, and not for want of effect gone on to the next.
            if _paced(place, number, action, standing):
                yield Due(action, verdict, place, number)
            return
    if remedies and remedies[-1][1].weight in _ESCALATE:
        last = remedies[-1][1]
        yield Due(stop(), verdict, place, None, why=f"{last.shown} has been done {last.budget} times and is used up")


def _paced(place: int, number: int, action: Action, standing: Standing) -> bool:
    return action.pace is None or is_due(action.pace, standing.done.get((place, number)), *standing.now)
