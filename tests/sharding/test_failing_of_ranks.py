"""A training of several ranks that fails: a checkpoint if all have failed at the same boundary, else why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from ranks_kit import Ranks, launched, problems_of, records_of, resumed_from
from ranks_training import SAVE_EVERY, Job, begun, digest, local, one_step, train

from holdfast.records import Kind
from holdfast.recovery.stopping import failing

TOTAL = 8
FAILS_AT = 5
assert FAILS_AT % SAVE_EVERY, "no checkpoint is due there"


def job_in(place: Path, how: str, **more) -> Job:
    return Job(store=place / "store", notes=place / "notes", how=how, total=TOTAL, patience=6.0, **more)


def fails(*ranks: int):
    """For ``then``: these ranks fail at one step, as a script does that meets the same bad line everywhere."""

    def then(rank, step, ckpt, model):
        if step == FAILS_AT and rank in ranks:
            raise ValueError("a script's")

    return then


def ran(place: Path, job: Job, work=train) -> Ranks:
    world = launched(place, job, work=work).wait()
    world.family.await_savers_end()
    return world


def failed_records(job: Job) -> list[tuple[int, int]]:
    return [(one.step, one.world) for one in records_of(job.store) if one.kind is Kind.FAILED]


@pytest.mark.parametrize("how", ["fsdp", pytest.param("ddp", marks=pytest.mark.soak)])
def test_ranks_that_fail_together_leave_a_checkpoint_of_the_boundary(tmp_path: Path, how: str) -> None:
    wanted = ran(tmp_path / "whole", job_in(tmp_path / "whole", how)).check().digests()
    job = job_in(tmp_path, how, then=fails(0, 1))
    world = ran(tmp_path / "first", job)
    assert all(world.codes.values()), "a failure stays one"
    assert failed_records(job) == [(FAILS_AT, 2)], world.text
    again = ran(tmp_path / "again", job_in(tmp_path, how)).check()
    assert resumed_from(job.store, 2) == FAILS_AT
    assert again.digests() == wanted
    assert problems_of(job.store) == []


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.soak)])
def test_a_rank_that_fails_alone_leaves_none_and_says_why(
    tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard 10: the other one has made its step, or waits in a collective in the middle of it."""
    monkeypatch.setattr(failing, "TOGETHER_SECONDS", 2.0)  # in the ranks, which are forked
    world = ran(tmp_path, job_in(tmp_path, "fsdp", then=fails(rank)))
    assert all(world.codes.values())
    assert failed_records(world.job) == []
    assert "was not saved: not all of the 2 ranks have failed with it" in world.log(rank)
    assert "ValueError: a script's" in world.log(rank)
    assert ran(tmp_path / "again", job_in(tmp_path, "fsdp")).check().at(0) == TOTAL
    assert resumed_from(world.job.store, 2) == FAILS_AT - 1


def test_ranks_that_fail_at_different_lines_leave_none(tmp_path: Path) -> None:
    """One of them has changed its part of the state already."""

    def work(job: Job) -> str:
        model, optimizer, loader, ckpt = begun(job)
        with ckpt:
            for step, (batch,) in ckpt.batches(loader, total_steps=job.total):
                if step == FAILS_AT and dist.get_rank() == 0:
                    raise ValueError("before")
                one_step(job.how, model, optimizer, step, batch)
                if step == FAILS_AT:
                    raise ValueError("after")
        return digest(model, optimizer, local)

    world = ran(tmp_path, job_in(tmp_path, "apart"), work)
    assert all(world.codes.values())
    assert failed_records(world.job) == []
    assert "step 5 was not saved: rank 1 is at step 5: an optimizer had made its step" in world.log(0)
    assert "step 5 was not saved: an optimizer had made its step" in world.log(1)
    assert problems_of(world.job.store) == []
