"""How many failed saves a training bears."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import InvalidPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Limits; the first that is exceeded ends the training."""

    failures: int | None = None
    seconds: float | None = None

    def exceeded(self, failures_in_a_row: int, seconds_since_good: float) -> str | None:
        """Why the training must end; None: it goes on."""
        if self.failures is not None and failures_in_a_row > self.failures:
            return f"{failures_in_a_row} saves in a row have failed"
        if self.seconds is not None and seconds_since_good > self.seconds:
            return f"no save has succeeded for {seconds_since_good:.0f} s"
        return None


def tolerance_of(asked: int | str | Tolerance | None) -> Tolerance:
    """A tolerance from what a user writes."""
    if isinstance(asked, Tolerance):
        return asked
    if asked is None:
        return Tolerance(failures=3)
    if asked == "raise":
        return Tolerance(failures=0)
    if asked == "warn":
        return Tolerance()
    if isinstance(asked, int):
        return Tolerance(failures=asked)
    raise InvalidPolicy(f"on_save_error={asked!r}")
