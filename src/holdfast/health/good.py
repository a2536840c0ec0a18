"""Earning the mark ``good``: the training went well for a while after a checkpoint.

What is wrong with a state often shows some steps later, so a checkpoint is not
good because nothing was wrong when it was saved. It becomes good once
``good_after`` steps have been made after it in which no check had a doubt. A
verdict in between is final: this checkpoint will not become good.
"""

from __future__ import annotations

from holdfast.health import arguments
from holdfast.health.verdict import Severity
from holdfast.health.watch import Judgement

GOOD_AFTER = 100
"""Steps. PaLM went back about this far to leave a loss spike behind (Chowdhery et al., 2022, section 5.1)."""


class GoodMarks:
    """Checkpoints on their way to the mark. Deterministic; steps are those of the timeline at hand.

    A warning about the machine withholds nothing; a doubt does. Steps in which no check of the training had anything
    to look at prove nothing: at least one must have looked and passed after the checkpoint.

    Args:
        good_after: steps without a doubt that a checkpoint needs after it.

    Raises:
        InvalidPolicy: ``good_after`` below 1.

    Example:
        >>> marks = GoodMarks(good_after=2)
        >>> marks.saved(10)
        >>> [marks.observed(Judgement(step=step, tested=True)) for step in (10, 11, 12, 13)]
        [(), (), (10,), ()]
    """

    def __init__(self, good_after: int = GOOD_AFTER) -> None:
        arguments.count("good_after=", good_after)
        self.good_after = good_after
        self._waiting: set[int] = set()
        self._doubted: int | None = None
        self._tested: int | None = None

    def saved(self, step: int, *, finite: bool = True) -> None:
        """A checkpoint of ``step`` was committed (just now or some steps ago), or the training goes on from it.

        Args:
            step: its completed steps.
            finite: False: a NaN or an infinity was found inside. Then it never becomes good.
        """
        if finite and (self._doubted is None or step > self._doubted):
            self._waiting.add(step)

    def observed(self, judgement: Judgement) -> tuple[int, ...]:
        """The steps of checkpoints that have become good with this boundary."""
        if any(verdict.severity is not Severity.WARNING for verdict in judgement.verdicts):
            # Sampled tensors are judged late, but everything saved by now holds what was found then.
            self._doubted = judgement.step
            self._waiting.clear()
            return ()
        if judgement.tested:
            self._tested = judgement.step
        earned = sorted(step for step in self._waiting if self._has_earned(step, judgement.step))
        self._waiting.difference_update(earned)
        return tuple(earned)

    def dropped(self, step: int) -> None:
        """The checkpoint of ``step`` is no more, or was found to be worse than thought."""
        self._waiting.discard(step)

    def forget(self) -> None:
        """After a rollback: what was saved on the abandoned timeline is not waited for any more."""
        self._waiting.clear()
        self._doubted = self._tested = None

    def _has_earned(self, step: int, now: int) -> bool:
        return now - step >= self.good_after and self._tested is not None and self._tested > step
