"""What goes wrong on one rank of several while they save: each hazard by its name, with real processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from failing_files import Faults
from ranks_kit import (
    CREATE,
    REMOVE,
    Ranks,
    Stops,
    Strike,
    launched,
    launches_of,
    parts_of,
    problems_of,
    records_of,
    resumed_from,
)
from ranks_training import SAVE_EVERY, Job, begun, digest, local, one_step
from staged_kit import awaited
from toy_training import KILLED
from worlds import KITS

import holdfast
from holdfast.catalog.parts import Part, Parts
from holdfast.ids import Order, RecordAddress, RecordId, RunNumber
from holdfast.storage.opening import open_storage
from holdfast.testing.faults import Op

TOTAL = 8
STEPS = list(range(SAVE_EVERY, TOTAL + 1, SAVE_EVERY))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """The digests of the ranks, and of the checkpoints by step, of a training that nobody touches; by its kind."""
    known = {}

    def of(how: str, size: int = 2, total: int = TOTAL) -> tuple[list[str], dict[int, str]]:
        if (how, size, total) not in known:
            place = tmp_path_factory.mktemp(f"{how}-{size}")
            job = Job(store=place / "store", notes=place / "notes", how=how, total=total)
            world = launched(place, job, size).wait().check()
            known[how, size, total] = world.digests(), {one.step: one.manifest for one in records_of(job.store)}
        return known[how, size, total]

    return of


def job_in(place: Path, how: str = "apart", **more) -> Job:
    return Job(**({"store": place / "store", "notes": place / "notes", "how": how, "total": TOTAL} | more))


def held_at(step: int, gate: Path):
    """For ``then``: every rank waits in the body of a step until a file is there."""

    def then(rank, at, ckpt, model):
        if at == step:
            awaited(gate.exists, f"rank {rank} may go on")

    return then


def check(job: Job, wanted: tuple[list[str], dict[int, str]], world: Ranks, missing: tuple[int, ...] = ()) -> None:
    """The end is as it should be, and so is every checkpoint; only those ``missing`` were not made."""
    world.family.await_savers_end()
    digests, manifests = wanted
    assert world.digests() == digests, world.text
    records = records_of(job.store)
    assert [one.step for one in records] == [step for step in STEPS if step not in missing], world.text
    assert {one.step: one.manifest for one in records} == {k: v for k, v in manifests.items() if k not in missing}
    assert problems_of(job.store) == []


# Hazard 1: what is left of another attempt


def part_of(rank: int, **more) -> Part:
    empty = {"tensors": b"", "values": b"", "counts": b"", "boxes": b"", "digests": b"", "inline": b"", "own": b"{}"}
    return Part(rank=rank, world=2, **(empty | more))


def test_parts_of_other_launches_timelines_steps_and_attempts_are_not_met(tmp_path: Path) -> None:
    """Hazard 1."""
    storage = open_storage(tmp_path, create=True)

    def parts(launch: int, timeline: int, step: int, attempt: str) -> Parts:
        order = Order(launch, timeline, step)
        return Parts(storage, RecordAddress(RunNumber(1), order, RecordId.derive("s", RunNumber(1), order)), attempt)

    parts(1, 0, 4, "a").put(part_of(1), [b"text"])
    parts(1, 0, 4, "a").give_up(0, "no")
    assert parts(1, 0, 4, "a").names().keys() == {1}
    for other in (parts(2, 0, 4, "a"), parts(1, 1, 4, "a"), parts(1, 0, 40, "a"), parts(1, 0, 4, "b")):
        assert (other.names(), other.failures()) == ({}, {})


def rolled_back(job: Job) -> str:
    """Poisoned after step 2; the save of step 4 fails on rank 0 only; then back to 2, and on without poison."""
    model, optimizer, loader, ckpt = begun(job)
    rank, faults = torch.distributed.get_rank(), Faults(job.notes / "faults")
    with ckpt:
        for number in (0, 1):
            for step, (batch,) in ckpt.batches(loader, total_steps=job.total):
                if number == 0 and step == 2:
                    awaited(lambda: records_of(job.store), "step 2 is saved")
                    if rank == 0:
                        faults.tell(Op.RESERVE, "EIO")
                    with torch.no_grad():
                        for parameter in model.parameters():
                            parameter *= 3
                if number == 0 and step == 4:
                    awaited(lambda: given_up(job.store, 4), "rank 0 gives up")
                    break
                one_step(job.how, model, optimizer, step, batch)
            if number == 0:
                assert any("000001-" in name for name in parts_of(job.store))
                faults.clear()
                if rank == 1:
                    (job.notes / "faults-1" / "link").write_text("sleep 0.2")  # its part of the next try comes late
                ckpt.restore("run-001@2")
    return digest(model, optimizer, local)


def test_parts_of_a_timeline_that_was_left_are_not_taken_for_those_of_the_next_one(tmp_path: Path, undisturbed) -> None:
    """Hazard 1: step 4 fails with the part of one rank there, rolled back, and step 4 again."""
    job = job_in(tmp_path, "fsdp", options={"on_save_error": "warn"})
    job.notes.mkdir()
    # Rank 0 must not give up before rank 1 has handed in its part: its pauses are the longest that can be drawn.
    longest = "import random", "random.SystemRandom.uniform = lambda self, low, high: high"
    preludes = {0: Faults(job.notes / "faults").prelude(*longest), 1: Faults(job.notes / "faults-1").prelude()}
    world = launched(tmp_path / "one", job, preludes=preludes, work=rolled_back).wait().check()
    digests, manifests = undisturbed("fsdp")
    assert world.digests() == digests
    records = records_of(job.store)
    assert [(one.timeline, one.step) for one in records] == [(0, 2), (1, 4), (1, 6), (1, 8)], world.text
    assert {one.step: one.manifest for one in records} == manifests
    assert problems_of(job.store) == []


@pytest.mark.soak
def test_parts_of_a_launch_that_is_over_that_come_back_by_hand_do_no_harm(tmp_path: Path, undisturbed) -> None:
    """Hazard 1: an older launch's, and some that look as if they were of this one."""
    old, planted = job_in(tmp_path, "fsdp", patience=5.0), tmp_path / "planted"
    once = tmp_path / "once"
    strike = Strike(once=once, number=2, part="/records/", whom="node")  # with the part of rank 1 there
    world = launched(tmp_path / "one", replace(old, then=poisoned), preludes={0: strike.prelude()}).wait()
    assert strike.struck, world.text
    folder = old.store / "catalog" / "runs" / "001" / "parts"
    world.family.await_savers_end()
    assert any("-" in name and "000001-" in name for name in parts_of(old.store)), parts_of(old.store)
    shutil.copytree(folder, planted)
    assert [one.step for one in records_of(old.store)] == [2]

    def plant(rank, step, ckpt, model):
        if step == 3 and rank == 0:
            for one in planted.iterdir():
                for name in (one.name, one.name.replace("000001.000", "000002.000"), f"{ckpt_name(ckpt)}-{16 * '0'}"):
                    shutil.copytree(one, folder / name, dirs_exist_ok=True)

    def ckpt_name(ckpt):
        order = Order(2, 0, 4)
        return f"{order}-{RecordId.derive(holdfast.open(old.store).info.id, RunNumber(1), order)}"

    job = replace(old, then=plant)
    world = launched(tmp_path / "two", job).wait().check()
    assert resumed_from(job.store, 2) == 2
    check(job, undisturbed("fsdp"), world)
    left = parts_of(job.store)
    assert left, "what was planted under names of no save of this launch stays until the next one"
    launched(tmp_path / "three", replace(job, then=lambda *_: None)).wait().check()
    assert parts_of(job.store) == []


def poisoned(rank, step, ckpt, model) -> None:
    if step == 2:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 3


# A rank that stands still


def test_a_rank_that_is_stopped_is_named_and_harms_nothing_when_it_wakes_up(tmp_path: Path, undisturbed) -> None:
    """Hazards 1 and 22: stopped right before it hands in its part of step 4, it wakes up after a relaunch is done."""
    job, relaunch = job_in(tmp_path, patience=4.0), tmp_path / "two"
    stop = Strike(once=tmp_path / "once", number=2, part=".part", whom="node", signal=signal.SIGSTOP)
    world = launched(tmp_path / "one", job, preludes={1: stop.prelude()})
    world.until(lambda: stop.struck, "rank 1 stops")
    sleeping = world.saver(1)
    try:
        world.until(lambda: 0 not in world.alive(), "rank 0 ends by itself")
        assert world.codes[0] == 70
        said = world.log(0)
        # Whichever comes first: the boundary that rank 1 does not come to, or the saves that it takes no part in.
        assert "nothing is heard of rank 1" in said or "saves in a row have failed" in said
        assert "rank 1 of 2 did not hand in what they have of step 4" in said
        heir = launched(relaunch, replace(job, notes=tmp_path / "notes-2", patience=20.0)).wait().check()
        assert resumed_from(job.store, 2) == 2
    finally:
        sleeping.send_signal(signal.SIGCONT)
        os.kill(world.pids[1], signal.SIGCONT)
    world.wait()
    world.family.await_savers_end()
    assert world.codes[1] == 70, world.text
    check(job, undisturbed("apart"), heir)
    assert [one.address.order.launch for one in records_of(job.store)] == [1, 2, 2, 2]


def test_what_the_first_rank_has_given_up_its_next_saver_does_not_publish(tmp_path: Path) -> None:
    """The others have heard of it, and remove what they have written; one of them is slow, right there."""
    gate, stops = tmp_path / "gate", Stops(tmp_path / "stopped", [(CREATE, ".part"), (REMOVE, "/data/runs/")])
    job = job_in(tmp_path, patience=8.0, total=4, then=held_at(3, gate), options={"on_save_error": "warn"})
    dies = Strike(once=tmp_path / "once", number=1, part="000000.failed", after=True)
    world = launched(tmp_path / "one", job, preludes={0: dies.prelude(), 1: stops.prelude()})
    world.until(lambda: stops.count == 1, "the part of rank 1 is about to come")
    late = world.saver(1)
    try:
        world.until(lambda: dies.struck, "rank 0 gives up")
        late.send_signal(signal.SIGCONT)
        world.until(lambda: stops.count == 2, "rank 1 hears of it, and is about to remove its packs")
        gate.touch()
        world.await_step(4)
        world.until(lambda: "another saver" in world.log(0), "rank 0 has another saver")
        time.sleep(2)  # it tries
    finally:
        late.send_signal(signal.SIGCONT)
    world.wait()
    world.family.await_savers_end()
    assert problems_of(job.store) == [], world.text


# Savers that are killed


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_next_saver_of_the_first_rank_finishes_a_save_whose_parts_are_there(
    tmp_path: Path, undisturbed, after: bool
) -> None:
    """Killed right before the record of step 4, and right after."""
    job = job_in(tmp_path, "fsdp")
    strike = Strike(once=tmp_path / "once", number=2, part="/records/", after=after)
    world = launched(tmp_path / "one", job, preludes={0: strike.prelude()}).wait().check()
    assert "/records/" in strike.struck
    assert "another saver" in world.log(0)
    check(job, undisturbed("fsdp"), world)


@pytest.mark.parametrize("wait", [pytest.param(0, marks=pytest.mark.soak), 0.5])
def test_a_job_that_is_killed_once_all_ranks_have_staged_goes_on_from_there(
    tmp_path: Path, undisturbed, wait: float
) -> None:
    """Hazard 5: the savers are slow, and the relaunch comes within half a second."""
    job = job_in(tmp_path, "fsdp")
    slow = Faults(tmp_path / "faults")
    slow.tell(Op.LINK, "sleep 0.1")
    slow.tell(Op.RENAME_NEW, "sleep 0.1")
    killed = replace(job, then=held_at(4, tmp_path / "never"))
    world = launched(tmp_path / "one", killed, preludes=dict.fromkeys((0, 1), slow.prelude()))
    world.await_step(4)
    assert [one.step for one in records_of(job.store) if one.step == 4] == []
    for rank in (0, 1):
        world.kill(rank)
    assert world.wait().codes == {0: KILLED, 1: KILLED}
    time.sleep(random.uniform(0, wait))
    heir = launched(tmp_path / "two", job, family=world.family).wait().check()
    assert resumed_from(job.store, 2) == 4
    check(job, undisturbed("fsdp"), heir)


# A disk that is full on one rank


@pytest.mark.parametrize(
    ("rank", "op"), [pytest.param(0, Op.RESERVE, marks=pytest.mark.soak), (1, Op.RESERVE), (1, Op.WRITE)]
)
def test_a_full_disk_on_one_rank_fails_the_save_on_all_and_the_next_one_is_good(
    tmp_path: Path, undisturbed, rank: int, op: Op
) -> None:
    """Writes that fail take away even the means to say so: then the others wait until their time is over."""
    gate, faults = tmp_path / "gate", Faults(tmp_path / "faults")
    waits = held_at(5, gate)

    def then(here, step, ckpt, model):
        if here == rank and step == 3:
            awaited(lambda: 2 in {one.step for one in records_of(job.store)}, "step 2 is saved")
            faults.tell(op, "ENOSPC")
        waits(here, step, ckpt, model)

    job = job_in(tmp_path, patience=5.0, then=then)
    world = launched(tmp_path / "one", job, preludes={rank: faults.prelude()})
    world.await_step(5)
    time.sleep(5.5 if op is Op.WRITE else 0)
    world.until(lambda: given_up(job.store, 4), "the save of step 4 is given up")
    faults.clear()
    gate.touch()
    world.wait().check()
    for one in (0, 1):
        assert "the save of run-001@4" in world.log(one), world.text
        assert "has failed" in world.log(one)
    assert f"rank {rank}" in world.log(1 - rank)
    check(job, undisturbed("apart"), world, missing=(4,))


def given_up(store: Path, step: int) -> bool:
    """Whether rank 0 has said that it does not commit a step."""
    return any(f".{step:012d}-" in name and name.endswith("000000.failed") for name in parts_of(store))


# Starting again


def test_torchrun_starts_the_group_again_and_it_ends_as_if_nothing_had_happened(tmp_path: Path, undisturbed) -> None:
    """Elastic restarts: a rank kills itself once."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=3", "--nproc-per-node=2"]
    path = os.pathsep.join([str(KITS), str(Path(holdfast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [*launcher, str(KITS / "elastic_worker.py"), str(tmp_path), str(TOTAL)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            command,
            env=environ,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    text = (tmp_path / "log").read_text()
    assert done.returncode == 0, text
    digests, manifests = undisturbed("fsdp")
    assert [(tmp_path / f"rank-{rank}.result").read_text() for rank in (0, 1)] == digests
    assert launches_of(tmp_path / "store") == [1, 2]
    assert resumed_from(tmp_path / "store", 2) in (4, 6)
    assert {one.step: one.manifest for one in records_of(tmp_path / "store")} == manifests
    assert problems_of(tmp_path / "store") == []


def test_four_ranks_that_are_killed_go_on_as_two(tmp_path: Path, undisturbed) -> None:
    """With the optimizer's state, bit for bit; the relaunch comes at once."""
    job = job_in(tmp_path)
    killed = replace(job, then=held_at(4, tmp_path / "never"))
    world = launched(tmp_path / "four", killed, size=4)
    world.await_step(4)
    for rank in range(4):
        world.kill(rank)
    world.wait()
    heir = launched(tmp_path / "two", job, family=world.family).wait().check()
    assert resumed_from(job.store, 2) == 4
    assert [one.world for one in records_of(job.store)] == [4, 4, 2, 2]
    assert heir.digests() == undisturbed("apart")[0]
    heir.family.await_savers_end()
    assert problems_of(job.store) == []
