"""A job whose run another job has taken over does not take it back by itself: they would fence each other for ever."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.catalog.journal.last_words import last_words
from holdfast.catalog.owners import Liveness, liveness
from holdfast.catalog.runs import Run
from holdfast.errors import Fenced
from holdfast.records import LaunchInfo

_FENCED = f"{Fenced.__name__}:"


def refuse_taken_over(run: Run, is_mine: Callable[[LaunchInfo], bool]) -> None:
    """For a restart by a launcher, before it claims the run: what a person starts may always do so.

    Only where the job was working when the run was taken from it, and as long as whoever has it now neither has said
    that it has ended nor is known to be gone.

    Args:
        run: the run.
        is_mine: whether a launch is an earlier start of this job.

    Raises:
        Fenced: another job works on the run.
        StorageError: the journal cannot be listed.
    """
    launches = run.launches()
    mine = [launch for launch in launches if is_mine(launch)]
    if not mine or mine[-1] == launches[-1]:
        return
    last, other = mine[-1], launches[-1]
    said = last_words(run.store, run.number, {last.number, other.number})
    fenced = any(one.error.startswith(_FENCED) for one in said.get(last.number, []))
    if fenced and other.number not in said and liveness(other.owner) is not Liveness.DEAD:
        raise Fenced(
            f"launch {other.number} ({other.job or 'a job without a name'}, on {other.owner.host}, process "
            f"{other.owner.pid}) has taken {run.number} over from launch {last.number} of this job ({last.job}) and "
            "has not ended: this restart does not take it back; end one of the two, or give one of them a run of its "
            "own. A new job takes it over when it is started"
        )
