"""Several ranks that look after themselves: what one of them finds, all of them treat, at the same step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from failing_files import Faults
from ranks_kit import Ranks, launched, problems_of, records_of
from ranks_training import BATCH, Job, begun, digest, local, whole
from staged_kit import awaited

import holdfast
from holdfast import every
from holdfast.catalog.journal.journal import read_journal
from holdfast.health import free_space, nonfinite, notify, own, rollback, save_now, stop, when
from holdfast.testing.faults import Op

TOTAL = 12
NAN = float("nan")
ROLLBACK = [when(nonfinite("loss"), rollback())]


def job_in(place: Path, *, how: str = "ddp", health=(), total: int = TOTAL, good_after: int = 2, **more) -> Job:
    options = {"health": list(health), "good_after": good_after} | more.pop("options", {})
    return Job(store=place / "store", notes=place / "notes", how=how, total=total, options=options, **more)


def cared_for(ill: Callable[[int, int], bool]) -> Callable[[Job], str]:
    """A training in which the batches for which ``ill`` says so, by rank and number of the batch, are no numbers."""

    def work(job: Job) -> str:
        model, optimizer, loader, ckpt = begun(job)
        rank, notes = dist.get_rank(), job.notes_of(dist.get_rank())
        numbers = _numbers(loader)
        with ckpt:
            for step, (batch,) in ckpt.batches(loader, total_steps=job.total):
                number = numbers[float(batch[0, 0])]
                notes.add("at", step, number)
                job.then(rank, step, ckpt, model)
                loss = model(batch * NAN if ill(rank, number) else batch).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                ckpt.log(loss=loss.detach())
            notes.add("left", ckpt.step)
        assert all(bool(one.isfinite().all()) for one in map(local, model.parameters()))
        return json.dumps([digest(model, optimizer, local), digest(model, optimizer, whole)])

    return work


def _numbers(loader) -> dict[float, int]:
    """By the first number of a batch, how many are before it, over two epochs."""
    sampler, samples = loader.sampler, loader.dataset.tensors[0]
    found = {}
    for epoch in (1, 0):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        firsts = indices[::BATCH]
        found |= {float(samples[index, 0]): epoch * len(firsts) + n for n, index in enumerate(firsts)}
    return found


def steps_of(world: Ranks, rank: int) -> list[tuple[int, int]]:
    """Steps and the batches that they were made with."""
    return [(int(words[1]), int(words[2])) for words in world.job.notes_of(rank).read() if words[0] == "at"]


def events(job: Job, *kinds: str) -> list:
    store = holdfast.open(job.store)
    found = [entry.event for entry in read_journal(store, store.run(1).number).by_time()]
    return [event for event in found if event.kind in kinds]


def ran(place: Path, job: Job, ill=lambda rank, number: False, **more) -> Ranks:
    world = launched(place, job, work=cared_for(ill), **more).wait()
    world.family.await_savers_end()
    return world


def digests(world: Ranks, view: int) -> list[str]:
    return [json.loads(text)[view] for text in world.digests()]


def poisoned(number: int) -> Callable[[int, int], bool]:
    return lambda rank, at: rank == 1 and at == number


def check(world: Ranks, number: int) -> None:
    """Both ranks have made the same way, and never met that batch again."""
    first, second = steps_of(world, 0), steps_of(world, 1)
    assert first == second, world.text
    turn = next(at for at, (one, two) in enumerate(itertools.pairwise(first), 1) if two[0] <= one[0])
    assert number in [batch for _, batch in first[:turn]]
    assert number not in [batch for _, batch in first[turn:]]
    assert first[-1][0] == world.job.total - 1
    assert problems_of(world.job.store) == []


@pytest.mark.parametrize("how", ["ddp", pytest.param("fsdp", marks=pytest.mark.soak)])
def test_what_one_rank_finds_takes_all_back_together_and_twice_to_the_same_bits(tmp_path: Path, how: str) -> None:
    """Which checkpoint is good by then depends on how fast the disk is, and makes no difference."""
    found = []
    for name in ("one", "two"):
        job = job_in(tmp_path / name, how=how, health=ROLLBACK)
        world = ran(tmp_path / name, job, poisoned(8)).check()
        check(world, 8)
        (verdict,) = events(job, "verdict")
        assert verdict.data["ranks"] == [1]
        (event,) = events(job, "rollback")
        found.append((digests(world, 0), event.data["left_out"]))
    assert found[0] == found[1]
    if how == "ddp":
        assert found[0][0][0] == found[0][0][1]


def test_a_rollback_with_a_save_in_flight_waits_for_it_and_goes_on(tmp_path: Path) -> None:
    slow = Faults(tmp_path / "faults")

    def then(rank, step, ckpt, model):
        if step == 8:
            awaited(lambda: [one for one in records_of(job.store) if one.step == 8], "all that came before is saved")
        if step == 8 and rank == 0 and ckpt._training._session.timeline == 0:
            slow.tell(Op.LINK, "sleep 0.15")
            slow.tell(Op.RENAME_NEW, "sleep 0.15")
        if step == 9 and ckpt._training._session.timeline == 0:
            assert 9 not in [one.step for one in records_of(job.store)], "it is in flight"
        if step == 8 and ckpt._training._session.timeline == 1:
            slow.clear()

    job = job_in(tmp_path, health=ROLLBACK, options={"save": every(steps=1)}, then=then)
    world = ran(tmp_path, job, poisoned(8), preludes={0: slow.prelude()}).check()
    check(world, 8)
    told = [event for event in events(job, "saved", "rollback") if event.kind == "rollback" or "@9 " in event.message]
    assert [event.kind for event in told[:2]] == ["saved", "saved"], "on both ranks, before anything is changed"
    assert [event.kind for event in told].count("rollback") == 1


@pytest.mark.parametrize("number", [TOTAL - 2, TOTAL - 1])
def test_what_is_found_at_the_end_of_the_loop_is_treated_as_well(tmp_path: Path, number: int) -> None:
    job = job_in(tmp_path, health=ROLLBACK)
    check(ran(tmp_path, job, poisoned(number)).check(), number)


def test_a_rollback_does_not_land_on_what_was_saved_with_the_doubt(tmp_path: Path) -> None:
    """All ranks hear of it one boundary after the save that was due with it."""
    told = []

    def odd(observation):
        if observation.rank == 1 and observation.step == 8 and not told:
            told.append(observation.step)
            return "odd"
        return None

    job = job_in(tmp_path, health=[when(own(odd), rollback(to="last"))], options={"save": every(steps=4)})
    ran(tmp_path, job).check()
    (event,) = events(job, "rollback")
    assert (event.data["to_step"], event.data["step"]) == (4, 9)
    assert event.data["left_out"]


def test_a_stop_that_one_rank_asks_for_ends_all_at_the_same_step(tmp_path: Path) -> None:
    def tired(observation):
        return "enough" if observation.rank == 1 and observation.step >= 5 else None

    job = job_in(tmp_path, health=[when(own(tired), stop())])
    world = ran(tmp_path, job)
    assert list(world.codes.values()) == [70, 70], world.text
    assert steps_of(world, 0) == steps_of(world, 1)
    for rank in (0, 1):
        assert "Unhealthy" in world.log(rank)
        assert "was stopped at step 6" in world.log(rank)
    assert records_of(job.store)[-1].step == 6


def test_a_stop_at_the_first_boundary_or_the_last_one_divides_nobody(tmp_path: Path) -> None:
    for at in (1, TOTAL):

        def tired(observation, at=at):
            return "enough" if observation.rank == 1 and observation.step == at else None

        job = job_in(tmp_path / str(at), health=[when(own(tired), stop())])
        world = ran(tmp_path / str(at), job)
        assert list(world.codes.values()) == [70, 70], world.text
        assert steps_of(world, 0) == steps_of(world, 1)
        assert all("Unhealthy" in world.log(rank) for rank in (0, 1)), world.text


def scaled(job: Job) -> str:
    """A training with a loss scaler; on the first timeline rank 1 meets nothing but NaN at step 7, which all skip."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    model, optimizer, loader, ckpt = begun(job, scaler=scaler)
    rank, notes = dist.get_rank(), job.notes_of(dist.get_rank())
    with ckpt:
        for step, (batch,) in ckpt.batches(loader, total_steps=job.total):
            timeline = ckpt._training._session.timeline
            notes.add("at", step, timeline)
            loss = model(batch * NAN if (rank, step, timeline) == (1, 7, 0) else batch).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            ckpt.log(loss=loss.detach())
    return digest(model, optimizer, local)


@pytest.mark.parametrize("action", [rollback(), stop()], ids=["rollback", "stop"])
def test_a_scaler_that_skips_every_step_does_not_hide_a_nan_from_several_ranks(tmp_path: Path, action) -> None:
    """There is no boundary at which one could hear of the other: they ask after a hundred batches."""
    job = job_in(tmp_path, health=[when(nonfinite("loss"), action)])
    world = launched(tmp_path, job, work=scaled).wait()
    world.family.await_savers_end()
    stops = action.verb == "stop"
    assert list(world.codes.values()) == ([70, 70] if stops else [0, 0]), world.text
    assert steps_of(world, 0) == steps_of(world, 1)
    assert steps_of(world, 0).count((7, 0)) == 100
    assert [event.data["to_step"] < 7 for event in events(job, "rollback")] == ([] if stops else [True])
    assert max(one.step for one in records_of(job.store)) == (6 if stops else TOTAL)
    assert problems_of(job.store) == []


def test_budgets_are_those_of_the_whole_job(tmp_path: Path) -> None:
    """Every batch from the eighth on is ill on one rank: so often, and not twice so often, the training goes back."""
    job = job_in(tmp_path, health=[when(nonfinite("loss"), rollback(times=2))])
    world = ran(tmp_path, job, lambda rank, number: rank == 1 and number >= 8)
    assert list(world.codes.values()) == [70, 70], world.text
    assert len(events(job, "rollback")) == 2
    assert steps_of(world, 0) == steps_of(world, 1)


def test_saves_and_messages_are_made_once_and_at_the_same_step(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def tell(verdict):
        with told.open("a") as file:
            file.write(f"{verdict.step} {verdict.rank}\n")

    def look(observation):
        return "look" if observation.rank == 1 and observation.step == 5 else None

    job = job_in(tmp_path, health=[when(own(look), save_now(), notify(tell), free_space())])
    ran(tmp_path, job).check()
    assert told.read_text() == "5 1\n"
    assert [one.step for one in records_of(job.store)] == [2, 4, 6, 8, 10, 12]
