"""The last values of a series, and how far a new one lies outside of them.

The modified z-score of Iglewicz and Hoaglin ("How to Detect and Handle
Outliers", ASQC, 1993): the distance from the median in units of
1.4826 x MAD, the median absolute deviation, which is the standard deviation
of normal data and bears with almost half of the values being wild. Where the
MAD is 0 they take 1.2533 x the mean absolute deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

_MAD = 1.4826
_MEAN_DEVIATION = 1.253314
_FLOOR = 0.005
"""Of the median: a series that hardly moves has no outliers within a few times that."""


@dataclass(frozen=True, slots=True)
class Window:
    """The last values that looked right, and those that did not since then. Immutable.

    Outliers are not taken in, else a stretch of them would become what is normal. But a series that stays at another
    level for a whole window has changed, and what it does now is the new measure.
    """

    values: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    """Of the values."""
    aside: tuple[float, ...] = ()

    def having(self, step: int, value: float, size: int, *, odd: bool) -> Window:
        """With one more value; of at most ``size``."""
        if not odd:
            return Window((*self.values, value)[-size:], (*self.steps, step)[-size:])
        aside = (*self.aside, value)
        # The steps of outliers are not kept: all of them are as new as the last one.
        return Window(aside, (step,) * size) if len(aside) >= size else Window(self.values, self.steps, aside)

    def until(self, step: int) -> Window:
        """Without the values of later steps, and without outliers."""
        kept = [pair for pair in zip(self.values, self.steps, strict=True) if pair[1] <= step]
        return Window(tuple(value for value, _ in kept), tuple(at for _, at in kept))

    @property
    def median(self) -> float:
        """Of the values that looked right; there must be one."""
        return median(self.values)

    @property
    def scale(self) -> float:
        """What the standard deviation would be if they were normal; 0: nothing is known of it, for all are zero."""
        middle = self.median
        distances = [abs(value - middle) for value in self.values]
        spread = _MAD * median(distances) or _MEAN_DEVIATION * sum(distances) / len(distances)
        return max(spread, _FLOOR * abs(middle))

    def score(self, value: float) -> float:
        """How many scales ``value`` lies above the median; 0 where no scale is known.

        Example:
            >>> round(Window((1.0, 2.0, 3.0, 4.0, 5.0)).score(9.0), 2)
            4.05
        """
        scale = self.scale
        return (value - self.median) / scale if scale else 0.0

    def exceeds(self, value: float, most: float) -> bool:
        """Whether the score of ``value`` is above ``most``, which is positive; quick where it cannot be."""
        return value > self.median and self.score(value) > most
