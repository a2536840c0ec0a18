"""The events of a journal that time and steps are counted by: how a launch ended, and how far it was on the way.

They are written by whoever trains and read by `holdfast.catalog.journal.timeline`; here is what both agree on.
Everything else in a journal is for people.

Example:
    >>> line = progress_event(launch=1, timeline=0, step=500, step_seconds=61.5)
    >>> line.kind, line.message
    ('progress', 'step 500 after 61.5 s in steps')
    >>> read_event(line.kind, line.data)
    Progress(launch=1, timeline=0, step=500, step_seconds=61.5, rank=0, left=False)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

EXIT = "exit"
PROGRESS = "progress"
HUNG, RECOVERED, SPARED, ENDED = "hung", "recovered", "spared", "ended"
"""Kinds of events; they never change once released. The last four are the watchdog's."""


class Ending(StrEnum):
    """How a launch ended."""

    COMPLETED = "completed"
    """The total was reached."""
    PREEMPTED = "preempted"
    """Somebody asked it to stop, and it did."""
    FAILED = "failed"
    """By an exception."""
    LEFT = "left"
    """The block was left before the end: ``break``, a time limit of the user's own."""
    KILLED = "killed"
    """It said nothing, and it is gone."""
    RUNNING = "running"
    UNKNOWN = "unknown"
    """It said nothing, and from here nobody can tell whether it still runs."""


ON_PURPOSE = frozenset({Ending.COMPLETED, Ending.PREEMPTED, Ending.LEFT})
"""Endings that somebody wanted: no failures."""


class Line(NamedTuple):
    """What a journal takes: ``journal.add(line.kind, line.message, **line.data)``."""

    kind: str
    message: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a timeline has come."""

    launch: int
    timeline: int
    step: int
    """Completed optimizer steps."""
    step_seconds: float
    """Spent in steps since the launch began, by the monotonic clock."""
    rank: int = 0
    left: bool = False
    """Whether it ends here: the training goes back to an earlier checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a launch ended, in its own words."""

    launch: int
    timeline: int
    step: int
    step_seconds: float
    """As in `Progress`."""
    how: Ending
    wall_seconds: float
    """From the beginning of the launch to here, by the monotonic clock."""
    error: str = ""
    """Of a failure: the name of the exception and its first line."""
    rank: int = 0


def progress_event(
    *, launch: int, timeline: int, step: int, step_seconds: float, rank: int = 0, left: bool = False
) -> Line:
    """An event that says how far a timeline has come; see `Progress`."""
    data: dict[str, Any] = {"launch": launch, "timeline": timeline, "step": step, "step_seconds": float(step_seconds)}
    where = f"left at step {step}" if left else f"step {step}"
    return Line(PROGRESS, f"{where} after {step_seconds:.1f} s in steps", data | {"rank": rank, "left": left})


def exit_event(
    *,
    launch: int,
    timeline: int,
    step: int,
    step_seconds: float,
    how: str,
    wall_seconds: float,
    error: BaseException | None = None,
    rank: int = 0,
) -> Line:
    """An event that says how a launch ended; see `Exit`.

    Raises:
        ValueError: ``how`` is no `Ending`.
    """
    text, how = _text(error), Ending(how)
    data: dict[str, Any] = {"launch": launch, "timeline": timeline, "step": step, "rank": rank, "how": str(how)}
    data |= {"step_seconds": float(step_seconds), "wall_seconds": float(wall_seconds), "error": text}
    why = f", {text}" if text else ""
    return Line(
        EXIT, f"{how} at step {step} after {wall_seconds:.1f} s, {step_seconds:.1f} s of it in steps{why}", data
    )


def read_event(kind: str, data: Mapping[str, Any], launch: int = 0, timeline: int = 0) -> Progress | Exit | None:
    """What an event counts for; None: it is of another kind, or not what these functions write.

    Args:
        kind: of the event.
        data: of the event.
        launch: the one that has written it, where ``data`` does not say.
        timeline: the newest one of that, where ``data`` does not say.
    """
    if kind not in (EXIT, PROGRESS):
        return None
    try:
        place = {name: _count(data.get(name, other)) for name, other in (("launch", launch), ("timeline", timeline))}
        place |= {"step": _count(data["step"]), "rank": _count(data.get("rank", 0))}
        seconds = _seconds(data["step_seconds"])
        if kind == PROGRESS:
            return Progress(**place, step_seconds=seconds, left=data.get("left") is True)
        how, wall, error = Ending(data["how"]), _seconds(data["wall_seconds"]), str(data.get("error", ""))
        return Exit(**place, step_seconds=seconds, how=how, wall_seconds=wall, error=error)
    except (KeyError, TypeError, ValueError):
        return None


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return float(value)


def _text(error: BaseException | None) -> str:
    if error is None:
        return ""
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
