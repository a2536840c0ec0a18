"""Which run a launch works on: decided from facts, before anything is written.

`resume` is "auto" (continue if there is anything, else start), "must"
(continue or fail), "never" (never from another job's work) or a reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.errors import InvalidInput, NothingToResume, RefusedFresh, UnknownReference
from holdfast.ids import RecordAddress, RunName, RunNumber
from holdfast.records import RunInfo
from holdfast.recovery.launching.fresh import near_misses


@dataclass(frozen=True, slots=True)
class NewRun:
    """See `new_run`."""

    name: RunName | None


def new_run(name: str | None = None) -> NewRun:
    """Asks for a new run, even where one of this name could be continued.

    A restart of the same job still continues the run that its first start has made.

    Raises:
        InvalidName: ``name`` cannot be a run name.

    Example:
        >>> new_run("gpt2-small").name
        'gpt2-small'
    """
    return NewRun(None if name is None else RunName(name))


@dataclass(frozen=True, slots=True)
class NumberedRun:
    """Asks for the run of a number, to be made if it is the next one: as configurations do that number their runs."""

    number: RunNumber
    said: str
    """Which key says so, with its place."""

    def __str__(self) -> str:
        return str(int(self.number))


Wanted = NewRun | NumberedRun | RunName | RunNumber | None
"""What ``run=`` asks for."""


def wanted(run: str | int | NewRun | NumberedRun | None) -> Wanted:
    """What ``run=`` asks for: a name, a number (also as ``run-003``), a new run, or nothing.

    Raises:
        InvalidName: it can be neither.
    """
    if run is None or isinstance(run, NewRun | NumberedRun):
        return run
    if isinstance(run, int):
        return RunNumber(run)
    number = re.fullmatch(r"run-([0-9]{1,12})", run)
    return RunNumber(int(number[1])) if number else RunName(run)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run as far as choosing needs it."""

    info: RunInfo
    head: RecordAddress | None
    finished: bool
    """Whether its head reached the total that this launch asks for."""
    ours: bool = False
    """Whether an earlier start of this very job, with the same command line, has made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChoice:
    """The run to work on: one that exists, or one to be created."""

    number: RunNumber | None
    name: RunName | None
    forked_from: RecordAddress | None
    why: str
    claims: RunNumber | None = None
    """The number that the new run must get; None: any."""


def choose_run(
    want: Wanted,
    resume: str,
    source: RecordAddress | None,
    known: Sequence[KnownRun],
    *,
    restarts: int = 0,
    moves: bool = False,
    free: RunNumber | None = None,
) -> RunChoice:
    """The run that this launch works on. Pure.

    Args:
        want: what the user said as ``run=``.
        resume: "auto", "must", "never" or "reference".
        source: the record that a reference means.
        known: all readable runs of the store, by number.
        restarts: how often the launcher has restarted the job.
        moves: whether the reference means another record once its run has gone on.
        free: the number that a new run would get.

    Raises:
        NothingToResume: "must", and there is no run to continue.
        RefusedFresh: there is no run of this name, but one of nearly this name.
        UnknownReference: there is no run of this number.
        InvalidInput: the run of this number goes on from something else than ``source``.
    """
    if isinstance(want, RunNumber):
        return _of_number(want, f"run={int(want)}", source, known, moves=moves)
    if isinstance(want, NumberedRun):
        return _of_numbered(want, resume, source, known, free, moves=moves)
    name = want.name if isinstance(want, NewRun) else want
    mine = [run for run in known if run.info.name == name]
    new = isinstance(want, NewRun) or resume == "never"
    # Whoever asks for a new run after one is finished, in an interactive job perhaps, is not being restarted.
    ours = [run for run in mine if run.ours and not (new and run.finished and restarts == 0)]
    if ours and (new or resume != "must"):
        return _existing(ours[-1], f"made by an earlier start of this job ({ours[-1].info.job}) with this command")
    if new:
        return RunChoice(number=None, name=name, forked_from=source, why="a new run was asked for")
    if source is not None:
        return _from_reference(name, mine, source, moves=moves)
    return _continued(name, mine, resume, known)


def _of_number(
    number: RunNumber, said: str, source: RecordAddress | None, known: Sequence[KnownRun], *, moves: bool
) -> RunChoice:
    run = _numbered(number, known)
    if run is None:
        raise UnknownReference(f"{said}: there is no {number} that can be read; there is: {_newest(known)}")
    if source is not None and _goes_on_from(run, source, moves=moves) is None:
        raise InvalidInput(
            f"{said} with resume=: {number} does not go on from {source}; leave run= out, or give a name, "
            f"to begin a run there, or leave resume= out to go on with {number}"
        )
    return _existing(run, said)


def _of_numbered(
    want: NumberedRun,
    resume: str,
    source: RecordAddress | None,
    known: Sequence[KnownRun],
    free: RunNumber | None,
    *,
    moves: bool,
) -> RunChoice:
    """The run of that number, or a new one if the number is the next one; any other number is a slip."""
    number, said = want.number, f"{want.said}: {int(want.number)}"
    if _numbered(number, known) is not None:
        return _of_number(number, said, source, known, moves=moves)
    if number != free:
        raise UnknownReference(
            f"{said}: there is no {number} that can be read; there is: {_newest(known)}; say {int(free or 1)} for a "
            "new run, or leave run_number out: runs get their numbers by themselves"
        )
    if resume == "must":
        raise NothingToResume(f"resume='must', but there is no {number} yet ({said}); check the store's path")
    return RunChoice(number=None, name=None, forked_from=source, why=f"{said} is the next one", claims=number)


def _numbered(number: RunNumber, known: Sequence[KnownRun]) -> KnownRun | None:
    return next((run for run in known if run.info.number == number), None)


def _newest(known: Sequence[KnownRun]) -> str:
    return ", ".join(str(RunNumber(run.info.number)) for run in known[-5:]) or "no runs yet"


def _from_reference(name: RunName | None, mine: Sequence[KnownRun], source: RecordAddress, *, moves: bool) -> RunChoice:
    for run in reversed(mine):
        why = _goes_on_from(run, source, moves=moves)
        if why is not None:
            return _existing(run, why)
    return RunChoice(number=None, name=name, forked_from=source, why=f"a fork of {source}")


def _goes_on_from(run: KnownRun, source: RecordAddress, *, moves: bool) -> str | None:
    """How working on ``run`` is what was asked for with ``source``; None: it is not."""
    fork = run.info.forked_from
    if run.info.number == source.run:
        return f"asked to go back to {source}"
    if fork is not None and fork.address == source:
        return f"forked from {source} by an earlier start"
    if fork is not None and moves and fork.run == source.run:
        # The same command line works for the n-th launch too, also if its source has gone on meanwhile.
        return f"forked from {fork.address} by an earlier start; {source} has come after that"
    return None


def _continued(name: RunName | None, mine: Sequence[KnownRun], resume: str, known: Sequence[KnownRun]) -> RunChoice:
    if mine:
        unfinished = [run for run in mine if not run.finished]
        run = (unfinished or list(mine))[-1]
        return _existing(run, "the newest unfinished run of this name" if unfinished else "all runs are finished")
    if resume == "must":
        raise NothingToResume(f"resume='must', but there is no run {_said(name)}; check run= and the store's path")
    _refuse_numbers(name, known)
    _refuse_slips(name, known)
    return RunChoice(number=None, name=name, forked_from=None, why=f"there was no run {_said(name)}")


def _refuse_numbers(name: RunName | None, known: Sequence[KnownRun]) -> None:
    """A number that a shell or a file has made text: it would begin a run of this name beside the one that is meant."""
    if name is None or not name.isdecimal() or any((run.info.name or "").isdecimal() for run in known):
        return  # whoever names runs by digits, by a seed perhaps, means names
    if number := next((run.info.number for run in known if run.info.number == int(name)), 0):
        raise RefusedFresh(
            f"there is no run named {name!r}, but there is {RunNumber(number)}; say run={number} to continue it, "
            f"or run=holdfast.new_run({name!r}) if a new run is meant"
        )


def _refuse_slips(name: RunName | None, known: Sequence[KnownRun]) -> None:
    slips = near_misses(name, [run.info.name for run in known if run.info.name]) if name else []
    if slips:
        raise RefusedFresh(
            f"there is no run named {name!r}, but there is {', '.join(map(repr, slips))}; "
            f"say run={slips[0]!r} to continue it, or run=holdfast.new_run({name!r}) if a new run is meant"
        )


def _existing(run: KnownRun, why: str) -> RunChoice:
    name = None if run.info.name is None else RunName(run.info.name)
    return RunChoice(number=RunNumber(run.info.number), name=name, forked_from=None, why=why)


def _said(name: RunName | None) -> str:
    return "without a name" if name is None else f"named {name!r}"
