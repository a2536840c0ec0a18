"""What became of the time and the steps of each launch, and goodput: the share of the time that made progress.

Per launch::

    goodput = seconds in steps that are on the line of the head / seconds that the launch lasted

Per run the same, where the time between the end of one launch and the beginning of the next counts as lasted. This is
the runtime part of ML Productivity Goodput (Google Cloud, April 2024: "Introducing ML Productivity Goodput", and
arXiv:2502.06982): productive, preserved training time over elapsed time. Waiting for the first machine, before there is
a launch, is not seen from here, so it does not count; how well a step uses the hardware is another number.

Assumptions. A step is *useful* if it lies on the line that leads to the head: before the checkpoint that a later start
resumed from, or, in the newest stretch, before the newest checkpoint; all of its steps while it still runs. All other
steps were made and are *lost*. Of a launch that was killed only those are known that something tells of, so its loss
is "at least". Seconds in steps are those that the loop has measured, waiting for data included, and saves, restores and
the start-up not; between two measurements in proportion to the steps. In stores that have no measurements they are what
has passed between a start and a checkpoint, less the stalls of saves: *estimated*, and too high by the start-up.

Times of different hosts may disagree. Nothing here is negative because of that, nothing exceeds what contains it, and
`Account.doubts` says what did not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from holdfast.catalog.journal.events import ENDED, Ending, Exit
from holdfast.catalog.journal.history import (
    History,
    Place,
    Stretch,
    by_launch,
    hung_last,
    is_trainer,
    said,
    saves_told,
    seconds_of,
    stretches,
)
from holdfast.catalog.marks import NO_MARKS
from holdfast.ids import RecordId
from holdfast.records import Kind

NO_WORD = "no word of it"
MAY_RUN = "no word of it; it may still run"
"""Why a launch counts as killed, or as one of which nobody knows."""

SLACK = 5.0
"""Seconds by which clocks may disagree before that is said; times are noted in whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One launch: what it did, what of that lasts, and where its time went. Seconds unless said otherwise."""

    launch: int
    began: float | None
    """Since the epoch, by the clock of its host; None: nothing tells."""
    ended: float | None
    """The last that was heard of it, where it has not said how it ended."""
    ending: Ending
    why: str
    """More about the ending."""
    done: int
    """Steps made."""
    useful: int
    """Steps of these that are on the line of the head."""
    lost: int
    """The others."""
    at_least: bool
    """Whether it may have made, and lost, more steps than anything tells of."""
    wall: float
    """How long it lasted."""
    step_seconds: float
    useful_seconds: float
    stall_seconds: float
    """For which saves kept the loop waiting."""
    estimated: bool
    """Whether seconds in steps were not measured."""
    before: float
    """Between the end of the launch before and the beginning of this one."""
    overlap: float
    """Of `wall`, after the next launch had begun: that time is the next one's, and nothing useful was made in it."""
    doubts: tuple[str, ...] = ()
    """What the clocks say that cannot be."""

    @property
    def lost_seconds(self) -> float:
        """In steps that are lost."""
        return max(0.0, self.step_seconds - self.useful_seconds)

    @property
    def other_seconds(self) -> float:
        """Neither in steps nor in stalls: starting, restoring, evaluating outside of the loop, ending."""
        return max(0.0, self.wall - self.step_seconds - self.stall_seconds)

    @property
    def goodput(self) -> float | None:
        """Useful seconds over all that it lasted, from 0 to 1; None: it lasted no time."""
        return _share(self.useful_seconds, self.wall)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A whole run: the sums over its launches, where time in which two of them ran counts once."""

    done: int
    useful: int
    lost: int
    at_least: bool
    wall: float
    """From the beginning of the first launch on, the time between launches included."""
    useful_seconds: float
    lost_seconds: float
    stall_seconds: float
    between: float
    """Of `wall`, without any launch."""
    estimated: bool

    @property
    def goodput(self) -> float | None:
        """As in `Account`, over the whole time."""
        return _share(self.useful_seconds, self.wall)


def total_of(accounts: Sequence[Account]) -> Total:
    """The sums."""
    between = sum(one.before for one in accounts)
    return Total(
        done=sum(one.done for one in accounts),
        useful=sum(one.useful for one in accounts),
        lost=sum(one.lost for one in accounts),
        at_least=any(one.at_least for one in accounts),
        wall=between + sum(one.wall - one.overlap for one in accounts),
        useful_seconds=sum(one.useful_seconds for one in accounts),
        lost_seconds=sum(min(one.lost_seconds, one.wall - one.overlap - one.useful_seconds) for one in accounts),
        stall_seconds=sum(one.stall_seconds for one in accounts),
        between=between,
        estimated=any(one.estimated and one.done for one in accounts),
    )


def accounts_of(history: History) -> list[Account]:
    """One account for each launch that has left anything, by number. Pure, and deterministic."""
    found, own = stretches(history), by_launch(history)
    newest = max(own, default=0)
    lives = [_life(history, number, own[number], newest=number == newest) for number in own]
    may_run = lives and lives[-1].ending in (Ending.RUNNING, Ending.UNKNOWN)
    useful, stalls = useful_steps(found, lives[-1].launch if may_run else None), _stalls(history)
    accounts = []
    for before, life, after in zip([None, *lives], lives, [*lives[1:], None], strict=False):
        mine = [one for place, one in found.items() if place[0] == life.launch]
        account = _account(before, life, mine, useful, stalls.get(life.launch, 0.0))
        accounts.append(replace(account, overlap=_overlap(life, after, account.wall - account.useful_seconds)))
    return accounts


def useful_steps(found: Mapping[Place, Stretch], running: int | None) -> dict[Place, int]:
    """Up to which step each stretch is on the line of the head; places that are not on it are not in the answer.

    Args:
        found: the stretches of a run.
        running: a launch that may still run: what it has not saved yet is not lost yet.
    """
    useful: dict[Place, int] = {}
    place = max(found, default=None)
    upto = 0 if place is None else found[place].reached if place[0] == running else found[place].kept
    while place is not None and place in found:
        useful[place] = upto
        target = found[place].continues
        if target is None or (target.launch, target.timeline) >= place:
            break  # the line begins here, or in another run
        place, upto = (target.launch, target.timeline), target.step
    return useful


@dataclass(frozen=True, slots=True, kw_only=True)
class _Life:
    """When a launch was there, and how it ended."""

    launch: int
    began: float | None
    ended: float | None
    ending: Ending
    why: str
    exit: Exit | None
    wall: float
    late: float | None
    """The last that the training process itself has noted."""
    newest: bool


def _life(history: History, number: int, mine: History, *, newest: bool) -> _Life:
    signs, own = _times(mine)
    began = next(_readable(one.created for one in mine.launches), min(signs, default=None))
    exit_, at = _exit(mine, number)
    ending, why = _ending(history, mine, exit_, number, newest=newest)
    ended = at if at is not None else max(signs, default=began)
    # What an older one still does is lost: another launch has the run. Its time ends with what was heard of it.
    if newest and ending is Ending.RUNNING and (now := seconds_of(history.now)) is not None:
        ended = now
    lasted = 0.0 if began is None or ended is None else max(0.0, ended - began)
    wall = lasted if exit_ is None else exit_.wall_seconds
    late = at if at is not None else max(own, default=None)
    return _Life(
        launch=number,
        began=began,
        ended=ended,
        ending=ending,
        why=why,
        exit=exit_,
        wall=wall,
        late=late,
        newest=newest,
    )


def _times(mine: History) -> tuple[list[float], list[float]]:
    """All times at which something of a launch was noted, and those that its training process has noted."""
    own = [*_readable(start.created for start in mine.starts)]
    own += _readable(entry.event.time for entry in mine.entries if is_trainer(entry))
    others = [*_readable(record.created for record in mine.records)]
    others += _readable(entry.event.time for entry in mine.entries if not is_trainer(entry))
    return [*own, *others], own


def _readable(times: Iterable[str]) -> Iterator[float]:
    return (seconds for time in times if (seconds := seconds_of(time)) is not None)


def _exit(mine: History, number: int) -> tuple[Exit | None, float | None]:
    """What a launch has said about its end, rank 0 first, and when."""
    told = ((one, seconds_of(entry.event.time)) for entry, one in said(mine))
    found = [(one, at) for one, at in told if isinstance(one, Exit) and one.launch == number]
    return min(found, key=lambda pair: pair[0].rank, default=(None, None))


def _ending(history: History, mine: History, exit_: Exit | None, number: int, *, newest: bool) -> tuple[Ending, str]:
    if exit_ is not None:
        return exit_.how, _cause(mine) if exit_.how is Ending.FAILED else ""
    inferred = _inferred(history, mine)
    if inferred is not None:
        return inferred
    if (silent := hung_last(mine.entries)) and silent[-1].event.kind == ENDED:
        return Ending.KILLED, silent[-1].event.message
    alive = history.alive.get(number)
    if alive:
        return Ending.RUNNING, "" if newest else "a newer launch has the run"
    # That another launch has begun tells that it is gone, where its process cannot be looked for.
    return (Ending.UNKNOWN, MAY_RUN) if newest and alive is None else (Ending.KILLED, NO_WORD)


def _cause(mine: History) -> str:
    """The first error of any rank that is not about another rank: that one is the cause."""
    errors = [one.error for _, one in said(mine) if isinstance(one, Exit) and one.error]
    errors += [one.event.message for one in hung_last(mine.entries) if one.event.kind == ENDED]
    return min(errors, key=lambda text: text.startswith("PeerLost"), default="")


def _inferred(history: History, mine: History) -> tuple[Ending, str] | None:
    """How a launch ended that has not said so, from what it saved and noted last: older stores say no more."""
    last = max(mine.records, key=lambda record: (record.timeline, record.step), default=None)
    if last is not None and (last.kind is Kind.FINAL or history.marks.get(RecordId(last.id), NO_MARKS).final):
        return Ending.COMPLETED, ""
    if last is not None and last.kind is Kind.PREEMPTED and not last.reason.startswith("the trainer was killed"):
        return Ending.PREEMPTED, ""
    told = [entry.event for entry in mine.entries if entry.event.kind in (Ending.FAILED, Ending.LEFT)]
    # Of several ranks one has failed, and the others were told to end.
    told = [one for one in told if one.kind == Ending.FAILED] or told
    return (Ending(told[-1].kind), told[-1].message) if told else None


def _stalls(history: History) -> dict[int, float]:
    """By launch: from records, and from the journal for those that are gone."""
    by_id: dict[str, tuple[int, float]] = {one.id: (one.launch, one.stall) for one in saves_told(history)}
    by_id |= {record.id: (record.launch, record.timing.stall) for record in history.records}
    sums: dict[int, float] = {}
    for launch, stall in by_id.values():
        sums[launch] = sums.get(launch, 0.0) + stall
    return sums


def _between(earlier: _Life | None, later: _Life) -> tuple[float, list[str]]:
    """Seconds between two launches, and what cannot be: a saver may end after the next launch began, a trainer not."""
    if earlier is None or earlier.ended is None or later.began is None:
        return 0.0, []
    over = 0.0 if earlier.late is None else earlier.late - later.began
    doubt = (
        f"launch {later.launch} began {over:.0f} s before launch {earlier.launch} was last heard of: "
        "their clocks disagree, or both have run"
    )
    return max(0.0, later.began - earlier.ended), [doubt] if over > SLACK else []


def _overlap(life: _Life, later: _Life | None, idle: float) -> float:
    """Seconds for which ``life`` went on beside the next launch; at most ``idle``, in which nothing useful was made.

    One that began before it, by its clock, has a clock that is wrong.
    """
    if later is None or later.began is None or life.began is None or life.ended is None or later.began < life.began:
        return 0.0
    return max(0.0, min(life.ended - later.began, later.wall, idle))


def _account(
    earlier: _Life | None, life: _Life, mine: Sequence[Stretch], useful: Mapping[Place, int], stall: float
) -> Account:
    before, doubts = _between(earlier, life)
    doubts += _jumps(life)
    seconds = [stretch.seconds(stretch.reached) for stretch in mine]
    kept = [stretch.seconds(useful[stretch.place]) if stretch.place in useful else 0.0 for stretch in mine]
    measured = sum(seconds)
    if measured > life.wall + SLACK:
        doubts.append(f"launch {life.launch} lasted {life.wall:.0f} s, but its steps took {measured:.0f} s")
    # Time cannot be spent twice.
    scale = min(1.0, life.wall / measured) if measured > 0 else 0.0
    done = sum(stretch.done for stretch in mine)
    steps = sum(min(useful[one.place], one.reached) - one.begun for one in mine if one.place in useful)
    return Account(
        launch=life.launch,
        began=life.began,
        ended=life.ended,
        ending=life.ending,
        why=life.why,
        done=done,
        useful=steps,
        lost=done - steps,
        at_least=not _said_all(life, mine),
        wall=life.wall,
        step_seconds=measured * scale,
        useful_seconds=sum(map(min, kept, seconds)) * scale,
        stall_seconds=min(stall, life.wall),
        estimated=not all(stretch.measured for stretch in mine if stretch.done),
        before=before,
        overlap=0.0,
        doubts=tuple(doubts),
    )


def _jumps(life: _Life) -> list[str]:
    if life.exit is None or life.began is None or life.ended is None:
        return []
    jump = life.ended - life.began - life.wall
    if abs(jump) <= SLACK + 0.01 * life.wall:
        return []
    return [f"the clock of launch {life.launch} was set {'forward' if jump > 0 else 'back'} by {abs(jump):.0f} s"]


def _said_all(life: _Life, mine: Sequence[Stretch]) -> bool:
    """Whether no step can be missing: each stretch has told its end, or the last checkpoint was the end."""
    calm = life.ending in (Ending.COMPLETED, Ending.PREEMPTED) or (life.newest and life.ending is Ending.RUNNING)
    last = max((stretch.place for stretch in mine), default=None)
    return all(stretch.exact or (calm and stretch.place == last) for stretch in mine)


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0 else None
