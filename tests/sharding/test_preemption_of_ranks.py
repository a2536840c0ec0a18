"""Several ranks with a reserve that are asked to stop: what a signal has one of them rescue costs nobody the time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks_kit import Ranks, launched, problems_of, records_of
from ranks_training import Job, begun, digest, local, one_step
from staged_kit import awaited

from holdfast import every
from holdfast.records import Kind

NEVER = every(steps=10**6)


def job_in(place: Path, then, **options) -> Job:
    settings = {"save": NEVER, "stage": every(steps=2), "grace": 30.0, "peer_timeout": 600.0} | options
    return Job(store=place / "store", notes=place / "notes", how="apart", total=99, then=then, options=settings)


def stopped(job: Job) -> str:
    """A rank that ends because it is asked to, and tells how."""
    model, optimizer, loader, ckpt = begun(job)
    rank = dist.get_rank()
    with ckpt:
        for step, (batch,) in ckpt.batches(loader, total_steps=job.total):
            job.then(rank, step, ckpt, model)
            one_step(job.how, model, optimizer, step, batch)
    facts = ckpt.preempted
    assert facts is not None
    job.notes_of(rank).add("preempted", facts.step, facts.record.step if facts.record else None, facts.durable)
    return digest(model, optimizer, local)


def is_saved_by(count: int, store: Path, step: int) -> bool:
    """Whether so many savers have announced that they save this step, or it is saved already."""
    run = store / "catalog" / "runs" / "001"
    holds = list((run / "holds").glob(f"*.{step:012d}-*"))
    return len(holds) >= count or any(run.glob(f"records/*.{step:012d}-*"))


def signalled(store: Path, steps: dict[int, int], *, reserves: dict[int, int], savers: int):
    """For ``then``: these ranks get a signal in these steps, and go on once so many savers are at their reserves."""

    def then(rank, step, ckpt, model):
        if steps.get(rank) == step:
            os.kill(os.getpid(), signal.SIGTERM)
            awaited(lambda: is_saved_by(savers, store, reserves[rank]), f"the reserve of rank {rank} is being saved")

    return then


def ends_of(world: Ranks) -> list[list[str]]:
    """What each rank has said of its end."""
    said = [world.job.notes_of(rank).read() for rank in range(world.size)]
    return [words[1:] for lines in said for words in lines if words[0] == "preempted"]


def ran(place: Path, steps: dict[int, int], *, reserves: dict[int, int], savers: int = 1, **options) -> Ranks:
    """Two ranks, of which some are signalled."""
    then = signalled(place / "store", steps, reserves=reserves, savers=savers)
    world = launched(place, job_in(place, then, **options), work=stopped).wait().check()
    world.family.await_savers_end()
    assert problems_of(world.job.store) == []
    return world


def is_durable(world: Ranks) -> bool:
    """Whether the state at the end is a checkpoint, to the knowledge of all ranks."""
    last = records_of(world.job.store)[-1]
    assert last.kind is Kind.PREEMPTED
    return ends_of(world) == [[str(last.step), str(last.step), "True"]] * world.size


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_does_not_take_the_time_of_the_checkpoint_of_all(tmp_path: Path, rank: int) -> None:
    """Its saver would wait for the reserve of the other one, which has heard of no signal, until the time is over."""
    world = ran(tmp_path, {rank: 5}, reserves={rank: 4})
    assert is_durable(world), world.text
    assert len(records_of(world.job.store)) == 1, "of the reserve nothing is left"
    assert "has failed" not in world.text, "the training goes on to its own checkpoint"


def test_where_memory_is_for_one_state_only_the_reserve_makes_place(tmp_path: Path) -> None:
    """The trainer waits for the memory that its saver would keep until it hears of something newer."""
    world = ran(tmp_path, {0: 5}, reserves={0: 4}, ram_budget="7MiB")
    assert "(1 x" in world.log(0)
    assert is_durable(world), world.text


def test_signals_to_all_while_their_reserves_are_one_apart_do_not_take_it_either(tmp_path: Path) -> None:
    world = ran(tmp_path, {0: 4, 1: 5}, reserves={0: 4, 1: 5}, stage=every(steps=1))
    assert is_durable(world), world.text


def test_signals_to_all_save_the_reserve_and_then_the_state_at_the_end(tmp_path: Path) -> None:
    world = ran(tmp_path, {0: 5, 1: 5}, reserves={0: 4, 1: 4}, savers=2)
    assert is_durable(world), world.text
    assert [one.step for one in records_of(world.job.store)][:-1] == [4]


class Dying:
    """A loader whose workers are ended by a signal to the whole job, and which then is as good as new."""

    def __init__(self, loader, at: int) -> None:
        self.loader, self.at = loader, at

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for count, batch in enumerate(self.loader):
            if count == self.at:
                self.at = -1
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly")
            yield batch


def over_epochs(job: Job) -> str:
    """A script with a loop of its own around that of a library."""
    model, optimizer, loader, ckpt = begun(job)
    rank, dying = dist.get_rank(), Dying(loader, 5)
    with ckpt:
        for epoch in range(3):
            for step, (batch,) in ckpt.batches(dying, epochs=epoch + 1):
                job.notes_of(rank).add("at", step)
                one_step(job.how, model, optimizer, step, batch)
    assert ckpt.preempted is not None
    job.notes_of(rank).add("preempted", ckpt.preempted.step, ckpt.preempted.record.step, ckpt.preempted.durable)
    return digest(model, optimizer, local)


def test_ranks_whose_workers_have_ended_begin_no_other_loop(tmp_path: Path) -> None:
    """Only this rank's signal was noted, and not that all of them stop."""
    job = job_in(tmp_path, lambda *_: None, stage=None)
    world = launched(tmp_path, job, work=over_epochs).wait().check()
    world.family.await_savers_end()
    assert [world.steps(rank) for rank in (0, 1)] == [[0, 1, 2, 3, 4]] * 2
    assert ends_of(world) == [["5", "5", "True"]] * 2
    assert is_durable(world), world.text


def test_ranks_that_get_no_further_after_a_signal_have_their_reserve_saved(tmp_path: Path) -> None:
    """What a reserve is for: a collective that never ends, or a step that takes longer than the time that is left."""

    def then(rank, step, ckpt, model):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            awaited(lambda: False, "the end")

    world = launched(tmp_path, job_in(tmp_path, then), work=stopped)
    world.until(lambda: records_of(world.job.store), "the reserve is saved")
    world.stop()
    (record,) = records_of(world.job.store)
    assert (record.step, record.kind, record.world) == (4, Kind.PREEMPTED, 2)
    assert "SIGTERM; staged at step 4" in record.reason
