"""A run's life as one line of letters, so that one sees at a glance where its time went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.catalog.journal.accounts import Account

WIDTH = 78
"""Letters of a picture."""

MEANING = {
    "#": "useful steps",
    "x": "steps that were lost",
    "s": "waiting for saves",
    "-": "starting, restoring, the rest",
    ".": "no launch",
}
"""What each letter stands for."""


def picture(accounts: Sequence[Account], width: int = WIDTH) -> str:
    """Time from left to right, in each launch by what it was spent on; empty where there is no time to show.

    Within a launch the order is not that of time: what was lost comes after what was useful.
    """
    spans = [span for account in accounts for span in _spans(account)]
    whole = sum(seconds for _, seconds in spans)
    return "".join(_letters(spans, whole / width)) if whole > 0 else ""


def shares(accounts: Sequence[Account]) -> dict[str, float]:
    """Seconds by letter; together all the time of the run."""
    sums = dict.fromkeys(MEANING, 0.0)
    for letter, seconds in (span for account in accounts for span in _spans(account)):
        sums[letter] += seconds
    return sums


def _spans(one: Account) -> Iterator[tuple[str, float]]:
    yield ".", one.before
    left = one.wall - one.overlap  # the rest is that of the next launch
    stalled = min(one.stall_seconds, max(0.0, one.wall - one.step_seconds))
    spent = (("#", one.useful_seconds), ("x", one.lost_seconds), ("s", stalled), ("-", one.other_seconds))
    for letter, seconds in spent:
        yield letter, min(seconds, left)
        left -= min(seconds, left)


def _letters(spans: Sequence[tuple[str, float]], each: float) -> Iterator[str]:
    """So many letters for each span that all of them end where they should, whatever was rounded before."""
    passed, drawn = 0.0, 0
    for letter, seconds in spans:
        passed += seconds
        until = round(passed / each)
        yield letter * (until - drawn)
        drawn = max(drawn, until)
