"""Who makes the checkpoints of a launch: a saver process where one can be had, else this process itself."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.catalog.runs import read_record
from holdfast.errors import InvalidInput
from holdfast.ids import RecordAddress
from holdfast.packs.codec import Codec, check_available
from holdfast.policy.tolerance import Tolerance, tolerance_of
from holdfast.records import Record, Target
from holdfast.recovery.environment.launcher import staged_survival
from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.handover.background import BackgroundSaves
from holdfast.recovery.handover.bars import Bar, NoBar
from holdfast.recovery.handover.beating import Beating
from holdfast.recovery.handover.inline import inline_saves
from holdfast.recovery.handover.outcomes import Saves
from holdfast.recovery.handover.patience import Patience
from holdfast.recovery.handover.slots import Slots
from holdfast.recovery.launching.session import Plan, Session
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.saver import SaveRequest, Saving
from holdfast.saver.ballast import with_ballast
from holdfast.saver.following import Following
from holdfast.saver.handle import SaverProcess
from holdfast.saver.memory_limits import Budget, budget
from holdfast.saver.messages import Hello
from holdfast.saver.readback import quarantined_packs
from holdfast.saver.rereading import Rereading
from holdfast.state.stager import Stager

logger = logging.getLogger(__name__)

NICE = 19
"""Priority of the saver's threads that hash and compress, while nobody waits for them."""
_LOOK = 0.2
"""Seconds between two looks whether the training is asked to stop, while a full disk is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What the user wants of saving, checked."""

    process: bool
    codec: str
    budget: Budget
    check_staging: bool
    tolerance: Tolerance
    pause_when_full: bool
    progress: Bar


def making_of(
    saver: str,
    codec: str,
    ram_budget: int | str | None,
    on_save_error: int | str | Tolerance | None,
    on_full: str,
    check_staging: bool,
    progress: bool,
) -> Making:
    """The settings of a `Checkpointer`, checked.

    Raises:
        InvalidInput: one that cannot be right.
    """
    _one_of("saver", saver, ("process", "inline"))
    _one_of("codec", codec, (*Codec, "auto"))
    _one_of("on_full", on_full, ("skip", "pause"))
    if codec != "auto":
        check_available(Codec(codec))
    return Making(
        process=saver == "process",
        codec=str(codec),
        budget=budget(ram_budget),
        check_staging=check_staging,
        tolerance=tolerance_of(on_save_error),
        pause_when_full=on_full == "pause",
        progress=_progress_bar() if progress else NoBar(),
    )


def _progress_bar() -> Bar:
    from holdfast.recovery.handover.progress_bar import (
        ProgressBar,  # for those who ask for it; others need not import rich
    )

    return ProgressBar()


def _one_of(name: str, given: str, allowed: Sequence[str]) -> None:
    if given not in allowed:
        raise InvalidInput(f"{name}={given!r}: there is {', '.join(allowed)}")


def open_checkpoints(
    session: Session, plan: Plan, making: Making, after: Afterwards, stops: StopRequests, beating: Beating
) -> Checkpoints:
    """The checkpoints of this launch, with whoever makes them."""
    if _can_have_saver(session, making):
        process = _process(session, plan, making, after, stops, beating)
        beating.attach(process, stops.watched)
        stops.wake = process.wake
        return Checkpoints(session, _in_process(process, session, plan, making, after, stops), after, making.tolerance)
    beating.nobody_watches("saves are made in the training loop, and not by a process of their own")
    return Checkpoints(session, _inline(session, plan, making, after, stops), after, making.tolerance)


def _can_have_saver(session: Session, making: Making) -> bool:
    if not making.process:
        return False
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        logger.warning("saves are made in the training loop: a saver process needs Linux 5.3 or newer")
        return False
    if session.store.url.startswith("memory:"):
        logger.info("saves are made in the training loop: another process cannot see %s", session.store.url)
        return False
    return True


def _inline(session: Session, plan: Plan, making: Making, after: Afterwards, stops: StopRequests) -> Saves:
    auto = making.codec == "auto"
    launch, ballast = with_ballast(session.launch)

    def chosen(codec: Codec, text: str) -> None:
        logger.info("%s", text)
        after.note("codec", text)

    saving = Saving(
        launch=launch,
        codec=Codec.RAW if auto else Codec(making.codec),
        undecided=auto,
        chosen=chosen,
        ballast=ballast,
        damaged=quarantined_packs(session.store),
    )
    following = Following(run=launch.run, keep=plan.keep, rank=session.group.rank)
    return inline_saves(
        saving,
        following,
        Rereading(store=launch.run.store),
        pause_when_full=making.pause_when_full,
        said=_teller(after),
        journal=after,
        wait=_pausing(stops),
        progress=making.progress,
    )


def _pausing(stops: StopRequests) -> Callable[[float], bool]:
    """Waits as long as nobody has asked the training to stop."""

    def wait(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while stops.asked is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK))
        return stops.asked is None

    return wait


def _process(
    session: Session, plan: Plan, making: Making, after: Afterwards, stops: StopRequests, beating: Beating
) -> SaverProcess:
    def introduce() -> Hello:
        return Hello(
            url=_url(session),
            run=int(session.run.number),
            launch=session.launch.number,
            rank=session.group.rank,
            keep=str(plan.keep),
            codec=making.codec,
            nice=NICE,
            on_full="pause" if making.pause_when_full else "skip",
            visibility=session.store.visibility,
            signals=stops.watched,
            watch=beating.signal,
        )

    return SaverProcess(introduce, _teller(after))


def _in_process(
    process: SaverProcess, session: Session, plan: Plan, making: Making, after: Afterwards, stops: StopRequests
) -> Saves:
    tell, survival = _teller(after, first=session.group.rank == 0), staged_survival()
    stager = Stager(process.control, making.check_staging)
    if session.group.rank == 0:
        tell(logging.INFO, f"{session.run.number}: {survival}; {making.budget.why}")
    return BackgroundSaves(
        process=process,
        address=lambda request: Target.of(_address(session, request)),
        slots=Slots(process, making.budget.bytes, 2 if plan.stage is None else 3, tell, stager),
        survives=str(survival.survives),
        tell=tell,
        read=lambda target: _read(session, target),
        # Of several ranks none gives up a save that gets on, for its signals are its own; time that is over is for all.
        patience=Patience(
            stopping=lambda: stops.asked is not None and session.group.size == 1, left=lambda: stops.left
        ),
        fallback=lambda: _inline(session, plan, making, after, stops),
        progress=making.progress,
    )


def _read(session: Session, target: Target) -> Record | None:
    found = read_record(session.store, target.address)
    return found if isinstance(found, Record) else None


def _teller(after: Afterwards, *, first: bool = True) -> Callable[[int, str], None]:
    def tell(level: int, text: str) -> None:
        logger.log(level if level > logging.INFO or first else logging.DEBUG, "%s", text)
        if level >= logging.WARNING:
            after.note("saver", text)

    return tell


def _address(session: Session, request: SaveRequest) -> RecordAddress:
    return request.address(session.store.info.id, session.run.number, session.launch.number)


def _url(session: Session) -> str:
    url = session.store.url
    return url if "://" in url else str(Path(url).absolute())
