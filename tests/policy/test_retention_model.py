"""Retention against a model that is told in another way: random histories with rollbacks and forks, random policies.

The model follows parent links by hand, asks each policy by looking at every
checkpoint, and adds up bytes by walking over all packs. A failure names the seed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import pytest

from holdfast.catalog.deleting.retention import RetentionFacts, plan_retention
from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import RecordMarks
from holdfast.ids import Order, RecordId, RunNumber
from holdfast.policy import Policy, any_of, at, at_most, best, every, latest, newer
from holdfast.records import Kind, Mark, MarkKind, Owner, Record, Sizes, StartInfo, Target, Timing

OWNER = Owner(host="h", boot="b", pid=1, started="1")
START = 1_767_225_600
"""Midnight, so that spans of hours begin here."""


@dataclass
class One:
    """A checkpoint of the model."""

    id: str
    step: int
    order: tuple[int, int, int]
    parent: One | None
    seconds: float
    loss: object
    packs: list[str]
    marks: set[MarkKind] = field(default_factory=set)
    protected: bool = False
    """Tagged, or the beginning of a fork."""


class History:
    """A run that went its way by chance."""

    def __init__(self, chance: random.Random, *, jumps: bool) -> None:
        self.chance, self.jumps = chance, jumps
        self.ones: list[One] = []
        self.starts: list[tuple[tuple[int, int], One | None]] = []
        self.sizes: dict[str, int] = {}
        self.place, self.at, self.step, self.seconds = (1, 0), None, 0, 0.0
        for _ in range(chance.randint(0, 30)):
            self.go_back() if self.ones and chance.random() < 0.1 else self.save()
        if chance.random() < 0.2:
            self.sizes["stray"] = chance.randint(0, 30)

    def go_back(self) -> None:
        launch, timeline = self.place
        self.place = (launch + 1, 0) if self.chance.random() < 0.5 else (launch, timeline + 1)
        self.at = self.chance.choice([None, *self.ones, *self.ones[-3:], *self.ones[-3:]])
        self.step = 0 if self.at is None else self.at.step
        self.starts.append((self.place, self.at))

    def save(self) -> None:
        self.step += self.chance.randint(1, 4)
        self.seconds += self.chance.choice([60, 1800, 5400, 40_000])
        if self.jumps and self.chance.random() < 0.1:
            self.seconds -= 20_000
        order = (*self.place, self.step)
        id_ = str(RecordId.derive("s", RunNumber(1), Order(*order)))
        one = One(id_, self.step, order, self.at, self.seconds, self._loss(), self._packs(id_), self._marks())
        one.protected = self.chance.random() < 0.05
        self.ones.append(one)
        self.at = one

    def _loss(self) -> object:
        return self.chance.choice([1.0, 2.0, 3.0, self.chance.random(), math.nan, math.inf, None, "n/a"])

    def _marks(self) -> set[MarkKind]:
        likely = {MarkKind.VERIFIED: 0.8, MarkKind.QUARANTINED: 0.04, MarkKind.PINNED: 0.04, MarkKind.GOOD: 0.15}
        return {kind for kind, share in likely.items() if self.chance.random() < share}

    def _packs(self, id_: str) -> list[str]:
        reused = [] if self.at is None else [name for name in self.at.packs if self.chance.random() < 0.4]
        own = [f"{id_}-{n}" for n in range(self.chance.randint(0, 2))]
        self.sizes |= {name: self.chance.randint(0, 20) for name in own}
        return [*reused, *own]

    def facts(self, chance: random.Random | None = None) -> RetentionFacts:
        """As the catalog has them, in any order."""
        records = {one.id: _record(one) for one in self.ones}
        starts = [_start(place, origin) for place, origin in self.starts]
        shuffled = [*records.values()]
        if chance:
            chance.shuffle(shuffled)
            chance.shuffle(starts)
        newest = max(self.starts, default=(None, None), key=lambda one: one[0])[1]
        return RetentionFacts(
            lineage=Lineage.of(shuffled, starts),
            marks={RecordId(one.id): _marks(one, records[one.id]) for one in self.ones},
            tags={RecordId(one.id): ["t"] for one in self.ones if one.protected and one.step % 2},
            forks={RecordId(one.id): [RunNumber(2)] for one in self.ones if one.protected and not one.step % 2},
            resumed_from=None if newest is None else Target.of(records[newest.id].address),
            packs=dict(self.sizes),
        )

    # The model

    def line(self) -> list[One]:
        """From the newest state back, oldest last."""
        last = max(self.ones, key=lambda one: one.order, default=None)
        place, origin = max(self.starts, default=((0, 0), None), key=lambda one: one[0])
        at = origin if last is None or place > last.order[:2] else last
        found = []
        while at is not None:
            found.append(at)
            at = at.parent
        return found

    def proven(self) -> One | None:
        intact = [one for one in self.line() if MarkKind.QUARANTINED not in one.marks]
        return next((one for one in intact if MarkKind.VERIFIED in one.marks), None)

    def never(self) -> set[str]:
        """What no policy may delete, or not yet."""
        line, proven = self.line(), self.proven()
        if proven is None:
            return {one.id for one in self.ones}
        good = [
            one for one in (*line, *sorted(self.ones, key=lambda one: one.order)[::-1]) if MarkKind.GOOD in one.marks
        ]
        good = [one for one in good if MarkKind.QUARANTINED not in one.marks]
        origins = [origin for place, origin in self.starts if place == max(place for place, _ in self.starts)]
        safe = {line[0].id, proven.id, *(one.id for one in good[:1]), *(one.id for one in origins if one)}
        for one in self.ones:
            marked = one.protected or one.marks & {MarkKind.PINNED, MarkKind.QUARANTINED}
            young = one.order > proven.order if one in line else one.step > proven.step
            safe |= {one.id} if marked or young else set()
        return safe

    def asked(self) -> list[One]:
        """Oldest first: what the policy may look at."""
        proven = self.proven()
        if proven is None:
            return []
        return [one for one in self.line()[::-1] if MarkKind.QUARANTINED not in one.marks and one.order <= proven.order]

    def bytes(self, kept: set[str]) -> int:
        named = {name for one in self.ones for name in one.packs}
        needed = {name for one in self.ones if one.id in kept for name in one.packs}
        return sum(size for name, size in self.sizes.items() if name in needed or name not in named)


def _record(one: One) -> Record:
    launch, timeline, step = one.order
    return Record(
        id=one.id,
        run=1,
        launch=launch,
        timeline=timeline,
        step=step,
        parent=None if one.parent is None else _target(one.parent),
        created=_created(one.seconds),
        kind=Kind.REGULAR,
        reason="test",
        metrics={"loss": one.loss},
        manifest="00" * 32,
        packs=one.packs,
        tensors=0,
        bytes=Sizes(logical=0, new=0, stored=0),
        timing=Timing(stall=0, staging=0, hashing=0, writing=0),
        codec="raw",
        owner=OWNER,
        attempt="00",
    )


def _created(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(START + seconds, UTC).isoformat()


def _target(one: One) -> Target:
    launch, timeline, step = one.order
    return Target(run=1, launch=launch, timeline=timeline, step=step, id=one.id)


def _start(place: tuple[int, int], origin: One | None) -> StartInfo:
    return StartInfo(
        run=1,
        launch=place[0],
        timeline=place[1],
        created=_created(0),
        resumed_from=None if origin is None else _target(origin),
        why="test",
        attempt="00",
    )


def _marks(one: One, record: Record) -> RecordMarks:
    target = Target.of(record.address)
    kinds = sorted(one.marks)
    return RecordMarks(marks=tuple(Mark(kind=k, target=target, created="", by="t", attempt=str(k)) for k in kinds))


def wants(policy: Policy, line: list[One]) -> set[str]:
    """What a single policy keeps of a line, oldest first, by its description."""
    match str(policy).partition("(")[0]:
        case "latest":
            return {one.id for one in line[max(0, len(line) - policy.n) :]}
        case "best":
            sign = 1 if policy.mode == "min" else -1
            known = [(sign * one.loss, n) for n, one in enumerate(line) if isinstance(one.loss, float)]
            known = [pair for pair in known if math.isfinite(pair[0])]
            return {line[n].id for _, n in sorted(known)[: policy.n]}
        case "newer":
            return {one.id for one in line if line[-1].seconds - one.seconds <= policy.amount * 3600}
        case "at":
            return _firsts(line, policy.steps)
        case "every" if policy.unit == "steps":
            return _firsts(line, range(policy.amount, line[-1].step + 1 if line else 1, policy.amount))
        case _:
            cells = [None, *((START + one.seconds) // (policy.amount * 3600) for one in line)]
            return {one.id for one, before, cell in zip(line, cells, cells[1:], strict=False) if cell != before}


def _firsts(line: list[One], steps) -> set[str]:
    ends = [*steps[1:], 10**9][: len(steps)]
    found = ([one.id for one in line if first <= one.step < end] for first, end in zip(steps, ends, strict=True))
    return {ids[0] for ids in found if ids}


WORTH = {"newer": 0, "every": 1, "at": 1, "latest": 2, "best": 3}


def some_case(chance: random.Random) -> tuple[History, list[Policy], int | None]:
    """A history, policies, and a limit that leaves room for a part of it."""
    policies = some_policies(chance)
    limited = not policies or chance.random() < 0.6
    # Where a limit has taken away a milestone, a clock that goes back and forth may have the next plan take another.
    history = History(chance, jumps=not limited)
    whole = sum(history.sizes.values())
    return history, policies, 1 + chance.randint(whole // 4, whole) if limited else None


def some_policies(chance: random.Random) -> list[Policy]:
    make = [
        lambda: latest(chance.randint(1, 4)),
        lambda: best("loss", chance.randint(1, 3), mode=chance.choice(["min", "max"])),
        lambda: every(steps=chance.randint(1, 9)),
        lambda: every(hours=chance.choice([0.5, 2, 6])),
        lambda: newer(hours=chance.choice([0.5, 3, 24])),
        lambda: at(steps=[chance.randint(1, 40) for _ in range(chance.randint(1, 4))]),
    ]
    return [one() for one in chance.sample(make, chance.randint(0, 3))]


def check(seed: int) -> None:
    """One history, one policy: everything that has to hold."""
    chance = random.Random(seed)
    history, policies, limit = some_case(chance)
    policy = any_of(*policies, *([at_most(limit)] if limit else []))
    facts = history.facts()
    plan = plan_retention(policy.kept, facts, policy.limit)
    deleted, kept = {str(one.id) for one in plan.delete}, {str(id_) for id_ in plan.keep}
    never, line = history.never(), history.asked()
    wanted = set().union(*(wants(one, line) for one in policies)) if policies else {one.id for one in line}
    wanted &= {one.id for one in line}
    assert deleted | kept == {one.id for one in history.ones}, seed
    assert not deleted & kept, seed
    assert never <= kept, seed
    assert all(plan.keep.values()), seed
    if limit is None:
        assert kept == never | wanted, seed
    else:
        check_limit(history, limit, kept, never, wanted, policies, line, seed)
    assert plan_retention(policy.kept, history.facts(chance), policy.limit) == plan, seed
    check_again(history, policy, plan, seed)


def check_limit(history, limit, kept, never, wanted, policies, line, seed) -> None:
    """Cut is no more than needed, in the right order, and nothing that frees no byte."""
    assert kept <= never | wanted, seed
    cut = [one for one in line if one.id in (never | wanted) - kept]
    wanting = [(WORTH[str(one).partition("(")[0]], wants(one, line)) for one in policies]
    least = {one.id: max([worth for worth, ids in wanting if one.id in ids], default=0) for one in line}
    rank = {one.id: (least[one.id], n) for n, one in enumerate(line)}
    size = history.bytes(kept)
    if size > limit:
        assert size == history.bytes(never), f"{seed}: something that only a policy wants takes room"
    elif cut:
        last = max((one.id for one in cut), key=rank.__getitem__)
        assert history.bytes(kept | {last}) > limit, f"{seed}: more was cut than needed"
        for one in line:
            if one.id in kept - never and rank[one.id] < rank[last]:
                assert history.bytes(kept - {one.id}) == size, f"{seed}: {one.step} should have gone before"
    for one in cut:
        assert history.bytes(kept | {one.id}) > size, f"{seed}: {one.step} was cut for nothing"


def check_again(history: History, policy: Policy, plan, seed: int) -> None:
    """Planning again on what was kept deletes nothing more."""
    gone = {str(one.id) for one in plan.delete}
    needed = {name for one in history.ones if one.id not in gone for name in one.packs}
    named = {name for one in history.ones for name in one.packs}
    facts = history.facts()
    left = replace(
        facts,
        lineage=Lineage.of(
            [one for one in facts.lineage.order if one.id not in gone],
            [_start(place, origin) for place, origin in history.starts],
        ),
        packs={name: size for name, size in history.sizes.items() if name in needed or name not in named},
    )
    assert plan_retention(policy.kept, left, policy.limit).delete == (), seed


CHUNKS = 10


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_2000_random_histories_agree_with_the_model(chunk):
    for seed in range(chunk, 2000, CHUNKS):
        check(seed)


@pytest.mark.soak
def test_10000_random_histories_agree_with_the_model():
    first = random.randrange(10**9)
    print("first seed", first)
    for seed in range(first, first + 10_000):
        check(seed)


def test_the_histories_are_worth_looking_at():
    """Rollbacks, forks, cuts, limits that are not reached: each is there often enough to be tested at all."""
    seen = dict.fromkeys(["rollback", "deleted", "cut", "unreached", "fork", "good"], 0)
    for seed in range(300):
        chance = random.Random(seed)
        history, policies, limit = some_case(chance)
        policy = any_of(*policies, *([at_most(limit)] if limit else []))
        plan = plan_retention(policy.kept, history.facts(), policy.limit)
        seen["rollback"] += bool(history.starts)
        seen["deleted"] += bool(plan.delete)
        seen["cut"] += bool(plan.cut)
        seen["unreached"] += plan.room is not None and plan.room.kept > plan.room.limit
        seen["fork"] += any("forked" in why for reasons in plan.never.values() for why in reasons)
        seen["good"] += any("good" in why for reasons in plan.never.values() for why in reasons)
    assert min(seen.values()) > 20, seen
