"""More than one at work: in one process, in two, in a forked child, in a spawned worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import digest_of, expected, launched, one_step, steps_of, tiny
from toy_training import ended, forked

import holdfast
from holdfast import Checkpointer, errors, every
from holdfast.catalog.verifying.verify import verify


def made(store: Path) -> tuple[Checkpointer, object, object]:
    model, optimizer = tiny()
    state = {"model": model, "optimizer": optimizer}
    return Checkpointer(store, run="toy", state=state, save=every(steps=2)), model, optimizer


def test_a_cell_that_is_run_twice_takes_over_and_the_first_checkpointer_says_so(tmp_path: Path) -> None:
    """A notebook: without ``with``, the name is bound again, and the first one was never closed."""
    first, model, optimizer = made(tmp_path / "s")
    for step in first.steps(9):
        one_step(model, optimizer)
        if step == 4:
            break
    second, model, optimizer = made(tmp_path / "s")
    assert next(second.steps(9)) == 4
    assert digest_of(model, optimizer) == expected()[4]
    with pytest.raises(errors.Unusable, match="a second one was made for the same run"):
        first.save()
    first.close()
    second.close()


def test_a_second_one_is_refused_while_the_first_is_in_its_loop(tmp_path: Path) -> None:
    first, model, optimizer = made(tmp_path / "s")
    second, _, _ = made(tmp_path / "s")
    with first:
        for step in first.steps(4):
            one_step(model, optimizer)
            if step == 0:
                with pytest.raises(errors.AlreadyOpen, match="end that loop first"):
                    second.restore()
    assert steps_of(tmp_path / "s") == [2, 4], "the one in its loop was not disturbed"


def test_two_runs_of_one_store_can_be_trained_in_one_process(tmp_path: Path) -> None:
    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 1:
            launched(tmp_path / "s", 2, run="inner")

    launched(tmp_path / "s", 3, run="outer", then=then)
    assert (steps_of(tmp_path / "s", 1), steps_of(tmp_path / "s", 2)) == ([2, 3], [2])


def test_a_second_launch_from_another_process_takes_over_and_nothing_is_lost(tmp_path: Path) -> None:
    """Hazard 4: the older one is told at its next save, and what it had committed is what the newer goes on from."""
    store = tmp_path / "s"

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 4:
            assert ended(forked(lambda: launched(store, 7))) == 0

    with pytest.raises(errors.Fenced, match="a newer launch owns the run"):
        launched(store, 9, then=then)
    assert steps_of(store)[-3:] == [4, 6, 7]
    assert verify(holdfast.open(store), deep=True).ok
    assert launched(store, 9).digest == expected()[9]


def test_a_forked_child_may_not_use_the_checkpointer_of_its_parent(tmp_path: Path) -> None:
    ckpt, _, _ = made(tmp_path / "s")
    ckpt.restore()

    def work() -> None:
        with pytest.raises(errors.InvalidInput, match="belongs to the process that made it"):
            ckpt.save()

    assert ended(forked(work)) == 0
    assert ckpt.save() is not None
    ckpt.close()


SCRIPT = """
import torch, holdfast
from torch.utils.data import DataLoader
model = torch.nn.Linear(1, 1)
loader = DataLoader([torch.zeros(1)] * 4, num_workers=1, multiprocessing_context="spawn")
with holdfast.Checkpointer("s", state={"model": model}) as ckpt:
    for step, batch in ckpt.batches(loader, total_steps=2):
        pass
"""


def test_a_worker_that_runs_the_script_again_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    """A script without a guard, and spawned workers."""
    (tmp_path / "train.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode != 0
    assert "if __name__ == '__main__':" in done.stderr
    assert len(list((tmp_path / "s/catalog/runs").iterdir())) == 1
