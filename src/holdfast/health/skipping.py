"""Which data a rollback leaves out.

Bad data seldom comes alone, and what it does often shows later. PaLM left out
the batches seen before and during a spike, and a few hundred after it
(Chowdhery et al., 2022, section 5.1). Here it begins small and grows with each
rollback that has not helped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from holdfast.health.verdict import Severity, Verdict


class Skip(NamedTuple):
    """The data of the steps ``first`` to ``last``, some of which may not have been made yet.

    The data of step n is what took the abandoned timeline, or would have taken it, from n-1 to n completed steps.
    """

    first: int
    last: int


def suspects(asking: Verdict, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those whose data may be to blame: what asks for the rollback, and others of the training; not of the machine.

    Example:
        >>> from holdfast.health.verdict import Severity
        >>> slow = Verdict(check="s", message="m", severity=Severity.WARNING, step=9, first=1, last=9)
        >>> nan = Verdict(check="c", message="m", severity=Severity.BROKEN, step=9, first=9, last=9)
        >>> [one.check for one in suspects(nan, [nan, slow])], [one.check for one in suspects(slow, [slow])]
        (['c'], ['s'])
    """
    return [one for one in verdicts if one.severity is not Severity.WARNING or one == asking]


def skipped(target: int, verdicts: Iterable[Verdict], landings: int = 1) -> Skip | None:
    """The data that is left out after a rollback to ``target``; None: there is nothing to leave out. Pure.

    The first time these are the steps of all verdicts and as many after them. If the training had to go back
    to the same checkpoint again, that was not enough: then everything since the checkpoint, and as much after it; the
    third time twice as much after it.

    Args:
        target: the step of the checkpoint that the training goes back to.
        verdicts: why it does; those of `suspects`.
        landings: how many rollbacks have gone there, this one included.

    Example:
        >>> from holdfast.health.verdict import Severity
        >>> nan = Verdict(check="c", message="m", severity=Severity.BROKEN, step=109, first=108, last=109)
        >>> [tuple(skipped(100, [nan], landings)) for landings in (1, 2, 3)]
        [(108, 111), (101, 118), (101, 127)]
    """
    suspect = [verdict for verdict in verdicts if verdict.last > target]
    if not suspect:
        return None
    last = max(verdict.last for verdict in suspect)
    first = max(target + 1, min(verdict.first for verdict in suspect)) if landings < 2 else target + 1
    return Skip(first, last + (last - first + 1) * 2 ** max(0, landings - 2))
