"""The Slurm example, run by bash as it is, with stand-ins for `srun` and `scontrol` on the path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_training import records_of

from holdfast.records import Kind

ROOT = Path(__file__).parents[2] / "examples" / "slurm"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "srun": '#!/bin/bash\nshift\nexec "$@"\n',  # without --kill-on-bad-exit
        "scontrol": f'#!/bin/bash\necho "$@" >> {tmp_path}/requeued\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_END_TIME": str(int(time.time()) + 120),
    }


def submitted(slurm: dict[str, str], store: Path, steps: int, pause: float) -> subprocess.Popen:
    command = ["bash", ROOT / "train.sbatch", sys.executable, ROOT / "train.py"]
    command += ["--steps", str(steps), "--store", store, "--pause", str(pause)]
    return subprocess.Popen(
        [str(word) for word in command], env=slurm, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["time limit", "pre-emption"])
def test_a_job_that_is_asked_to_stop_saves_and_goes_back_into_the_queue(
    slurm: dict[str, str], tmp_path: Path, number: int
) -> None:
    """Users-ask 8: the time limit comes as SIGUSR1 to the steps, a pre-emption as SIGTERM to all, the shell too."""
    store = tmp_path / "store"
    job = submitted(slurm, store, 100_000, 0.01)
    assert job.stdout.readline().startswith("step")
    if number == signal.SIGTERM:
        os.killpg(job.pid, number)
    else:
        (step,) = (one for one in psutil.Process(job.pid).children(recursive=True) if "train.py" in str(one.cmdline()))
        step.send_signal(number)
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 75, said
    assert "saved: True" in said
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    (record,) = records_of(store)
    assert record.kind is Kind.PREEMPTED

    again = submitted(slurm | {"SLURM_RESTART_COUNT": "1"}, store, record.step + 3, 0.0)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    assert f"finished: {record.step + 3} steps" in said
    assert (tmp_path / "requeued").read_text() == "requeue 77\n", "a job that is done stays out of the queue"


def test_a_job_that_is_queued_again_after_its_end_says_that_it_is_done(slurm: dict[str, str], tmp_path: Path) -> None:
    """It made no step, so there was no loss to print: UnboundLocalError, and a job that had failed."""
    first, second = (submitted(slurm, tmp_path / "store", 20, 0.0).communicate(timeout=300)[0] for _ in range(2))
    assert "finished: 20 steps, loss " in first
    assert second == "finished: 20 steps, none of them now\n"
    assert not (tmp_path / "requeued").exists()
