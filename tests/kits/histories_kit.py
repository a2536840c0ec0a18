"""Invented histories of runs, with a model beside them: which steps were made, by whom, and which of them last."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime

from holdfast.catalog.journal.events import Ending, Line, exit_event, progress_event
from holdfast.catalog.journal.history import History
from holdfast.catalog.journal.journal import Entry
from holdfast.ids import Order, RecordId, RunNumber, nonce
from holdfast.records import Event, Kind, LaunchInfo, Owner, Record, Sizes, StartInfo, Target, Timing

STORE, RUN = "0123456789abcdef", 1
ME = Owner(host="here", boot="b", pid=7, started="1")
BEGIN = 1_790_000_000


def utc(seconds: float) -> str:
    return datetime.fromtimestamp(BEGIN + int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Author:
    """Writes down what a training would leave behind, by a clock of its own."""

    now: float = 0.0
    """The true time."""
    skew: float = 0.0
    """By which the clock on the wall is off."""
    launches: list[LaunchInfo] = field(default_factory=list)
    starts: list[StartInfo] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    launch: int = 0
    timeline: int = 0
    step: int = 0
    parent: Record | None = None
    began: float = 0.0
    in_steps: float = 0.0

    @property
    def time(self) -> str:
        return utc(self.now + self.skew)

    def begin(self) -> None:
        self.launch, self.timeline, self.began, self.in_steps = self.launch + 1, -1, self.now, 0.0
        self.launches.append(LaunchInfo(run=RUN, number=self.launch, created=self.time, owner=ME, attempt=nonce()))

    def start(self, target: Record | None, why: str = "the head of the run") -> None:
        self.timeline, self.parent = self.timeline + 1, target
        self.step = target.step if target else 0
        self.starts.append(
            StartInfo(
                run=RUN,
                launch=self.launch,
                timeline=self.timeline,
                created=self.time,
                resumed_from=Target.of(target.address) if target else None,
                why=why,
                attempt=nonce(),
            )
        )

    def train(self, steps: int = 1, seconds: float = 1.0) -> None:
        self.step += steps
        self.now += steps * seconds
        self.in_steps += steps * seconds

    def save(self, *, kind: Kind = Kind.REGULAR, reason: str = "every(steps=10)", stall: float = 0.0) -> Record:
        self.now += stall
        order = Order(self.launch, self.timeline, self.step)
        record = Record(
            id=str(RecordId.derive(STORE, RunNumber(RUN), order)),
            run=RUN,
            **order._asdict(),
            parent=Target.of(self.parent.address) if self.parent else None,
            created=self.time,
            kind=kind,
            reason=reason,
            manifest="00" * 32,
            tensors=1,
            bytes=Sizes(logical=10, new=10, stored=10),
            timing=Timing(stall=stall, staging=0, hashing=0, writing=0),
            codec="raw",
            owner=ME,
            attempt=nonce(),
        )
        self.records.append(record)
        self.parent = record
        line = Line("saved", f"{record.address}: {record.reason}", {"stall": stall})
        self.note(line, writer=f"saver-{self.launch}-0-99")
        return record

    def note(self, line: Line, writer: str = "") -> None:
        event = Event(time=self.time, kind=line.kind, message=line.message, data=line.data)
        self.entries.append(Entry(writer or f"here-7-{self.launch}", 1, event))

    def _place(self) -> dict:
        return {"launch": self.launch, "timeline": self.timeline, "step": self.step, "step_seconds": self.in_steps}

    def progress(self, *, left: bool = False) -> None:
        self.note(progress_event(**self._place(), left=left))

    def exit(self, how: Ending, error: BaseException | None = None, rank: int = 0) -> None:
        self.note(exit_event(**self._place(), how=how, wall_seconds=self.now - self.began, error=error, rank=rank))

    def history(self, **more) -> History:
        facts = {"launches": self.launches, "starts": self.starts, "records": self.records, "entries": self.entries}
        newest = {self.launch: more.pop("alive", False)}
        facts["alive"] = more.pop("lives", {one.number: False for one in self.launches} | newest)
        return History(store=STORE, run=RUN, now=self.time, **{**facts, **more})


def overlapping() -> Author:
    """Launch 1 trains from 0 to 100, and at 60 launch 2 goes on from what it has saved at 50; that ends at 200."""
    author = Author()
    author.begin()
    author.start(None)
    author.train(50)
    saved = author.save()
    author.train(50)
    author.exit(Ending.FAILED, RuntimeError("a newer launch has taken over"))
    author.now = 60
    author.begin()
    author.start(saved)
    author.train(140)
    author.save(kind=Kind.FINAL)
    author.exit(Ending.COMPLETED)
    return author


@dataclass
class Model:
    """What was really done: every step made has a number of its own, and a checkpoint is the steps behind it."""

    author: Author = field(default_factory=Author)
    made: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By number: its launch, and its seconds."""
    line: list[int] = field(default_factory=list)
    behind: dict[str, list[int]] = field(default_factory=dict)
    """By id of a record."""
    head: Record | None = None
    told: dict[int, bool] = field(default_factory=dict)
    """By launch: whether it has told all its steps."""
    pace: float = 1.0

    def relaunch(self) -> None:
        self.author.begin()
        self.author.now += 2.0
        self._start(self.head)
        self.told[self.author.launch] = True

    def fail_to_begin(self) -> None:
        """A launch whose restore fails: it says so, and has begun nothing."""
        self.author.begin()
        self.author.timeline = 0
        self.author.now += 1.0
        self.author.exit(Ending.FAILED, OSError("the mount is away"))

    def _start(self, target: Record | None) -> None:
        self.author.start(target)
        self.head, self.line = target, list(self.behind[target.id]) if target else []

    def train(self, steps: int) -> None:
        for _ in range(steps):
            number = len(self.made)
            self.made[number] = (self.author.launch, self.pace)
            self.line.append(number)
        self.author.train(steps, self.pace)

    def save(self, **how) -> None:
        if self.head is not None and self.author.parent is self.head and self.head.step == self.author.step:
            return
        self.head = self.author.save(**how)
        self.behind[self.head.id] = list(self.line)

    def roll_back(self, target: Record, *, tell: bool) -> None:
        if tell:
            self.author.progress(left=True)
        self.told[self.author.launch] &= tell
        self._start(target)

    def exit(self, how: Ending) -> None:
        self.author.exit(how)

    def kill(self) -> None:
        self.told[self.author.launch] = False

    def forget(self, chance: random.Random) -> None:
        """Retention: any record may go, but not the head."""
        others = [record for record in self.author.records if record is not self.head]
        if others:
            self.author.records.remove(chance.choice(others))

    def useful(self, launch: int) -> list[int]:
        lasting = set(self.behind[self.head.id]) if self.head else set()
        return [number for number in sorted(lasting) if self.made[number][0] == launch]

    def done(self, launch: int) -> list[int]:
        return [number for number, (by, _) in self.made.items() if by == launch]


def lived(chance: random.Random, *, kills: bool = True, jumps: bool = False) -> Model:
    """A run with some launches, each with saves and rollbacks; all of them are over."""
    model = Model()
    model.pace = chance.choice((0.01, 1.0, 7.0))
    for _ in range(chance.randint(1, 5)):
        if jumps:
            model.author.skew = chance.choice((0.0, -5000.0, 300.0, 1e6))
        model.relaunch()
        for _ in range(chance.randint(0, 12)):
            _live(model, chance, kills=kills)
        if kills and chance.random() < 0.5:
            model.kill()
        else:
            model.exit(chance.choice([Ending.COMPLETED, Ending.PREEMPTED, Ending.FAILED, Ending.LEFT]))
        model.author.now += chance.choice((0.0, 3.0, 500.0))
        if chance.random() < 0.2:
            model.fail_to_begin()
    return model


def _live(model: Model, chance: random.Random, *, kills: bool) -> None:
    what = chance.choice(("train", "train", "save", "progress", "roll back", "forget"))
    if what == "train":
        model.train(chance.randint(1, 9))
    elif what == "save":
        model.save(stall=chance.choice((0.0, 0.5)))
    elif what == "progress":
        model.author.progress()
    elif what == "forget":
        model.forget(chance)
    elif targets := [record for record in model.author.records if record.id in model.behind]:
        model.roll_back(chance.choice(targets), tell=not kills or chance.random() < 0.5)
