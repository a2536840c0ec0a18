"""Kill -9 of trainers and savers of a training of several ranks: one, all at once, and at file events of a save.

Whatever is killed, the ranks that are left end by themselves, the relaunch goes on from the newest complete checkpoint,
and in the end everything is bit for bit as if nothing had happened: weights, and every checkpoint on the way.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from ranks_kit import Ranks, Strike, counted, launched, launches_of, parts_of, problems_of, records_of, resumed_from
from ranks_training import SAVE_EVERY, Job
from staged_kit import Family, leftovers
from toy_training import KILLED

from holdfast.cli.app import run as command

LONG = [pytest.mark.soak, pytest.mark.timeout(7200)]
FAILED = 70
"""Exit code of a rank that ended with an error."""


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What a training comes to that nobody touches."""

    digests: list[str]
    manifests: Mapping[int, str]
    """By step."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """By way of spreading and number of ranks, made when asked for."""
    known: dict[tuple[str, int, int], Undisturbed] = {}

    def of(how: str, size: int, total: int) -> Undisturbed:
        if (how, size, total) not in known:
            place = tmp_path_factory.mktemp(f"{how}{size}")
            job = Job(store=place / "store", notes=place / "notes", how=how, total=total)
            world = launched(place, job, size).wait().check()
            manifests = {record.step: record.manifest for record in records_of(job.store)}
            assert list(manifests) == list(range(SAVE_EVERY, job.total + 1, SAVE_EVERY))
            known[how, size, total] = Undisturbed(digests=world.digests(), manifests=manifests)
        return known[how, size, total]

    return of


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What is killed, and when."""

    whom: str
    """``trainer`` or ``saver`` of a rank, both (``node``); all trainers (``job``), with their savers (``machine``)."""
    rank: int
    step: int
    """When the rank has come so far."""
    wait: float
    """Seconds after that."""

    def strike(self, world: Ranks) -> bool:
        """Whether anything was killed."""
        world.await_step(self.step, [self.rank])
        time.sleep(self.wait)
        if self.whom in ("job", "machine"):
            killed = [world.kill(rank, saver=self.whom == "machine") for rank in world.alive()]
            return any(killed)
        return world.kill(self.rank, trainer=self.whom != "saver", saver=self.whom != "trainer")

    def __str__(self) -> str:
        return f"{self.whom} {self.rank} at {self.step} + {self.wait:.3f} s"


TURNS = (
    ["trainer"],
    ["saver", "job"],
    ["node"],
    ["job"],
    ["saver", "trainer"],
    ["machine"],
    ["job"],
    ["saver", "saver"],
)


def kills_of(rng: random.Random, number: int, newest: int, size: int) -> list[Kill]:
    """Those of one life; a training with no saver goes on, so something else follows."""
    found, step = [], newest
    for whom in TURNS[number % len(TURNS)]:
        step += rng.randrange(0, 6)
        found.append(Kill(whom=whom, rank=rng.randrange(size), step=step, wait=rng.choice([0, rng.uniform(0, 0.1)])))
    return found


class Series:
    """One training, life after life, until it is done."""

    def __init__(self, place: Path, job: Job, size: int, wanted: Undisturbed) -> None:
        self.place, self.job, self.size, self.wanted = place, job, size, wanted
        self.family, self.lives, self.done = Family(), 0, False
        self.promised, self.world = 0, None
        """The newest step that every rank had staged when trainers were killed, and savers were not."""

    @property
    def newest(self) -> int:
        records = records_of(self.job.store)
        return records[-1].step if records else 0

    def live(self, kills: Sequence[Kill] = (), strikes: Mapping[int, Strike] | None = None) -> int:
        """One launch, begun at once after the one before has ended; gives how many kills came in time."""
        self.lives += 1
        for strike in (strikes or {}).values():
            strike.job.unlink(missing_ok=True)
        preludes = {rank: strike.prelude() for rank, strike in (strikes or {}).items()}
        world = launched(self.place / f"life-{self.lives}", self.job, self.size, family=self.family, preludes=preludes)
        for strike in (strikes or {}).values():
            strike.job.write_text(" ".join(map(str, world.pids)))
        begun, self.promised = self.promised, 0
        struck = [kill for kill in kills if kill.strike(world)]
        world.wait()
        hit = [strike for strike in (strikes or {}).values() if strike.struck]
        said = [*map(str, struck), *(f"{one.whom} at {one.struck}" for one in hit)]
        print(f"  life {self.lives} from {begun} or later: {said}: {[world.codes[rank] for rank in range(self.size)]}")
        codes = Counter(world.codes.values())
        assert codes.keys() <= {0, KILLED, FAILED}, f"{world.codes}\n{world.text}"
        self.done = codes.keys() == {0}
        assert self.done or codes[KILLED], f"an error, and no trainer was killed\n{world.text}"
        if not any(one.whom in ("saver", "node", "machine") for one in (*struck, *hit)):
            self.promised = min(staged(world, rank) for rank in range(self.size))
        self._check(world, begun)
        return len(struck) + len(hit)

    def _check(self, world: Ranks, promised: int) -> None:
        """What must hold after every life."""
        assert problems_of(self.job.store) == [], world.text
        assert launches_of(self.job.store) == list(range(1, self.lives + 1)), world.text
        records = records_of(self.job.store)
        for record in records:
            assert record.manifest == self.wanted.manifests[record.step], f"{record.address} mixes\n{world.text}"
        begun = resumed_from(self.job.store, self.lives)
        assert begun >= promised, f"it began from {begun}, and {promised} was staged on all ranks\n{world.text}"
        if any(record.address.order.launch == self.lives for record in records):
            stale = [name for name in parts_of(self.job.store) if int(name.split(".")[0]) < self.lives]
            assert not stale, f"parts of launches that are over: {stale}\n{world.text}"
        if self.done:
            assert world.digests() == self.wanted.digests, world.text
            self.family.await_savers_end()
            with redirect_stdout(StringIO()):
                assert command(["gc", "--store", str(self.job.store), "--json"]) == 0
            assert leftovers(self.job.store) == []  # what was killed in the middle of a file is gone, too
            assert [record.address for record in records_of(self.job.store)] == [one.address for one in records]


def staged(world: Ranks, rank: int) -> int:
    """The newest step whose save a rank has handed over: it has begun the step after it."""
    return max((step for step in world.steps(rank) if step % SAVE_EVERY == 0), default=0)


@pytest.mark.parametrize(
    ("how", "size", "kills"),
    [
        ("fsdp", 2, 8),
        pytest.param("fsdp", 2, 100, marks=LONG),
        pytest.param("ddp", 2, 100, marks=LONG),
        pytest.param("fsdp", 4, 60, marks=LONG),
    ],
)
def test_trainings_of_several_ranks_survive_kills_at_any_time(
    tmp_path: Path, undisturbed, how: str, size: int, kills: int
) -> None:
    """Hazards 1, 5 and 22: nothing hangs, nothing that was staged on all ranks is lost, nothing is mixed."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    rng, done, lives = random.Random(seed), 0, 0
    while done < kills:
        print(f"after {done} kills")
        place = tmp_path / str(done)
        job = Job(store=place / "store", notes=place / "notes", how=how)
        series = Series(place, job, size, undisturbed(how, size, job.total))
        while not series.done:
            done += series.live(kills_of(rng, lives, series.newest, size) if done < kills else ())
            lives += 1


WHOM = ("saver", "trainer", "job", "node")


@pytest.mark.parametrize("kills", [6, pytest.param(160, marks=LONG)])
def test_a_kill_at_any_file_event_of_a_save_of_several_ranks_loses_nothing(
    tmp_path: Path, undisturbed, kills: int
) -> None:
    """Before, between and after parts and record: of a rank's saver, its trainer, both, or all trainers."""
    size, total = 2, 8
    wanted = undisturbed("ddp", size, total)
    events = counted(tmp_path, Job(store=tmp_path / "store", notes=tmp_path / "notes", how="ddp", total=total), size)
    begin, hit = random.SystemRandom().random(), Counter[bool]()
    print(f"\nfile events of the savers: {events}, begin {begin}")
    for number in range(kills):
        rank, whom = number % size, WHOM[number // size % len(WHOM)]
        at = 1 + int((begin + number / kills) % 1 * events[rank])
        place = tmp_path / str(number)
        place.mkdir()
        strike = Strike(once=place / "once", number=at, whom=whom, after=number // 8 % 2 == 1)
        print(f"{whom} of rank {rank} at event {at}{' (after it)' if strike.after else ''}")
        job = Job(store=place / "store", notes=place / "notes", how="ddp", total=total)
        series = Series(place, job, size, wanted)
        while not series.done:
            series.live(strikes={rank: strike})
        hit[bool(strike.struck)] += 1
    assert hit[True] >= 0.7 * kills, "most come in time"
