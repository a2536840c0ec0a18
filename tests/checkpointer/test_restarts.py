"""What a restart of a job means: where it goes on, and what is none although the launcher's words are the same."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_training import Stop, launched, one_step, tiny
from toy_training import ended, forked

import holdfast
from holdfast import Checkpointer, every
from holdfast.catalog import saves
from holdfast.catalog.marks import add_mark
from holdfast.errors import Corrupt
from holdfast.health import nonfinite, rollback, when
from holdfast.records import MarkKind, Record
from holdfast.recovery.training import restoring
from holdfast.testing.faults import flip_bit

ALL = every(steps=1)


def killed(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path):
    """Starts a launch as some launcher does, in a process of its own; gives its exit status."""

    def started(told: dict[str, str], total: int, prepare: Callable[[], object] = lambda: None, **options) -> int:
        def body() -> None:
            os.environ |= told
            sys.argv = ["train.py", *told.get("ARGUMENTS", "").split()]
            prepare()
            try:
                launched(tmp_path / "s", total, **{"keep": ALL} | options)
            except Stop:
                os._exit(1)

        return ended(forked(body))

    return started


def begun(store: Path, run: int = 1) -> list[int | None]:
    """The steps that the launches of a run began with."""
    starts = holdfast.open(store).run(run).starts()
    return [start.resumed_from.step if start.resumed_from else None for start in starts if start.timeline == 0]


def runs_of(store: Path) -> list[tuple[int, int | None]]:
    """The runs, and where each was forked."""
    found = holdfast.open(store).runs()
    return [(info.number, info.forked_from.step if info.forked_from else None) for info in found]


# What is a restart, and what is none


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none", "AGENT": "another"}),
        ({"SLURM_JOB_ID": "77", "ARGUMENTS": "--phase 1"}, {"SLURM_JOB_ID": "77", "ARGUMENTS": "--phase 2"}),
    ],
    ids=["torchrun without an id", "two commands of a job"],
)
def test_who_asks_for_another_beginning_gets_it_from_a_launcher_that_says_nothing_new(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, str], second: dict[str, str]
) -> None:
    def agent() -> str:
        return os.environ.get("AGENT", "first")

    monkeypatch.setattr("holdfast.recovery.environment.launcher._agent", agent)
    assert start(first, 8) == 0
    assert start(second, 9, resume="run-001@4") == 0
    assert begun(tmp_path / "s") == [None, 4]
    assert start({**second, "ARGUMENTS": "--phase 3", "AGENT": "third"}, 9, resume="never") == 0
    assert runs_of(tmp_path / "s") == [(1, None), (2, None)]


def test_a_restart_that_has_gone_back_does_not_go_back_again(start, tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "1"}
    assert start({"SLURM_JOB_ID": "0"}, 10) == 0
    assert start(job, 12, resume="run-001@4", then=lambda step, ckpt: killed() if step == 7 else None) != 0
    assert start({**job, "SLURM_RESTART_COUNT": "1"}, 12, resume="run-001@4") == 0
    assert begun(tmp_path / "s") == [None, 4, 6]


def test_a_job_that_was_killed_before_it_went_back_goes_back_when_it_is_restarted(start, tmp_path: Path) -> None:
    """Its restart went on from the head, the state that its user wanted to leave, and said nothing."""
    job = {"SLURM_JOB_ID": "1"}
    assert start({"SLURM_JOB_ID": "0"}, 10) == 0

    def fatal() -> None:
        restoring.load = killed

    assert start(job, 12, fatal, resume="run-001@4") == -signal.SIGKILL
    assert start({**job, "SLURM_RESTART_COUNT": "1"}, 12, resume="run-001@4") == 0
    assert begun(tmp_path / "s") == [None, 4]


def test_a_fork_of_a_run_that_goes_on_is_made_once(start, tmp_path: Path) -> None:
    """``resume_from_run: 1`` in a configuration: the n-th launch goes on with the fork of the first."""
    assert start({}, 4) == 0
    fork = {"run": "branch", "resume": "run-001"}
    assert start({}, 20, then=lambda step, ckpt: killed() if step == 9 else None, **fork) != 0
    assert start({}, 8) == 0
    assert start({}, 20, **fork) == 0
    assert runs_of(tmp_path / "s") == [(1, None), (2, 4)]
    assert begun(tmp_path / "s", 2) == [4, 8]


# What was passed over, and by whom


def misread(step: int) -> Callable[[], None]:
    """On this machine what is read of one checkpoint is wrong."""

    def prepare() -> None:
        load = restoring.load

        def misreading(store, record: Record, *more, **options):
            if record.step == step:
                raise Corrupt("flipped", pack=record.packs[-1], digest=bytes(32))
            return load(store, record, *more, **options)

        restoring.load = misreading

    return prepare


def test_a_save_that_was_given_up_is_no_work_for_which_a_newer_checkpoint_is_left(start, tmp_path: Path) -> None:
    """A bad node goes on from step 4, and is killed in the middle of its first save."""
    assert start({}, 6) == 0

    def dying() -> None:
        misread(6)()  # this and the next are changed in a child, and nowhere else
        create = saves.create_once

        def created(storage, name, *more, **options):
            return killed() if "/records/" in name else create(storage, name, *more, **options)

        saves.create_once = created

    assert start({}, 12, dying) == -signal.SIGKILL
    assert start({}, 12) == 0
    assert begun(tmp_path / "s") == [None, 4, 6]
    assert [one.step for one in holdfast.open(tmp_path / "s").run(1).published().aborted] == [6]


def test_a_fork_that_fell_back_to_its_origin_thinks_of_its_own_work_again(start, tmp_path: Path) -> None:
    """Launches of one run say nothing about those of another: the origin has had more of them."""
    for total in (2, 4, 6, 8):
        assert start({}, total, save=ALL) == 0
    fork = {"run": "branch", "resume": "run-001"}
    assert start({}, 20, save=ALL, then=lambda step, ckpt: killed() if step == 11 else None, **fork) != 0

    def own() -> None:
        load = restoring.load

        def misreading(store, record: Record, *more, **options):
            if record.run == 2:
                raise Corrupt("flipped", pack=record.packs[-1], digest=bytes(32))
            return load(store, record, *more, **options)

        restoring.load = misreading

    assert start({}, 20, own, then=killed, **fork) == -signal.SIGKILL
    assert start({}, 20, **fork) == 0
    first, fallen, again = begun(tmp_path / "s", 2)
    assert (first, fallen) == (8, 8)
    assert again > 8


def test_a_rollback_that_fails_does_not_hide_the_head(tmp_path: Path) -> None:
    """The good one is rotten: the training ends, and the next one goes on from the newest, which is whole."""
    store = tmp_path / "s"

    def run(total: int, ill: int | None = None) -> int:
        model, optimizer = tiny()
        rules = [when(nonfinite("loss"), rollback(to="good"))]
        options = {"save": every(steps=4), "keep": ALL, "saver": "inline", "health": rules}
        with Checkpointer(store, run="toy", state={"model": model, "optimizer": optimizer}, **options) as ckpt:
            steps = []
            for step, _ in ckpt.batches(torch.zeros(99, 1), total_steps=total):
                steps.append(step)
                loss = one_step(model, optimizer)
                ckpt.log(loss=float("nan") if step == ill else loss)
        return steps[0]

    run(8)
    opened = holdfast.open(store)
    good, head = opened.run(1).records()
    add_mark(opened, good.address, MarkKind.GOOD, by="test")
    for own in set(good.packs) - set(head.packs):
        flip_bit(store / own, 8 * ((store / own).stat().st_size // 2))
    with pytest.raises(holdfast.errors.RefusedFresh):
        run(12, ill=9)
    assert run(12) == 8
