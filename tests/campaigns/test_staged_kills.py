"""Kill -9 of the trainer right after a save was staged: it is made all the same, and the relaunch goes on from it."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from staged_kit import (
    Family,
    Notes,
    awaited,
    check_store,
    digest_of,
    full_shared_memory,
    gated,
    heard,
    in_own_mounts,
    record_at,
    resumed,
    staging_memory,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset
from toy_training import KILLED, ended, finished, forked

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.saver import starting

STEPS, BATCH = 80, 4
LONG = [pytest.mark.soak, pytest.mark.timeout(3600)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kill. Seconds count from the moment at which the last save was staged."""

    saves: tuple[int, ...]
    """Steps, one after the other, of which the last is the one to be killed after."""
    wait: float
    relaunch: float | None
    """Seconds after the kill; None: only when the saver has ended."""
    workers: int = 0
    stuck: bool = False
    """A loader worker is in the middle of a sample that takes for ever."""
    group: bool = False
    """The whole process group is killed, as a shell does; the loader workers, too."""

    @property
    def last(self) -> int:
        return self.saves[-1] if self.saves else 0


def case_of(rng: random.Random, number: int) -> Case:
    """Half of them relaunched at once, half with loader workers, some of these stuck."""
    first, workers = rng.randrange(1, 9), 2 * (number // 2 % 2)
    return Case(
        saves=tuple(range(first, first + rng.randrange(1, 4))),
        wait=rng.choice([0, rng.uniform(0, 0.5)]),
        relaunch=rng.choice([0, rng.uniform(0, 0.5)]) if number % 2 else None,
        workers=workers,
        stuck=workers > 0 and number // 4 % 2 == 1,
        group=rng.random() < 0.25,
    )


def first(path: Path) -> bool:
    """Whether this process is the first that comes to make a file."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Samples(Dataset):
    """Noisy ones; the first worker that comes to number ``endless`` or a later one stays there and leaves ``stuck``."""

    def __init__(self, endless: int | None, stuck: Path) -> None:
        self.endless, self.stuck = endless, stuck

    def __len__(self) -> int:
        return BATCH * (STEPS + 10)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.endless is not None and index >= self.endless and first(self.stuck):
            time.sleep(90)
        return torch.full((64,), index / len(self)) + torch.randn(64) / 10


class Trainer:
    """The training script, with a place of its own for notes."""

    def __init__(self, place: Path, name: str, family: Family | None = None) -> None:
        place.mkdir(exist_ok=True)
        self.store, self.family = place / "store", family or Family()
        self.notes, self.stuck = Notes(place / f"{name}.notes"), place / f"{name}.stuck"

    def train(self, workers: int, case: Case | None = None) -> str:
        """To the end, or, with a case, until it is killed; gives the digest of all that was trained."""
        torch.set_num_threads(1)
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(64, 500), nn.BatchNorm1d(500), nn.Dropout(0.1), nn.Linear(500, 600))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        loader = self.loader(workers, BATCH * (case.last + 2) if case and case.stuck else None)
        state = {"model": model, "optimizer": optimizer}
        with Checkpointer(
            self.store, run="toy", state=state, save=every(steps=10**6), keep=latest(99), saver="process"
        ) as ckpt:
            if case is not None:
                ckpt.save()  # so loader workers are forked when there is staging memory already
                self.notes.add("state", 0, digest_of(model, optimizer))
            for number, (step, batch) in enumerate(ckpt.batches(loader, total_steps=STEPS)):
                if number == 0:
                    self.notes.add("began", step, digest_of(model, optimizer))
                if case is not None:
                    self.act(case, step, ckpt, digest_of(model, optimizer))
                model(batch).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return digest_of(model, optimizer)

    def loader(self, workers: int, endless: int | None) -> DataLoader:
        return DataLoader(
            holdfast.seeded(Samples(endless, self.stuck), seed=5),
            batch_size=BATCH,
            num_workers=workers,
            worker_init_fn=lambda _: self.notes.add("worker", os.getpid()),
        )

    def act(self, case: Case, step: int, ckpt: Checkpointer, digest: str) -> None:
        """What the victim does at the begin of a step."""
        if step in case.saves:
            if case.stuck and step == case.last:
                awaited(self.stuck.exists, "a worker is stuck")
            ckpt.save()
            self.notes.add("state", step, digest)
        elif step > case.last:
            time.sleep(0.01 if step < STEPS - 1 else 600)

    @property
    def workers(self) -> list[int]:
        return [int(words[1]) for words in self.notes.read() if words[0] == "worker"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What the training comes to if nobody touches it, per number of workers."""
    place = tmp_path_factory.mktemp("undisturbed")
    trainers = {workers: Trainer(place / str(workers), "only") for workers in (0, 2)}
    return {workers: finished(partial(one.train, workers), place / "result") for workers, one in trainers.items()}


def suffer(place: Path, case: Case, undisturbed: dict[int, str]) -> None:
    """One kill, one relaunch, and all that must hold of them."""
    family = Family()
    victim = Trainer(place, "victim", family)
    workers = kill(victim, case)
    staged = victim.notes.digests()
    assert staged.keys() == {0, *case.saves}
    if case.relaunch is None:
        family.await_savers_end()
        record_at(victim.store, case.last)
        check_store(victim.store)
    else:
        time.sleep(case.relaunch)
    heir = Trainer(place, "heir", family)
    result = finished(family.of(lambda: heir.train(case.workers)), place / "result")
    family.await_savers_end()
    ((_, step, digest),) = [words for words in heir.notes.read() if words[0] == "began"]
    assert (int(step), digest) == (case.last, staged[case.last])
    assert resumed(heir.store, 2) == (case.last, record_at(heir.store, case.last).id)
    assert result == undisturbed[case.workers]
    for earlier in staged:
        record_at(heir.store, earlier)
    check_store(heir.store)
    check_workers(workers, case)


def kill(victim: Trainer, case: Case) -> list[psutil.Process]:
    """Trains and kills; gives the loader workers that there were."""

    def work() -> str:
        os.setpgid(0, 0)
        return victim.train(case.workers, case)

    pid = forked(victim.family.of(work))
    try:
        awaited(lambda: case.last in victim.notes.digests(), "the last save is staged")
        workers = [psutil.Process(pid) for pid in victim.workers]
        time.sleep(case.wait)
    finally:
        (os.killpg if case.group else os.kill)(pid, signal.SIGKILL)
    assert ended(pid) == KILLED
    return workers


def check_workers(workers: list[psutil.Process], case: Case) -> None:
    """They may outlive the trainer; of the staging memory they hold nothing."""
    assert len(workers) == case.workers
    # One that was just being forked lets go of it as the first thing that it does.
    awaited(lambda: not any(staging_memory(one.pid) for one in workers if one.is_running()), "they hold none of it")
    alive = [one for one in workers if one.is_running()]
    for one in alive:
        with suppress(psutil.NoSuchProcess):  # torch ends them, too, once they look
            one.kill()
    assert alive or not case.stuck or case.group, "the one that is stuck has outlived all of it"


@pytest.mark.parametrize("kills", [8, pytest.param(160, marks=LONG)])
def test_what_was_staged_before_a_kill_is_what_the_relaunch_has(
    tmp_path: Path, undisturbed: dict[int, str], kills: int
) -> None:
    """Hazards 5 and 19: every one is durable, verified, bit-identical, and resumed from."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    for number in range(kills):
        case = case_of(rng, number)
        place = tmp_path / str(number)
        print(f"{number}: {case}")
        suffer(place, case, undisturbed)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=LONG)])
def test_a_kill_before_the_saver_has_come_up_loses_nothing_either(
    tmp_path: Path, undisturbed: dict[int, str], kills: int
) -> None:
    """The very first save, staged while the saver process is still being started; the relaunch comes at once."""
    for number in range(kills):
        place = tmp_path / str(number)
        suffer(place, Case(saves=(), wait=0, relaunch=0), undisturbed)


def test_a_relaunch_waits_for_all_that_was_staged_and_not_only_for_what_is_being_saved(
    tmp_path: Path, undisturbed: dict[int, str]
) -> None:
    """Hazard 5: nothing in the store speaks of the second save yet when the next launch comes."""
    family, gate, log = Family(), tmp_path / "gate", tmp_path / "log"
    victim, heir = Trainer(tmp_path, "victim", family), Trainer(tmp_path, "heir", family)
    case = Case(saves=(3,), wait=0, relaunch=0)  # and one before, which waits for the gate
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(starting, "prelude", gated(gate))
        kill(victim, case)
    pid = forked(family.of(heard(lambda: heir.train(0), log)), tmp_path / "result")
    try:
        awaited(lambda: "for the saver of launch 1" in log.read_text(), "the next launch waits")
    finally:
        gate.touch()
    assert ended(pid) == 0
    assert resumed(heir.store, 2) == (3, record_at(heir.store, 3).id)
    assert (tmp_path / "result").read_text() == undisturbed[0]
    family.await_savers_end()
    check_store(heir.store)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=LONG)])
def test_a_full_dev_shm_makes_no_difference(tmp_path: Path, undisturbed: dict[int, str], kills: int) -> None:
    """Hazard 17: containers give it 64 MB, and a byte too many is a SIGBUS."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    rng = random.Random(seed)

    def work() -> None:
        full_shared_memory()
        for number in range(kills):
            place = tmp_path / str(number)
            suffer(place, case_of(rng, number % 2), undisturbed)

    in_own_mounts(work)
