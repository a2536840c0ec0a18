"""The examples of several ranks, as a user starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def torchrun(folder, example, ranks, steps):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(EXAMPLES / example), "--steps", str(steps), "--store", str(folder / "checkpoints")]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished(text):
    return re.search(r"finished: .*", text)[0]


@pytest.mark.parametrize("example", ["ddp.py", "fsdp2.py"])
def test_an_example_that_is_started_again_ends_as_if_it_had_not_ended_in_between(tmp_path, example):
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    whole = torchrun(tmp_path / "whole", example, 2, 50)
    torchrun(tmp_path / "torn", example, 2, 30)
    again = torchrun(tmp_path / "torn", example, 2, 50)
    assert "step    0" in whole
    assert "step    0" not in again
    assert finished(again) == finished(whole)
    if example == "ddp.py":
        return  # the other one goes on with fewer ranks
    more = torchrun(tmp_path / "torn", example, 1, 60)
    assert "60 steps" in finished(more)
    assert "step   40" not in more
