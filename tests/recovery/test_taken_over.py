"""Two jobs that are given one run: the one it was taken from does not take it back while the other one works."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
from staged_kit import awaited
from tiny_training import launched, records_of
from toy_training import ended, forked

import holdfast
from holdfast.errors import Fenced, HoldfastError

FIRST = {"SLURM_JOB_ID": "1"}
SECOND = {"SLURM_JOB_ID": "2"}
AGAIN = {**FIRST, "SLURM_RESTART_COUNT": "1"}


class Jobs:
    """Launches of one run, each a process; one that waits goes on when its file is there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "s"

    def start(self, told: dict[str, str], total: int, wait_at: int | None = None, go: str = "") -> int:
        def then(step: int, ckpt: holdfast.Checkpointer) -> None:
            if step == wait_at:
                (self.folder / f"{go} waits").touch()
                awaited((self.folder / go).exists, go)

        def work() -> str:
            os.environ |= told
            try:
                launched(self.store, total, then=then)
            except HoldfastError as error:
                logging.getLogger("test").error("%s", error)
                return f"{type(error).__name__}: {error}"
            return "well"

        return forked(work, self.report)

    @property
    def report(self) -> Path:
        return self.folder / "report"

    def waits(self, pid: int, go: str) -> int:
        awaited((self.folder / f"{go} waits").exists, go)
        return pid

    def end(self, pid: int, go: str = "") -> str:
        if go:
            (self.folder / go).touch()
        assert ended(pid) == 0
        return self.report.read_text()

    @property
    def launches(self) -> int:
        return len(holdfast.open(self.store).run(1).launches())

    def overlapping(self) -> int:
        """The first job trains, the second takes the run from it and waits; gives the second one's pid."""
        first = self.waits(self.start(FIRST, 20, wait_at=5, go="first"), "first")
        second = self.waits(self.start(SECOND, 20, wait_at=7, go="second"), "second")
        assert self.end(first, "first").startswith("Fenced")
        return second


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def test_a_restart_does_not_take_back_what_a_job_that_works_has_taken_over(jobs: Jobs) -> None:
    second = jobs.overlapping()
    said = jobs.end(jobs.start(AGAIN, 20))
    assert said.startswith(f"{Fenced.__name__}: launch 2 (slurm:2, on ")
    assert "has taken run-001 over from launch 1 of this job (slurm:1)" in said
    assert jobs.launches == 2, "the one that works was disturbed"
    assert jobs.end(second, "second") == "well"
    assert records_of(jobs.store)[-1].step == 20


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_it_goes_on_when_the_other_one_is_gone(jobs: Jobs, how: str) -> None:
    second = jobs.overlapping()
    if how == "killed":
        os.kill(second, signal.SIGKILL)
        assert ended(second) == -signal.SIGKILL
    else:
        assert jobs.end(second, "second") == "well"
    assert jobs.end(jobs.start(AGAIN, 24)) == "well"
    assert (jobs.launches, records_of(jobs.store)[-1].step) == (3, 24)


def test_whoever_starts_a_job_anew_takes_the_run_over(jobs: Jobs) -> None:
    second = jobs.overlapping()
    assert jobs.end(jobs.start({"SLURM_JOB_ID": "3"}, 24)) == "well"
    assert jobs.end(second, "second").startswith("Fenced")


def test_a_job_that_was_not_at_work_then_goes_on_whoever_came_in_between(jobs: Jobs) -> None:
    """It was asked to stop, somebody looked at its run by hand and did not come back: nobody was in anybody's way."""
    assert jobs.end(jobs.start(FIRST, 6)) == "well"
    other = jobs.waits(jobs.start(SECOND, 20, wait_at=9, go="second"), "second")
    assert jobs.end(jobs.start(AGAIN, 24)) == "well"
    assert jobs.end(other, "second").startswith("Fenced")
