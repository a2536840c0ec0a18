"""``at``: at steps that are known beforehand."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy, Worth
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.numbers import plain


@dataclass(frozen=True, slots=True)
class At(Policy):
    """See `at`."""

    steps: tuple[int, ...]
    """Ascending, each once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(map(plain, self.steps)))
        wrong = [step for step in self.steps if isinstance(step, bool) or not isinstance(step, int) or step < 1]
        if wrong or not self.steps:
            raise InvalidPolicy(
                f"at(steps=) wants a list of integers above 0, not {wrong[0] if wrong else 'nothing'!r}"
            )
        object.__setattr__(self, "steps", tuple(sorted(set(self.steps))))

    @property
    def by_step(self) -> bool:
        """All ranks see the same steps."""
        return True

    @property
    def worth(self) -> Worth:
        """Milestones."""
        return Worth.MILESTONE

    def _due(self, facts: SaveFacts) -> str | None:
        # A listed step without a boundary of its own counts at the next one, as in `every`.
        listed = self._upto(facts.step)
        return self._said(listed) if listed > self._upto(facts.step - facts.steps_since_save) else None

    def _upto(self, step: int) -> int:
        """How many of the listed steps are not after ``step``."""
        return bisect_right(self.steps, step)

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        first: dict[int, RecordId] = {}
        for one in line[::-1]:
            if group := self._upto(one.step):
                first.setdefault(group, one.id)
        return {one: self._said(group) for group, one in first.items()}

    def _said(self, listed: int) -> str:
        """The step that is the reason, alone: thousands may be listed, and each record has room for its reason."""
        return f"at(steps=[{self.steps[listed - 1]}])"

    def __str__(self) -> str:
        return f"at(steps=[{', '.join(map(str, self.steps))}])"


def at(*, steps: Iterable[int]) -> At:
    """At these steps, or at the first boundary after one that had none.

    As ``keep=``: for each of the steps the first checkpoint at or after it, and before the next of them.

    Raises:
        InvalidPolicy: no steps, or one that is no integer above 0.

    Example:
        >>> print(at(steps=[1000, 100]))
        at(steps=[100, 1000])
    """
    if isinstance(steps, str | bytes) or not isinstance(steps, Iterable):
        raise InvalidPolicy(f"at(steps=) wants a list of integers above 0, not {steps!r}")
    return At(tuple(steps))
