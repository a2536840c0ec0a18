"""``best``: by the value of a metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.catalog.naming.metrics import Mode, is_metric_name, measured
from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy.base import Policy, Worth
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.latest import check_count
from holdfast.policy.numbers import plain_numbers
from holdfast.records import Kind


@dataclass(frozen=True, slots=True)
class Best(Policy):
    """See `best`."""

    metric: str
    n: int = 1
    mode: Mode = Mode.MIN
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_metric(self.metric)
        check_count(f"best({self.metric!r}, n)", self.n)
        delta = measured(self.min_delta)
        if delta is None or delta < 0:
            raise InvalidPolicy(f"best(min_delta=) wants a finite number, at least 0, not {self.min_delta!r}")

    @property
    def worth(self) -> Worth:
        """The last to go: nothing could make it again."""
        return Worth.BEST

    def _due(self, facts: SaveFacts) -> str | None:
        value = measured(facts.metrics.get(self.metric))
        if value is None:
            return None
        to_beat = self._to_beat(facts.saved.get(self.metric, ()))
        if to_beat is None:
            return f"{self}: {value:g}"
        if self.mode.cost(value) < self.mode.cost(to_beat) - self.min_delta:
            return f"{self}: {value:g} after {to_beat:g}"
        return None

    def _to_beat(self, saved: Sequence[object]) -> float | None:
        known = sorted((number for value in saved if (number := measured(value)) is not None), key=self.mode.cost)
        return known[self.n - 1] if len(known) >= self.n else None

    def _kept(self, line: Sequence[CheckpointFacts]) -> dict[RecordId, str]:
        values = ((measured(one.metrics.get(self.metric)), one) for one in line[::-1])
        known = [(value, one) for value, one in values if value is not None]
        ranked = sorted(known, key=lambda pair: self.mode.cost(pair[0]))
        # The sort is stable and began with the oldest: an equal value does not displace what was there first.
        said = str(self)
        return {one.id: f"{said}: {value:g}" for value, one in ranked[: self.n]}

    def __str__(self) -> str:
        words = [json.dumps(self.metric, ensure_ascii=False)]
        words += [str(self.n)] if self.n != 1 else []
        words += [f'mode="{self.mode}"'] if self.mode is not Mode.MIN else []
        words += [f"min_delta={json.dumps(self.min_delta)}"] if self.min_delta else []
        return f"best({', '.join(words)})"


def best(metric: str, n: int = 1, *, mode: str = "min", min_delta: float = 0.0) -> Best:
    """The ``n`` best by ``metric``; NaN and infinities are never best, an absent metric is never due.

    As ``save=``: due when the value logged at this boundary beats the n-th best saved one by more
    than ``min_delta``. As ``keep=``: the ``n`` best on the line; on equal values the older stays.

    Raises:
        InvalidPolicy: an empty metric name or one with spaces or ``:``, ``n`` below 1, an unknown mode.

    Example:
        >>> print(best("accuracy", 2, mode="max"))
        best("accuracy", 2, mode="max")
    """
    if str(n) in tuple(Mode):
        raise InvalidPolicy(f"best() wants mode=: best({metric!r}, mode={n!r})")
    if mode not in tuple(Mode):
        raise InvalidPolicy(f"best(mode=) wants 'min' or 'max', not {mode!r}")
    return Best(metric, n, Mode(mode), min_delta)


def check_metric(metric: object) -> str:
    """``metric``, if it can be written in a policy and in a reference.

    Raises:
        InvalidPolicy: no string, empty, longer than 200 characters, or with spaces or ``:``.
    """
    if not isinstance(metric, str) or not is_metric_name(metric):
        raise InvalidPolicy(f"best(metric) wants 1 to 200 characters without spaces and ':', not {metric!r}")
    return metric


def kind_of(reason: str) -> Kind:
    """The kind of a checkpoint that is made for a reason that `due` gave: ``best`` if for nothing else.

    Example:
        >>> kind_of("best(val_loss): 1.5"), kind_of("best(val_loss): 1.5; every 500 steps")
        (<Kind.BEST: 'best'>, <Kind.REGULAR: 'regular'>)
    """
    return Kind.BEST if all(part.startswith("best(") for part in reason.split("; ")) else Kind.REGULAR
