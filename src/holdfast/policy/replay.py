"""What policies would have done on a past run: pure, from what is known of it.

The steps that were made are known, so policies by step are replayed exactly.
The clock, the epoch and metrics are known only where a checkpoint was really
made; nothing is made up in between, so policies that look at them are asked
there, and the answer says how much that is. A checkpoint that was really made
at the very step costs what it cost; another one costs the median. What is made
whatever the policy (by hand, on a signal, at the end) is made in the replay,
too.

The replay takes every checkpoint for verified at once, and knows no tags, pins,
forks and good marks. It goes on after a restart as the run did, from where the
run did: with more checkpoints than there were, some of those steps would not
have been done again, and how they would have gone nobody knows. Each launch is
taken to end at the step at which it really did. If a checkpoint of the replay
was as far as the run went on from, or farther, the launch would have begun
there, so no more is lost than what the run has made since; else the way from
its own, older checkpoint was made again, and is lost again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from holdfast.errors import InvalidPolicy
from holdfast.policy.at import At
from holdfast.policy.auto import Auto
from holdfast.policy.base import Policy
from holdfast.policy.best import Best
from holdfast.policy.every import Every, Unit
from holdfast.policy.experience import Experience
from holdfast.policy.facts import SaveFacts
from holdfast.policy.past import KnownSave, Past, PastStretch
from holdfast.policy.shelf import Made, Shelf

MOST = 100_000
"""Boundaries at which a replay asks a policy; more would take hours."""

MOST_LOOKS = 50_000_000
"""Looks at checkpoints that are kept, as one that is made looks at all: a minute or two; 10,000 can be kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Where the run went on, from its end or from before it."""

    launch: int
    reached: int
    """Completed steps when it ended."""
    back_to: int
    """Completed steps of the checkpoint from which it could go on."""
    at_least: bool
    """Whether it may have made more steps than anything tells of."""

    @property
    def steps(self) -> int:
        """Steps to be done again."""
        return max(0, self.reached - self.back_to)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run's policies, or would have."""

    saves: int
    estimated: int = 0
    """Of these, those whose costs are the median of others."""
    stall_seconds: float
    written: int
    """Bytes of packs."""
    kept: tuple[tuple[int, str], ...]
    """Steps of the checkpoints that are there at the end, oldest first, and why they are there."""
    final_bytes: int
    """Of the run's packs, at the end."""
    peak_bytes: int | None
    """At most, over time; None: not known."""
    losses: tuple[Loss, ...]

    @property
    def went_back(self) -> int:
        """How often steps were to be done again: not where an end came with a checkpoint."""
        return sum(one.steps > 0 for one in self.losses)

    @property
    def lost_steps(self) -> int:
        """To be done again, in all."""
        return sum(one.steps for one in self.losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What happened, and what would have happened."""

    real: Outcome
    planned: Outcome
    notes: tuple[str, ...]
    """What is not known, and what that does to the figures."""


def replay(past: Past, save: Policy, keep: Policy) -> Replay:
    """Replays two policies on the facts of a run. Deterministic.

    Raises:
        InvalidPolicy: a policy that cannot serve ``save`` or ``keep``, or one that would have to be asked too often, or
            about too many checkpoints.
    """
    asked = sum(1 for stretch in past.stretches for _ in _boundaries(stretch, save))
    if asked > MOST:
        raise InvalidPolicy(
            f"{save} has to be asked at more than {MOST} steps of this run; a replay asks at most {MOST} times"
        )
    return Replay(real=real(past), planned=_Replaying(past, save, keep).outcome(), notes=tuple(_notes(past, save)))


def real(past: Past) -> Outcome:
    """What really happened, as far as anything tells."""
    shelf, saves = Shelf.of(past), past.saves
    there = [(stretch.place, one) for stretch in past.stretches for one in stretch.saves if one.there]
    return Outcome(
        saves=len(saves),
        stall_seconds=sum(one.stall for one in saves),
        written=sum(one.stored for one in saves),
        kept=tuple((one.step, one.why) for _, one in there),
        final_bytes=shelf.base * bool(there) + sum(shelf.own(one.stored, place, one.step) for place, one in there),
        peak_bytes=None,
        losses=tuple(_loss(before, stretch.begun) for before, stretch in pairwise(past.stretches)),
    )


def _loss(ended: PastStretch, back_to: int) -> Loss:
    return Loss(launch=ended.place[0], reached=ended.reached, back_to=back_to, at_least=not ended.exact)


def _boundaries(stretch: PastStretch, save: Policy) -> Iterator[int]:
    """The steps at which ``save`` is asked, ascending: where something is known, and where it looks at steps alone."""
    known = {one.step for one in stretch.saves}
    multiples = [
        _multiples(part.amount, stretch) for part in save.parts if isinstance(part, Every) and part.unit is Unit.STEPS
    ]
    if sum(map(len, multiples)) > MOST:
        yield from range(MOST + 1)
        return
    listed = (step for part in save.parts if isinstance(part, At) for step in part.steps)
    steps = known.union(*multiples, (step for step in listed if stretch.begun < step <= stretch.reached))
    yield from sorted(steps)


def _multiples(amount: float, stretch: PastStretch) -> range:
    each = int(amount)
    return range((stretch.begun // each + 1) * each, stretch.reached + 1, each)


class _Clock:
    """What is known of the time within a stretch."""

    def __init__(self, stretch: PastStretch) -> None:
        known = [(one.step, one.seconds) for one in stretch.saves if one.seconds is not None]
        self.began = stretch.began
        self._known = ([] if stretch.began is None else [(stretch.begun, stretch.began)]) + known

    def earliest(self, step: int) -> float | None:
        """A time that ``step`` was not before; None: nothing tells."""
        at = bisect_right(self._known, step, key=lambda one: one[0])
        return max((seconds for _, seconds in self._known[:at][-1:]), default=None)

    def latest(self, step: int) -> float | None:
        """A time that ``step`` was not after; None: nothing tells."""
        return next((seconds for at, seconds in self._known if at >= step), None)


class _Since(NamedTuple):
    """The last save, or the beginning of the stretch."""

    step: int
    seconds: float | None
    epochs: int | None


def _in_any_case(save: KnownSave | None) -> str | None:
    """Why a checkpoint is made whatever the policy."""
    return save.why if save is not None and not save.by_policy else None


def _between(first: float | None, last: float | None) -> float:
    return 0.0 if first is None or last is None else max(0.0, last - first)


@dataclass(slots=True)
class _Replaying:
    """One replay under way."""

    past: Past
    save: Policy
    keep: Policy
    shelf: Shelf = field(init=False)
    typical: KnownSave = field(init=False)
    known: Experience = field(default_factory=Experience)
    origin: int = 0
    """Completed steps from which the stretch at hand has to be done again if nothing is saved in it."""
    saves: int = 0
    estimated: int = 0
    stall: float = 0.0
    written: int = 0
    losses: list[Loss] = field(default_factory=list)

    def outcome(self) -> Outcome:
        self.shelf, self.typical = Shelf.of(self.past), _typical(self.past.saves)
        before: PastStretch | None = None
        for stretch in self.past.stretches:
            self._begin(stretch, before)
            self._run(stretch)
            before = stretch
        return Outcome(
            saves=self.saves,
            estimated=self.estimated,
            stall_seconds=self.stall,
            written=self.written,
            kept=self.shelf.kept(),
            final_bytes=self.shelf.bytes,
            peak_bytes=self.shelf.peak,
            losses=tuple(self.losses),
        )

    def _begin(self, stretch: PastStretch, before: PastStretch | None) -> None:
        if before is None or stretch.elsewhere:
            self._learn(before)
            self.losses += [] if before is None else [_loss(before, stretch.begun)]
            self.shelf.begin(stretch.place, None)
            self.origin = stretch.begun
            return
        back_to = self._back_to(stretch, before)
        self.losses.append(_loss(before, back_to))
        self._learn(before)
        self.shelf.begin(stretch.place, self.shelf.newest(stretch.begun))
        self.origin = min(back_to, stretch.begun)

    def _back_to(self, stretch: PastStretch, before: PastStretch) -> int:
        """Completed steps of what there is to go on from after ``before``; not beyond where a rollback went."""
        went_back = stretch.begun < before.begun or any(one.step > stretch.begun for one in before.saves)
        upto = stretch.begun if went_back else before.reached
        newest = self.shelf.newest(upto)
        found = [] if newest is None else [newest.step]
        # Retention may have let go of what the run went on from, for newer ones than that.
        found += [self.origin] if self.origin <= upto else []
        return max(found, default=self.past.stretches[0].begun)

    def _learn(self, ended: PastStretch | None) -> None:
        """From how a stretch ended."""
        if ended is None:
            return
        last = ended.saves[-1] if ended.saves else None
        lasted = _between(ended.began, None if last is None else last.seconds)
        failed = not (ended.on_purpose or (last is not None and last.meant_to_end))
        known = self.known
        self.known = replace(known, failures=known.failures + failed, seconds=known.seconds + lasted)

    def _run(self, stretch: PastStretch) -> None:
        clock, known = _Clock(stretch), {one.step: one for one in stretch.saves}
        since = _Since(stretch.begun, stretch.began, self._epochs(stretch))
        for step in _boundaries(stretch, self.save):
            save = known.get(step)
            why = self.save.due(self._facts(step, save, since, clock)) or _in_any_case(save)
            if why:
                self._make(stretch, step, why, save, clock.earliest(step))
                since = _Since(step, clock.latest(step), since.epochs if save is None else save.epochs)

    def _epochs(self, stretch: PastStretch) -> int | None:
        """Completed where a stretch begins."""
        if not stretch.begun:
            return 0
        earlier = (one for before in self.past.stretches for one in before.saves if before.place < stretch.place)
        return next((one.epochs for one in earlier if one.step == stretch.begun), None)

    def _facts(self, step: int, save: KnownSave | None, since: _Since, clock: _Clock) -> SaveFacts:
        now, epochs = clock.earliest(step), None if save is None else save.epochs
        return SaveFacts(
            step=step,
            steps_since_save=step - since.step,
            # Too little rather than too much: nothing tells more.
            seconds_since_save=_between(since.seconds, now),
            epoch=0 if save is None else save.epoch or 0,
            epoch_ended=save is not None and save.epoch_ended,
            epochs_since_save=0 if epochs is None or since.epochs is None else max(0, epochs - since.epochs),
            metrics={} if save is None else save.metrics,
            saved=self.shelf.metrics(),
            save_seconds=self.known.save_seconds,
            durable_seconds=self.known.durable_seconds,
            failures=self.known.failures,
            observed_seconds=self.known.seconds + _between(clock.began, now),
        )

    def _make(self, stretch: PastStretch, step: int, why: str, save: KnownSave | None, seconds: float | None) -> None:
        cost = save or self.typical
        self.saves, self.estimated = self.saves + 1, self.estimated + (save is None)
        self.stall, self.written = self.stall + cost.stall, self.written + cost.stored
        self.known = self.known.with_save(cost.stall, cost.durable)
        made = Made(
            step=step,
            why=why,
            seconds=seconds or 0.0,
            epoch=None if save is None else save.epoch,
            metrics={} if save is None else save.metrics,
            own=self.shelf.own(cost.stored, stretch.place, step),
        )
        self.shelf.add(made, self.keep)
        if self.shelf.looks > MOST_LOOKS:
            raise InvalidPolicy(
                f"{self.keep} keeps {len(self.shelf)} checkpoints after {self.saves} saves of this run, and with more "
                "of them a replay would take many minutes; save less often, or keep less"
            )


def _typical(saves: Sequence[KnownSave]) -> KnownSave:
    """What a save that was not made would have cost: the first one writes everything, so it does not count."""
    rest = saves[1:] or saves

    def middle(values: Sequence[float]) -> float:
        return median(values) if values else 0.0

    return KnownSave(
        step=0,
        why="",
        seconds=None,
        stall=middle([one.stall for one in rest]),
        durable=middle([one.durable for one in rest]),
        stored=int(middle([one.stored for one in rest])),
    )


def _notes(past: Past, save: Policy) -> Iterator[str]:
    saves = past.saves
    if any(
        isinstance(part, Auto) or (isinstance(part, Every) and part.unit not in (Unit.STEPS, Unit.EPOCHS))
        for part in save.parts
    ):
        yield f"the clock is known at {len(saves)} checkpoints only: by time, there may have been more saves than shown"
    if any(isinstance(part, Every) and part.unit is Unit.EPOCHS for part in save.parts):
        yield "the epoch is known at checkpoints that are there only: saves at ends of epochs may be missing or late"
    for part in save.parts:
        if isinstance(part, Best):
            known = sum(part.metric in one.metrics for one in saves)
            yield f"{part.metric} is known at {known} of {len(saves)} checkpoints, and nowhere else"
    if not saves:
        yield "no save of this run is known, so costs and bytes are not known either"
