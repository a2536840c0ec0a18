"""The watch: rules, what they have seen so far, and what is to be done now.

No clock, disk or network; time comes with the observations. With several
ranks each one looks at its own observation (`Watch.look`), the verdicts of all
are brought together, and every rank decides the same on them (`Watch.decide`).

Example:
    >>> from holdfast.health.nonfinite import nonfinite
    >>> from holdfast.health.remedies import rollback
    >>> from holdfast.health.rules import when
    >>> watch = Watch([when(nonfinite("loss"), rollback(times=2))])
    >>> judgement = watch.judge(Observation(step=7, seconds=1.0, metrics={"loss": float("nan")}))
    >>> [str(due.action) for due in judgement.actions], watch.spent["actions"]
    (['rollback(times=2)'], {'nonfinite("loss"): rollback': 1})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from holdfast.health.actions import Action
from holdfast.health.base import Check, LookedAt, is_due
from holdfast.health.budgets import SAME_TARGET, Budgets
from holdfast.health.deciding import Due, Standing, decided
from holdfast.health.memory import OutOfMemory
from holdfast.health.observation import SAMPLED, Fact, Observation
from holdfast.health.remedies import ShrinkBatch
from holdfast.health.rules import Rule, rules_of
from holdfast.health.verdict import Severity, Verdict
from holdfast.policy import Every


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something for the journal."""

    kind: str
    """``verdict``, ``passed``, ``used-up`` or ``check-failed``."""
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What the checks of one rank have found at one boundary."""

    step: int
    verdicts: tuple[Verdict, ...] = ()
    passed: frozenset[str] = frozenset()
    """Checks that had something to look at, and found nothing."""
    tested: bool = False
    """Whether a check of the training itself is among those."""
    events: tuple[Noted, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is to be said and done at one boundary."""

    step: int
    verdicts: tuple[Verdict, ...] = ()
    """The worst first."""
    actions: tuple[Due, ...] = ()
    """To be done now, in this order; at most one of shrinking, rolling back and stopping."""
    events: tuple[Noted, ...] = ()
    """For the journal: a verdict that goes on is noted when it begins, when something is done, and when it ends."""
    tested: bool = False
    """Whether a check of the training itself, not of the machine, had something to look at and passed."""

    @property
    def severity(self) -> Severity | None:
        """Of the worst verdict; None if there is none."""
        return self.verdicts[0].severity if self.verdicts else None


class _Asked(NamedTuple):
    """A check with what it says of itself, asked once: every boundary pays for it."""

    place: int
    check: Check
    cadence: Every | None
    wants: frozenset[Fact]


def _asked(place: int, check: Check) -> _Asked:
    return _Asked(place, check, check.cadence, check.wants)


def every_rule(rule: Rule) -> bool:
    """All of them."""
    return True


def of_machine(rule: Rule) -> bool:
    """Those whose check looks at the machine alone."""
    return bool(rule.check.wants) and rule.check.wants.isdisjoint(SAMPLED)


def of_lacking_memory(rule: Rule) -> bool:
    """Those about a step without memory, and what makes batches smaller."""
    return isinstance(rule.check, OutOfMemory) or any(isinstance(action, ShrinkBatch) for action in rule.actions)


class Watch:
    """Rules and their state. One per rank; not thread-safe.

    Args:
        rules: as a user gives them; None for the default ones.
        spent: what `spent` gave in an earlier launch of the run.

    Raises:
        InvalidPolicy: something that is no rule.
    """

    def __init__(self, rules: Iterable[Rule | Check] | None = None, spent: Mapping[str, Any] | None = None) -> None:
        self.rules = rules_of(rules)
        self._asked = [_asked(place, rule.check) for place, rule in enumerate(self.rules)]
        self._names = _unique([str(rule.check) for rule in self.rules])
        self._budgets = Budgets(self.rules, spent)
        self._states: dict[int, Any] = {}
        self._due: dict[int, LookedAt] = {}
        self._failed: set[int] = set()
        self._done: dict[tuple[int, int], LookedAt] = {}
        self._since: dict[str, int] = {}
        self._used_up: set[str] = set()

    @property
    def spent(self) -> dict[str, dict[str, int]]:
        """The budgets spent so far, as plain values: to be stored, and given to the next launch."""
        return self._budgets.spent

    def wants(self, step: int, seconds: float) -> frozenset[Fact]:
        """Facts that have to be gathered at this boundary, for the `Observation` of the same step and time."""
        return frozenset(
            fact for asked in self._asked if asked.wants and self._is_due(asked, step, seconds) for fact in asked.wants
        )

    def look(self, observation: Observation, among: Callable[[Rule], bool] = every_rule) -> Looked:
        """Asks every check that is due. One that raises is noted, and not asked again in this process.

        Args:
            observation: of a boundary.
            among: rules that this is for, where it is not about a boundary as all others are.
        """
        verdicts, passed, events, tested = [], [], [], False
        for asked in self._asked:
            place, check = asked.place, asked.check
            if not among(self.rules[place]) or not self._is_asked(asked, observation):
                continue
            try:
                look = check.look(observation, self._states.get(place))
            except Exception as error:
                self._failed.add(place)
                events.append(_failure(self._names[place], error))
                continue
            self._states[place] = look.state
            if look.finding is not None:
                verdicts.append(replace(look.finding.verdict(check, observation), check=self._names[place]))
            elif look.seen:
                passed.append(self._names[place])
                tested = tested or check.tests_training
        return Looked(
            step=observation.step,
            verdicts=tuple(verdicts),
            passed=frozenset(passed),
            tested=tested,
            events=tuple(events),
        )

    def decide(
        self,
        looked: Looked,
        seconds: float,
        others: Iterable[Verdict] = (),
        *,
        only_with: type[Action] = Action,
    ) -> Judgement:
        """What is to be done about verdicts; spends budgets.

        Args:
            looked: what `look` gave on this rank.
            seconds: by the monotonic clock; with several ranks that of one of them, so that all decide the same.
            others: the verdicts of other ranks, for the same step.
            only_with: nothing is done unless an action of this type is due.
        """
        verdicts = self._sorted([*looked.verdicts, *others])
        now = LookedAt(looked.step, seconds)
        found = {self._names.index(one.check): one for one in reversed(verdicts) if one.check in self._names}
        decision = decided(self.rules, found, Standing(self._budgets, self._done, now))
        actions = decision.actions if any(isinstance(due.action, only_with) for due in decision.actions) else ()
        for due in actions:
            if due.number is not None:
                self._budgets.spend(due.rule, due.number)
                self._done[due.rule, due.number] = now
        events = [*looked.events, *self._news(verdicts, actions, looked), *self._ends(decision.used_up)]
        return Judgement(
            step=looked.step,
            verdicts=tuple(verdicts),
            actions=actions,
            events=tuple(events),
            tested=looked.tested,
        )

    def judge(self, observation: Observation) -> Judgement:
        """`look` and `decide`, for a single rank."""
        return self.decide(self.look(observation), observation.seconds)

    def landing(self, target: str) -> str | None:
        """Counts a rollback that is about to go to ``target``: a record's id. Why to stop instead, if it is too often.

        More than 3 rollbacks to one checkpoint are refused, whatever budget rules have left: what went wrong from
        there every time will do so again.
        """
        count = self._budgets.land(target)
        if count <= SAME_TARGET:
            return None
        return f"{SAME_TARGET} rollbacks to {target} have not helped; look at the data and the learning rate"

    def landings(self, target: str) -> int:
        """How many rollbacks have gone to ``target``."""
        return self._budgets.spent["targets"].get(target, 0)

    def forget(self, step: int) -> None:
        """The training has gone back to ``step``: what was seen after it is void. What is spent stays spent."""
        checks = [rule.check for rule in self.rules]
        self._states = {place: checks[place].rewound(state, step) for place, state in self._states.items()}
        self._due, self._since = {}, {}

    def _is_due(self, asked: _Asked, step: int, seconds: float) -> bool:
        if asked.place in self._failed:
            return False
        return asked.cadence is None or is_due(asked.cadence, self._due.get(asked.place), step, seconds)

    def _is_asked(self, asked: _Asked, observation: Observation) -> bool:
        """Whether it looks; what is gathered becomes known some time after it was due, and is looked at then."""
        due = self._is_due(asked, observation.step, observation.seconds)
        if due and asked.cadence is not None:
            self._due[asked.place] = LookedAt(observation.step, observation.seconds)
        return asked.place not in self._failed and (due or bool(asked.wants))

    def _sorted(self, verdicts: list[Verdict]) -> list[Verdict]:
        places = {name: place for place, name in enumerate(self._names)}
        return sorted(verdicts, key=lambda one: (-one.severity.rank, places.get(one.check, len(places)), one.rank))

    def _news(self, verdicts: list[Verdict], actions: tuple[Due, ...], looked: Looked) -> list[Noted]:
        events = []
        judged = {one.check for one in verdicts}
        for name in judged:
            mine = [due for due in actions if due.verdict.check == name]
            if mine or name not in self._since:
                events.append(_verdict_event([one for one in verdicts if one.check == name], mine))
            self._since.setdefault(name, looked.step)
        for name in sorted(looked.passed - judged):
            if (since := self._since.pop(name, None)) is not None:
                message = f"{name} passes again at step {looked.step}, after it judged at step {since}"
                events.append(Noted(kind="passed", message=message, data={"check": name, "since": since}))
        return events

    def _ends(self, used_up: Mapping[str, Action]) -> list[Noted]:
        new = {said: action for said, action in used_up.items() if said not in self._used_up}
        self._used_up.update(new)
        return [Noted(kind="used-up", message=said, data={"action": action.shown}) for said, action in new.items()]


def _verdict_event(verdicts: list[Verdict], actions: list[Due]) -> Noted:
    asked = ", ".join(due.shown for due in actions)
    # Not that it was done: a rollback may find nothing to go back to.
    message = f"{verdicts[0]}; asked for: {asked}" if asked else f"{verdicts[0]}: noted"
    data = {**verdicts[0].data(), "ranks": [one.rank for one in verdicts], "actions": [one.shown for one in actions]}
    return Noted(kind="verdict", message=message, data=data)


def _failure(name: str, error: Exception) -> Noted:
    message = f"the check {name} raised {type(error).__name__}: {error}; it is not asked again"
    return Noted(kind="check-failed", message=message, data={"check": name})


def _unique(names: list[str]) -> list[str]:
    """Two functions without a name of their own read alike: the second one gets a number."""
    return [
        name if names[:at].count(name) == 0 else f"{name} #{names[:at].count(name) + 1}"
        for at, name in enumerate(names)
    ]
