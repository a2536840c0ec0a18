"""Reading what a run has left behind, for its timeline. What cannot be read is said, and nothing fails over it."""

from __future__ import annotations

from typing import NamedTuple

from holdfast.catalog.journal.history import History
from holdfast.catalog.journal.journal import read_journal
from holdfast.catalog.marks import read_marks
from holdfast.catalog.owners import Liveness
from holdfast.catalog.runs import Run
from holdfast.clock import utc_now
from holdfast.records import LaunchInfo


class Gathered(NamedTuple):
    """A history, and what is missing from it."""

    history: History
    problems: tuple[str, ...]


def gather(run: Run) -> Gathered:
    """The history of a run, as of now."""
    published, (starts, bad_starts), journal = run.published(), run.read_starts(), read_journal(run.store, run.number)
    launches = run.launches()
    lost = set(run.launch_numbers()) - {launch.number for launch in launches}
    damaged = [*published.damaged, *bad_starts, *journal.damaged]
    problems = [f"{one.name}: {one.error}" for one in damaged] + [f"{gap} is not there" for gap in journal.missing]
    history = History(
        store=run.store.info.id,
        run=int(run.number),
        launches=launches,
        starts=starts,
        records=published.records,
        aborted=published.aborted,
        entries=journal.entries,
        marks=read_marks(run.store, run.number),
        alive={launch.number: _alive(run, launch) for launch in launches},
        now=utc_now(),
    )
    return Gathered(history, (*problems, *(f"launch {number} cannot be read" for number in sorted(lost))))


def _alive(run: Run, launch: LaunchInfo) -> bool | None:
    """Whether the process of a launch is there, as far as can be told from here."""
    found = run.store.liveness(launch.owner)
    return {Liveness.ALIVE: True, Liveness.DEAD: False, Liveness.REBOOTED: False}.get(found)
