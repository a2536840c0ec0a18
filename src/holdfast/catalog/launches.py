"""Launches: one per start of the job; the newest owns the run.

Creating the launch file fences every older launch: a save that begins later
sees it and stops, a save that began earlier has a hold that the new launch
sees. Those are given time to finish, so that a job that is started again half a
second after it was killed goes on from the step that its saver was just
finishing; what still stands then loses the race for its record's name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from holdfast.catalog import layout
from holdfast.catalog.holds import FoundHold, Report, find_saves, give_up, settle
from holdfast.catalog.objects import create_once, load
from holdfast.catalog.runs import Run, read_record
from holdfast.catalog.standing import Standing, find_standing, saver_is_dead, trainer_lives
from holdfast.clock import utc_now
from holdfast.errors import Damaged, ObjectExists, StorageError
from holdfast.ids import RecordAddress, nonce
from holdfast.records import LaunchInfo, Record, StartInfo, Target

_log = logging.getLogger(__name__)

SHORTEST_DRAIN = 5.0
"""Seconds that saves of an older launch are given at least."""

FIRST_DRAIN = 60.0
"""Seconds that the first save of a run is given: nobody knows yet how long one takes, and without it all is lost."""

DYING_SECONDS = 1.0
"""For so long the trainer of an older launch may still look alive after it was killed."""

_RECENT = 20
"""Records looked through for the time of the last save."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of the job on a run. Thread-safe; its number is all that another process needs to act for it."""

    run: Run
    number: int

    def fenced(self) -> bool:
        """Whether a newer launch has taken over the run."""
        return any(number > self.number for number in self.run.launch_numbers())

    def said_fenced(self) -> str:
        """That a newer launch has taken over the run, and where that one trains."""
        newest = max(self.run.launch_numbers(), default=self.number)
        return f"a newer launch owns the run: {described(self.run, newest)}"

    def record_start(self, timeline: int, resumed_from: RecordAddress | None, why: str) -> StartInfo:
        """Notes, durably, that this launch has restored (None: begun from zero) and opened ``timeline``.

        Raises:
            ObjectExists: the timeline was opened before; each restore opens the next.
        """
        start = StartInfo(
            run=int(self.run.number),
            launch=self.number,
            timeline=timeline,
            created=utc_now(),
            resumed_from=None if resumed_from is None else Target.of(resumed_from),
            why=why,
            attempt=nonce(),
        )
        create_once(self.run.store.storage, layout.start(self.run.number, self.number, timeline), start)
        return start


def begin_launch(
    run: Run,
    *,
    job: str | None = None,
    command: Iterable[str] = (),
    policies: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    config_digest: str | None = None,
    deadline: float | None = None,
    report: Report = _log.info,
) -> Launch:
    """A new launch that owns the run; only after this returns may anybody choose what to resume from.

    Args:
        run: the run.
        job: the launcher's job token.
        command: the command line.
        policies: save and keep policies as text.
        environment: what of the environment is worth keeping.
        config: the user's configuration.
        config_digest: its digest.
        deadline: seconds that saves of older launches may take to finish; None: `drain_seconds`.
        report: told what is waited for.

    Raises:
        StorageError: not begun, or begun and not alone; begin another.
    """
    launch = _claim(
        run,
        LaunchInfo(
            run=int(run.number),
            number=1,
            created=utc_now(),
            owner=run.store.owner,
            job=job,
            command=list(command),
            policies=dict(policies or {}),
            environment=dict(environment or {}),
            config=dict(config or {}),
            config_digest=config_digest,
            attempt=nonce(),
        ),
    )
    run.store.await_visibility()
    _drain(launch, drain_seconds(run) if deadline is None else deadline, report)
    return launch


def described(run: Run, number: int) -> str:
    """A launch for people who look for it: where its process is, and since when; its number alone if it is lost.

    Example:
        launch 2 on node17 (pid 4711, since 2026-11-22T12:31:33Z)
    """
    try:
        info = load(run.store.storage, layout.launch(run.number, number), LaunchInfo)
    except (Damaged, StorageError):
        return f"launch {number}"
    return f"launch {number} on {info.owner.host.partition('/')[0]} (pid {info.owner.pid}, since {info.created})"


def drain_seconds(run: Run) -> float:
    """Twice what the last save took to become durable, and at least `SHORTEST_DRAIN`; `FIRST_DRAIN` if none tells."""
    for address in reversed(run.addresses()[-_RECENT:]):
        try:
            record = read_record(run.store, address)
        except Damaged:
            continue
        if isinstance(record, Record):
            timing = record.timing
            # What waited for an earlier save, or was niced, took longer than the work on it.
            took = max(timing.durable, timing.staging + timing.hashing + timing.writing)
            return max(SHORTEST_DRAIN, 2 * took)
    return FIRST_DRAIN


def _claim(run: Run, info: LaunchInfo) -> Launch:
    number = _next_number(run)
    while True:
        info = msgspec.structs.replace(info, number=number)
        try:
            create_once(run.store.storage, layout.launch(run.number, number), info)
        except ObjectExists:
            number += 1
        else:
            return Launch(run, number)


def _next_number(run: Run) -> int:
    """Above every launch that has left anything, also one whose own file is lost."""
    saved = [address.order.launch for address in run.addresses()]
    return max([0, *run.launch_numbers(), *saved, *(start.launch for start in run.starts())]) + 1


def _drain(launch: Launch, seconds: float, report: Report) -> None:
    store, reason = launch.run.store, f"launch {launch.number} took over the run"
    end = store.waiter.now() + seconds
    _await_savers(launch, seconds, report)
    older = _older_saves(launch)
    left = max(0.0, end - store.waiter.now())
    for found in settle(store, older, seconds=left, reason=reason, report=report):
        report(f"gave up on {found}: it did not finish in {seconds:.0f} s")
        give_up(store, found, reason)


def _await_savers(launch: Launch, seconds: float, report: Report) -> None:
    """Gives savers of trainers that are gone the time to finish what was staged; then ends their right to begin."""
    store, run = launch.run.store, launch.run.number
    found = [one for one in find_standing(store, run) if one.launch < launch.number]
    older = [one for one in found if one.stands() and not saver_is_dead(one)]
    began = store.waiter.now()

    def over(one: Standing) -> bool:
        if not one.stands() or saver_is_dead(one):
            return True
        # A process that was just killed may look alive for an instant.
        return store.waiter.now() - began >= min(DYING_SECONDS, seconds) and trainer_lives(one, run)

    if older and seconds > 0:
        report(f"waiting up to {seconds:.0f} s for the saver of launch {', '.join(str(one.launch) for one in older)}")
        store.waiter.until(lambda: all(over(one) for one in older), seconds=seconds)
    for number in sorted({one.launch for one in older if one.stands() and trainer_lives(one, run)}):
        report(f"this takes {run} over from {described(launch.run, number)}, which is still training")
    for one in found:
        one.end()  # before the saves are listed: whoever makes a hold after this sees that it may not
    if found:
        store.await_visibility()


def _older_saves(launch: Launch) -> list[FoundHold]:
    saves = find_saves(launch.run.store, launch.run.number)
    return [save for save in saves if save.publishes and save.publishes.order.launch < launch.number]
