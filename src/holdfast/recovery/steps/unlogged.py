"""Metrics that somebody looks at and nobody logs: a slip in a name makes a policy or a health check look at nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from holdfast.health import DEFAULTS, SAMPLED, Check, Rule
from holdfast.health.nonfinite import Nonfinite
from holdfast.health.spike import GRAD_NORM, Spike
from holdfast.policy import Best, Policy

logger = logging.getLogger(__name__)

SOON = 100
"""Steps after which a name that looks like a slip is told; others may be those of an evaluation that comes late."""
_SHOWN = 5


class Unlogged:
    """One per launch. Not thread-safe.

    Args:
        save: when to save.
        keep: what to keep.
        rules: of the health checks.

    Example:
        >>> from holdfast.policy import best, latest
        >>> unlogged = Unlogged(best("f1"), latest(3) | best("val_loss"), ())
        >>> unlogged.logged(["loss", "val_loss"])
        >>> unlogged.missing
        {'f1': 'save=best("f1")'}
    """

    def __init__(self, save: Policy, keep: Policy, rules: Sequence[Rule]) -> None:
        self.missing: dict[str, str] = {}
        """Who looks at it, by the metric."""
        for says, policy in (("keep", keep), ("save", save)):
            self.missing |= {one.metric: f"{says}={one}" for one in policy.parts if isinstance(one, Best)}
        for rule in rules:
            if rule not in DEFAULTS and (name := _metric_of(rule.check)):
                self.missing[name] = f"health={rule.check}"
        self._seen: dict[str, None] = {}
        self._steps = 0

    def logged(self, names: Iterable[str]) -> None:
        """Metrics of these names have come."""
        if self.missing:
            self._seen |= dict.fromkeys(names)
            self.missing = {name: who for name, who in self.missing.items() if name not in self._seen}

    def stepped(self) -> None:
        """One more step is complete."""
        self._steps += 1
        if self._steps == SOON and self._seen:
            self._say([name for name in self.missing if self._slips(name)])

    def over(self) -> None:
        """The training has ended: what has not come does not come any more."""
        if self._seen:
            self._say(list(self.missing))

    def _say(self, names: Sequence[str]) -> None:
        for name in names:
            logger.warning(
                "%s looks at %r, and that was never logged: %s", self.missing.pop(name), name, self._instead(name)
            )

    def _instead(self, name: str) -> str:
        if slips := self._slips(name):
            return f"did you mean {' or '.join(map(repr, slips))}?"
        return f"there is {', '.join(list(self._seen)[:_SHOWN])}"

    def _slips(self, name: str) -> list[str]:
        near = get_close_matches(name, self._seen)
        return near or [one for one in self._seen if one.endswith(name) or name.endswith(one)][:_SHOWN]


def _metric_of(check: Check) -> str | None:
    """What it looks at, if that has to be logged."""
    if isinstance(check, Spike):
        return None if check.metric == GRAD_NORM else check.metric
    return check.what if isinstance(check, Nonfinite) and check.what not in SAMPLED else None
