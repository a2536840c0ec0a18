"""``holdfast log``: the life of a run as a timeline, and what became of its time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import typer

from holdfast.catalog.journal.accounts import Account
from holdfast.catalog.journal.events import PROGRESS
from holdfast.catalog.journal.gathering import Gathered, gather
from holdfast.catalog.journal.timeline import KINDS, SAVE, Moment, Timeline, timeline_of
from holdfast.catalog.naming.selecting import near_misses
from holdfast.catalog.runs import Run
from holdfast.cli.finding import find_run, opened
from holdfast.cli.life import MEANING, WIDTH, picture, shares
from holdfast.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from holdfast.cli.output import columns, print_json, say, size, table, warn
from holdfast.errors import InvalidInput

QUIET = (PROGRESS,)
"""Kinds that are shown to those who ask for them."""


def command(
    run: str | None = typer.Argument(None, help="A run: its name or run-003; the newest one if left out."),
    launch: int | None = typer.Option(None, "--launch", help="Only what belongs to this launch."),
    only: str | None = typer.Option(None, "--only", help="Only these kinds, such as 'save,exit,rollback'."),
    tail: int | None = typer.Option(None, "--tail", help="Only the newest so many lines.", min=0),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
) -> None:
    """Show what happened in a run, launch by launch, and how much of its time made progress."""
    chosen = find_run(opened(store), run)
    gathered = gather(chosen)
    timeline = timeline_of(gathered.history)
    _check_launch(timeline, launch)
    moments = _chosen(timeline, launch, _kinds(timeline, only), tail)
    accounts = [one for one in timeline.accounts if launch in (None, one.launch)]
    if json:  # with all launches: nothing drowns in a document
        print_json(_document(chosen, timeline, gathered, moments, accounts))
        return
    if not timeline.moments:
        say("nothing has happened yet")
    else:
        if tail != 0:
            _print_moments(moments, gathered.history.now, stacks=only is not None)
        shown = accounts if tail is None else _latest(accounts, moments)
        _print_summary(shown, gathered.history.now, more=len(accounts) - len(shown))
        if launch is None:
            _print_total(chosen, timeline)
    _print_doubts(timeline, gathered)


def _check_launch(timeline: Timeline, launch: int | None) -> None:
    there = [account.launch for account in timeline.accounts]
    if launch is not None and launch not in there:
        raise InvalidInput(f"--launch {launch}: there is {', '.join(map(str, there[-9:])) or 'no launch yet'}")


def _kinds(timeline: Timeline, only: str | None) -> Collection[str] | None:
    if only is None:
        return None
    wanted = [kind.strip() for kind in only.split(",") if kind.strip()]
    there = sorted({moment.kind for moment in timeline.moments})
    if unknown := [kind for kind in wanted if kind not in KINDS and kind not in there]:
        near = near_misses(unknown[0], [*there, *KINDS])
        raise InvalidInput(f"--only {unknown[0]!r}: no such kind{near}; there is {', '.join(there)}")
    return wanted


def _chosen(timeline: Timeline, launch: int | None, kinds: Collection[str] | None, tail: int | None) -> list[Moment]:
    found = [
        moment
        for moment in timeline.moments
        if launch in (None, moment.launch) and (moment.kind in kinds if kinds is not None else moment.kind not in QUIET)
    ]
    return found if tail is None else found[len(found) - min(tail, len(found)) :]


def _latest(accounts: Sequence[Account], moments: Sequence[Moment]) -> Sequence[Account]:
    """Those of the launches that the lines are of, and the newest one."""
    shown = {moment.launch for moment in moments} | {account.launch for account in accounts[-1:]}
    return [account for account in accounts if account.launch in shown]


def _document(
    run: Run, timeline: Timeline, gathered: Gathered, moments: Sequence[Moment], accounts: Sequence[Account]
) -> dict[str, Any]:
    return {
        "run": str(run.number),
        "events": [_event(moment) for moment in moments],
        "launches": [_account(account) for account in accounts],
        "total": {**asdict(timeline.total), "goodput": timeline.total.goodput},
        "doubts": list(timeline.doubts),
        "damaged": list(gathered.problems),
    }


def _event(moment: Moment) -> dict[str, Any]:
    told = {"time": moment.time, "what": moment.kind, "text": moment.text, "launch": moment.launch}
    return told | {"step": moment.step, "data": moment.data}


def _account(account: Account) -> dict[str, Any]:
    times = {"began": _utc(account.began), "ended": _utc(account.ended), "ending": str(account.ending)}
    more = {"lost_seconds": account.lost_seconds, "other_seconds": account.other_seconds, "goodput": account.goodput}
    return {**asdict(account), **times, **more}


def _print_moments(moments: Sequence[Moment], now: str, *, stacks: bool) -> None:
    """One line for each, and below it the stacks that it has, for whoever has asked for its kind."""
    if not moments:
        say("nothing of that has happened")
        return
    times = _times([moment.time[:19] for moment in moments], now)
    lines = zip(moments, times, strict=True)
    rows = [row for one, time in lines for row in (_line(one, time), *(_stacks(one) if stacks else ()))]
    table(("time (UTC)", "what", "event"), rows)


def _times(times: Sequence[str], now: str) -> list[str]:
    """As they are shown: with their year, unless all are of this one."""
    this_year = all(time[:4] in (now[:4], "") for time in times)
    return [(time[5:] if this_year else time).replace("T", " ") for time in times]


def _line(one: Moment, time: str) -> tuple[str, str, str]:
    return time, one.kind, one.text + _cost(one)


def _stacks(one: Moment) -> list[tuple[str, str, str]]:
    return [("", "", line) for line in str(one.data.get("stacks") or "").splitlines()]


def _cost(moment: Moment) -> str:
    if moment.kind != SAVE or moment.data.get("gone"):
        return ""
    new, stall, durable = (moment.data[name] for name in ("new", "stall", "durable"))
    return f"; {size(new)} new, the loop waited {stall:.2f} s, durable after {durable:.2f} s"


def _print_summary(accounts: Sequence[Account], now: str, *, more: int) -> None:
    say()
    names = ("launch", "began (UTC)", "lasted", "steps", "useful", "lost", "goodput", "ended by")
    right = ("launch", "lasted", "steps", "useful", "lost", "goodput")
    began = _times([(_utc(account.began) or "")[:16] for account in accounts], now)
    table(names, [_row(account, time) for account, time in zip(accounts, began, strict=True)], right=right)
    if more:
        say(f"and {more} more launch{'' if more == 1 else 'es'}; --launch N shows one")


def _print_total(run: Run, timeline: Timeline) -> None:
    say()
    total, launches = timeline.total, timeline.accounts
    share = _share(total.goodput, estimated=total.estimated)
    steps = f"{total.useful} steps useful, {'at least ' if total.at_least else ''}{total.lost} lost"
    say(f"{run.number}: {steps}" + (f", goodput {share} over {lasting(total.wall)}" if share else ""))
    if drawn := picture(launches, min(WIDTH, columns() - 2)):
        say(drawn)
        spent = [(letter, lasting(seconds), seconds) for letter, seconds in shares(launches).items()]
        rows = [(letter, text, f"{seconds / total.wall:.0%}", MEANING[letter]) for letter, text, seconds in spent]
        table(("", "time", "share", "spent on"), rows, right=("time", "share"))


def _row(one: Account, began: str) -> tuple[object, ...]:
    ended = str(one.ending) + (f": {one.why}" if one.why else "")
    lost = f"{one.lost}+" if one.at_least else one.lost
    steps = f"{one.done}+" if one.at_least else one.done
    share = _share(one.goodput, estimated=one.estimated and one.done > 0)
    return one.launch, began, lasting(one.wall), steps, one.useful, lost, share, ended


def _share(share: float | None, *, estimated: bool) -> str:
    if share is None:
        return ""
    return ("~" if estimated else "") + f"{share:.2f}"


def _print_doubts(timeline: Timeline, gathered: Gathered) -> None:
    for doubt in timeline.doubts:
        say(f"note: {doubt}")
    for problem in gathered.problems:
        warn(f"not in this picture: {problem}")


def lasting(seconds: float) -> str:
    """A time span for people, in three digits or so.

    Example:
        >>> [lasting(seconds) for seconds in (0.04, 2.5, 59, 90, 7200, 500_000)]
        ['40 ms', '2.5 s', '59 s', '1.5 min', '2.0 h', '5.8 d']
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds / length:.1f} {unit}"
    if 0 < seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"


def _utc(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
