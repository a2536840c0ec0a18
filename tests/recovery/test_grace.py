"""How much time there is, and whether a save fits in."""

from __future__ import annotations

import pytest

from holdfast.recovery.environment.grace import KillFacts, expected_seconds, grace_after, lacking
from holdfast.recovery.environment.launcher import kill_facts

SLURM = KillFacts(slurm=True, slurm_end=1000.0)


@pytest.mark.parametrize(
    ("name", "facts", "seconds"),
    [
        ("SIGTERM", KillFacts(), None),
        ("SIGTERM", KillFacts(torchrun=90.0), 90.0),
        ("SIGUSR1", KillFacts(torchrun=90.0), 90.0),
        ("SIGTERM", SLURM, 30.0),
        ("SIGUSR1", SLURM, 100.0),
        ("SIGUSR1", KillFacts(slurm=True), None),
        ("SIGUSR1", KillFacts(slurm=True, slurm_end=800.0), None),
        ("SIGTERM", KillFacts(kubernetes=True), 30.0),
        ("SIGINT", KillFacts(kubernetes=True), None),
        ("SIGTERM", KillFacts(slurm=True, slurm_end=1000.0, torchrun=5.0), 5.0),
    ],
)
def test_the_most_impatient_launcher_counts(name, facts, seconds) -> None:
    assert grace_after(name, None, facts, now=900.0).seconds == seconds


def test_what_the_user_says_counts_for_more_and_it_is_said_whose_word_it_is() -> None:
    assert grace_after("SIGTERM", 7.5, SLURM, now=0.0).seconds == 7.5
    assert "grace=" in grace_after("SIGTERM", 7.5, SLURM, now=0.0).why
    assert "KillWait" in grace_after("SIGTERM", None, SLURM, now=0.0).why
    assert "SLURM_JOB_END_TIME" in grace_after("SIGUSR1", None, SLURM, now=900.0).why


@pytest.mark.parametrize(
    ("environ", "facts"),
    [
        ({}, KillFacts()),
        ({"SLURM_JOB_ID": "7"}, KillFacts(slurm=True)),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1700000000"}, KillFacts(slurm=True, slurm_end=1.7e9)),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "Unknown"}, KillFacts(slurm=True)),
        ({"TORCHELASTIC_RUN_ID": "a"}, KillFacts(torchrun=30.0)),
        ({"TORCHELASTIC_RUN_ID": "a", "PET_SHUTDOWN_TIMEOUT": "45"}, KillFacts(torchrun=45.0)),
        ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "45"}, KillFacts()),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, KillFacts(kubernetes=True)),
    ],
)
def test_the_environment_says_who_kills(environ, facts) -> None:
    assert kill_facts(environ) == facts


@pytest.mark.parametrize(
    ("left", "typical", "flying", "same", "fits"),
    [
        (10.0, 9.0, None, False, True),
        (10.0, 11.0, None, False, False),
        (10.0, 9.0, 4.0, False, False),  # one in flight has to end first
        (10.0, 9.0, 4.0, True, True),  # it is the very one
        (10.0, 9.0, 99.0, False, True),  # it takes longer than any before: nobody knows
        (None, 900.0, 1.0, False, True),
        (1.0, None, None, False, True),  # never measured: it is tried
        (0.0, None, None, False, False),
        (-3.0, 0.5, None, False, False),
    ],
)
def test_a_save_is_begun_if_it_ends_in_time(left, typical, flying, same, fits) -> None:
    assert (lacking(left, expected_seconds(typical, flying, same=same)) < 0) is fits
