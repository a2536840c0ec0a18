"""Signals to real trainings, wherever they are: a checkpoint within the grace time, or the last one kept and said.

One process with everything that makes resuming hard (batch norm, dropout, an accumulation, loader workers), and two
ranks under DDP; the signal goes to the process or to its whole group, in every part of a step and at random moments.
Never a hang, never a mixed state, and the run that goes on ends bit for bit like one that nobody has disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from preempted_kit import PLACES, ended_within, sender, settled, strike_in_save, struck
from ranks_kit import launched, records_of
from ranks_training import Job
from torch.utils.data import DataLoader
from toy_training import ACCUMULATE, BATCH, Augmented, fingerprint, forked, model_of, newest

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.catalog.journal.journal import read_journal
from holdfast.catalog.verifying.verify import verify
from holdfast.ids import RunNumber
from holdfast.records import Kind

LONG = [pytest.mark.soak, pytest.mark.timeout(7200)]
HANGS = 60.0
"""Seconds after which a process that has not ended hangs; it takes one or two."""
GRACE = 30.0
STEPS = 12
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A signal, and where it comes."""

    place: str
    """One of `PLACES`, or "anywhere": after ``wait`` seconds."""
    step: int
    group: bool = False
    number: int = signal.SIGTERM
    workers: int = 0
    saver: str = "inline"
    wait: float = 0.0

    def __str__(self) -> str:
        whom = "group" if self.group else "process"
        return f"{signal.Signals(self.number).name} to the {whom} in {self.place} at step {self.step}, {self.saver}"


class Told(Augmented):
    """Samples of which one, in whichever process it is loaded, sends."""

    def __init__(self, send=None, at: int = -1) -> None:
        self.send, self.at, self.trainer = send, at, os.getpid()
        self.count = 0

    def __getitem__(self, index: int):
        self.count += 1
        if self.send is not None and self.count == self.at:
            # From a worker: to the group that it shares with its parent, or to the parent.
            self.send() if os.getpid() == self.trainer else os.kill(self.trainer, self.number)
            if self.group:
                os.killpg(os.getpgrp(), self.number)
        return super().__getitem__(index)

    number, group = signal.SIGTERM, False


def train(store: Path, blow: Blow | None = None, **options) -> str:
    """A launch: to the end, or until it is pre-empted; tells which."""
    settled()
    model = model_of(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    send = sender(blow.number, group=blow.group) if blow else None
    samples = Told()
    if blow and blow.place == "loading":
        samples = Told(send, at=blow.step * BATCH)
        samples.number, samples.group = blow.number, blow.group
    if blow and blow.place == "saving":
        strike_in_save(1 + blow.step // 3, send)
    workers = blow.workers if blow else 0
    loader = DataLoader(holdfast.seeded(samples, seed=5), batch_size=BATCH, shuffle=True, num_workers=workers)
    facts = []
    settings = {"save": every(steps=2), "keep": latest(2), "saver": blow.saver if blow else "inline", "grace": GRACE}
    settings |= {"signals": SIGNALS, "on_preempt": facts.append}
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    with Checkpointer(store, run="toy", state=state, **(settings | options)) as ckpt:
        ckpt.values.setdefault("seen", [])
        for micro, (step, (x, y)) in enumerate(ckpt.batches(loader, total_steps=STEPS), start=1):
            here = blow is not None and step == blow.step
            with struck(blow.place if here else "", model, send or (lambda: None)):
                ((model(x) - y).pow(2).mean() / ACCUMULATE).backward()
                if micro % ACCUMULATE == 0:
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                    ckpt.values["seen"].append(round(float(x.sum()), 4))
            if here and blow.place == "evaluation" and micro % ACCUMULATE == 0:
                evaluate(model, ckpt, send)
            time.sleep(0.01 if blow and blow.place == "anywhere" else 0)
    assert facts == ([ckpt.preempted] if ckpt.preempted else [])
    if ckpt.preempted is None:
        return f"done {fingerprint(model, optimizer, ckpt.values)}"
    return f"preempted {ckpt.preempted.step} {ckpt.preempted.durable} {ckpt.preempted.left}"


def evaluate(model: torch.nn.Module, ckpt: Checkpointer, send) -> None:
    """Long, unless it asks whether to stop."""
    model.eval()
    numbers = torch.Generator().manual_seed(1)
    for batch in range(10**6):
        with torch.no_grad():
            model(torch.randn(4, 16, generator=numbers))
        if batch == 3:
            send()
        if ckpt.should_stop():
            break
    model.train()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("undisturbed")
    return _launched(place / "s", place / "report")


def _launched(store: Path, report: Path, blow: Blow | None = None, **options) -> str:
    report.unlink(missing_ok=True)
    pid = forked(partial(train, store, blow, **options), report)
    if blow and blow.place == "anywhere":
        time.sleep(blow.wait)
        with suppress(ProcessLookupError):  # it has just ended, or has not made its group yet
            (os.killpg if blow.group else os.kill)(pid, blow.number)
    code = ended_within(pid, HANGS)
    return report.read_text() if report.exists() else f"ended {code}"


def check(place: Path, blow: Blow, undisturbed: str) -> str:
    """One run that is struck, and the one that goes on; gives what became of the first."""
    said = _launched(place / "s", place / "report", blow)
    known = newest(place / "s")
    if said.startswith("preempted"):
        _, step, durable, left = said.split()
        assert durable == "True", said
        assert 0 < float(left) <= GRACE
        assert known is not None
        assert known.step == int(step)
        # Workers are ahead of the training, and the first save comes before what is struck in the second.
        assert blow.place in ("loading", "saving", "anywhere") or known.step >= blow.step
        assert known.kind in (Kind.PREEMPTED, Kind.REGULAR)
        assert {"preempted", "exit"} <= kinds(place / "s")
    else:
        # Before its loop, or behind it, a signal does what it always does; or it came too late for anything.
        assert blow.place in ("anywhere", "loading"), said
        assert said.startswith("done") or said == f"ended {-blow.number}", said
    if known is not None:
        assert not verify(holdfast.open(place / "s")).problems
    assert _launched(place / "s", place / "again") == undisturbed, str(blow)
    return said.partition(" ")[0]


def kinds(store: Path) -> set[str]:
    return {entry.event.kind for entry in read_journal(holdfast.open(store), RunNumber(1)).entries}


SHORT = [
    Blow(place="forward", step=3),
    Blow(place="backward", step=4, group=True, workers=1),
    Blow(place="optimizer", step=5, number=signal.SIGUSR2),
    Blow(place="evaluation", step=4),
    Blow(place="loading", step=3, workers=2),
    Blow(place="loading", step=3, workers=2, group=True, saver="process"),
    Blow(place="saving", step=3, group=True, saver="process"),
    Blow(place="saving", step=3),
]


@pytest.mark.parametrize("blow", SHORT, ids=str)
def test_a_signal_becomes_a_checkpoint_within_the_grace_time(tmp_path: Path, blow: Blow, undisturbed: str) -> None:
    """Users-ask 8, hazards 10, 23, 26."""
    assert check(tmp_path, blow, undisturbed) == "preempted"


def random_blow(numbers: random.Random) -> Blow:
    place = numbers.choice([*PLACES, "anywhere"])
    return Blow(
        place=place,
        step=numbers.randint(1, STEPS - 2),
        group=numbers.random() < 0.5,
        number=numbers.choice(SIGNALS),
        workers=numbers.choice([0, 2]) if place != "loading" else 2,
        saver=numbers.choice(["inline", "process"]),
        wait=numbers.uniform(0.05, 1.5),
    )


@pytest.mark.parametrize("runs", [pytest.param(80, marks=LONG)])
def test_signals_at_random(tmp_path: Path, runs: int, undisturbed: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    for run in range(runs):
        blow = random_blow(numbers)
        print(run, blow, flush=True)
        (tmp_path / str(run)).mkdir()
        check(tmp_path / str(run), blow, undisturbed)


# A save that does not fit


def test_a_save_that_does_not_fit_is_not_begun_and_that_is_said(tmp_path: Path, undisturbed: str) -> None:
    """The last committed one stands, in the log and in the journal; and the end does not wait for anything."""
    slow = partial(_slow_train, tmp_path / "s")
    pid = forked(slow, tmp_path / "report")
    assert ended_within(pid, HANGS) == 0
    _, step, durable, _ = (tmp_path / "report").read_text().split()
    known = newest(tmp_path / "s")
    assert known is not None
    assert durable == "False"
    assert known.step < int(step)
    assert "preempted" in kinds(tmp_path / "s")
    assert _launched(tmp_path / "s", tmp_path / "again") == undisturbed


def _slow_train(store: Path) -> str:
    from holdfast.recovery.saving.checkpoints import Checkpoints

    Checkpoints.typical = property(lambda self: 60.0)  # as measured on a slow disk
    return train(store, Blow(place="forward", step=4))


# Several ranks


_lasting = ExitStack()
"""To the end of a forked rank."""


def _strike(where: str, at: int, whom: int, group: bool, rank, step, ckpt, model) -> None:
    if step == 0:
        os.setpgid(0, 0)  # torchrun gives each of its workers a group
    if step == at and rank == whom:
        send = sender(signal.SIGTERM, group=group)
        _lasting.enter_context(struck(where, model, send))
        if where == "loading":
            send()


def check_ranks(place: Path, where: str, at: int, whom: int, wanted: list[str], *, group: bool) -> None:
    then = partial(_strike, where, at, whom, group)
    facts = place / "facts"
    options = {"grace": GRACE, "on_preempt": partial(_write, facts), "save": every(steps=5)}
    job = Job(store=place / "store", notes=place / "notes", how="ddp", total=16, then=then, options=options)
    launched(place / "first", job).wait().check()
    signal_, step, durable = facts.read_text().split()
    record = records_of(job.store)[-1]
    assert (durable, record.step, record.kind) == ("True", int(step), Kind.PREEMPTED)
    assert at < record.step <= at + 3, "all ranks stop at one step, soon"
    assert signal_ == "SIGTERM" or whom != 0
    again = Job(store=job.store, notes=place / "notes2", how="ddp", total=16, options={"save": every(steps=5)})
    assert launched(place / "second", again).wait().check().digests() == wanted


def _write(path: Path, facts) -> None:
    path.write_text(f"{facts.signal.split()[0]} {facts.step} {facts.durable}")


@pytest.fixture(scope="module")
def undisturbed_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("ranks")
    options = {"save": every(steps=5)}
    job = Job(store=place / "store", notes=place / "notes", how="ddp", total=16, options=options)
    return launched(place / "w", job).wait().check().digests()


@pytest.mark.parametrize(
    ("where", "whom", "group"), [("backward", 1, False), ("loading", 0, True)], ids=["rank 1", "rank 0 and its group"]
)
def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path: Path, where, whom, group, undisturbed_ranks) -> None:
    """Users-ask 8, hazard 21: ranks agree on one step, and the checkpoint is of that."""
    check_ranks(tmp_path, where, 7, whom, undisturbed_ranks, group=group)


@pytest.mark.parametrize("runs", [pytest.param(20, marks=LONG)])
def test_signals_to_ranks_at_random(tmp_path: Path, runs: int, undisturbed_ranks) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    for run in range(runs):
        where = numbers.choice(["forward", "backward", "optimizer", "loading"])
        at, whom, group = numbers.randint(1, 11), numbers.randint(0, 1), numbers.random() < 0.5
        print(run, where, at, whom, group, flush=True)
        check_ranks(tmp_path / str(run), where, at, whom, undisturbed_ranks, group=group)
