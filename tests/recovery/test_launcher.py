"""What the launcher's environment says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from holdfast.recovery.environment.launcher import command_line, environment_facts, launcher_facts


@pytest.mark.parametrize(
    ("env", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "77"}, "slurm:77"),
        ({"SLURM_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}, "slurm:77:3"),
        ({"TORCHELASTIC_RUN_ID": "abc"}, "torchrun:abc"),
        ({"SLURM_JOB_ID": "77", "TORCHELASTIC_RUN_ID": "abc"}, "slurm:77"),
    ],
)
def test_a_job_has_one_token_for_all_its_restarts(env: dict[str, str], job: str | None) -> None:
    assert launcher_facts(env).job == job


def test_every_torchrun_without_a_name_is_a_job_of_its_own() -> None:
    """All of them say "none": the job is who has started this process, and starts it again."""
    mine = launcher_facts({"TORCHELASTIC_RUN_ID": "none"}).job
    assert mine == launcher_facts({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "3"}).job
    code = "import os; from holdfast.recovery.environment.launcher import launcher_facts; print(launcher_facts().job)"
    told = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    theirs = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert theirs.stdout.startswith("torchrun:none@")
    assert theirs.stdout.strip() != mine


def test_the_larger_count_of_restarts_is_believed() -> None:
    assert launcher_facts({"TORCHELASTIC_RESTART_COUNT": "1", "SLURM_RESTART_COUNT": "4"}).restarts == 4


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", " "])
def test_nonsense_counts_as_nothing(text: str) -> None:
    facts = launcher_facts({"SLURM_RESTART_COUNT": text, "WORLD_SIZE": text, "RANK": text})
    assert (facts.restarts, facts.world, facts.rank) == (0, 1, 0)


def test_records_repeat_named_variables_and_never_others() -> None:
    told = environment_facts({"SLURM_JOB_ID": "7", "AWS_SECRET_ACCESS_KEY": "s3cret", "HF_TOKEN": "hf_x"})
    assert told["slurm_job_id"] == "7"
    assert not any("cret" in value or "hf_x" in value for value in told.values())


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--api-key=abc", "--lr=1"], ["--api-key=<redacted>", "--lr=1"]),
        (["--token", "abc", "--lr", "1"], ["--token", "<redacted>", "--lr", "1"]),
        (["train.py", "--password=x=y"], ["train.py", "--password=<redacted>"]),
    ],
)
def test_the_command_line_hides_secrets(words: list[str], shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    assert command_line() == shown
