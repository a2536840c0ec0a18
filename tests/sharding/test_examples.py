"""The examples of several ranks, as a user starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import worlds

EXAMPLES = Path(__file__).parents[2] / "examples"


def torchrun(folder, example, ranks, steps):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(EXAMPLES / example), "--steps", str(steps), "--store", str(folder / "checkpoints")]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished(text):
    return re.search(r"finished: .*", text)[0]


def forked(folder, example, ranks, steps, store=None):
    """Without torchrun: it takes longer to begin than the example does."""
    words, place = ["--steps", steps, "--store", store or folder / "checkpoints"], {"RANK": "0", "WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(worlds.free_port())}
    told = place if ranks == 1 else {}  # of several ranks each is told its own
    return worlds.run(folder / f"{steps} steps", str(EXAMPLES / example), ranks, *words, **told).text


@pytest.mark.parametrize(("example", "start"), [("ddp.py", forked), ("fsdp2.py", torchrun)])
def test_an_example_that_is_started_again_ends_as_if_it_had_not_ended_in_between(tmp_path, example, start):
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    whole = forked(tmp_path / "whole", example, 2, 50)
    start(tmp_path / "torn", example, 2, 30)
    again = start(tmp_path / "torn", example, 2, 50)
    assert "step    0" in whole
    assert "step    0" not in again
    assert finished(again) == finished(whole)
    more = forked(tmp_path / "torn", example, 1, 60)
    assert "60 steps" in finished(more)
    assert "step   40" not in more


@pytest.mark.parametrize("example", ["ddp.py", "fsdp2.py"])
def test_an_example_that_is_started_again_after_its_end_says_where_it_is(tmp_path, example):
    """It made no step, so there was no loss to print: UnboundLocalError."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = forked(tmp_path / "first", example, 1, 20, tmp_path / "checkpoints")
    second = forked(tmp_path / "second", example, 1, 20, tmp_path / "checkpoints")
    assert "20 steps, loss " in finished(first)
    assert finished(second) == "finished: 20 steps, none of them now"
