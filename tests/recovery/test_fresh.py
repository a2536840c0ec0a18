"""Evidence of earlier work."""

from __future__ import annotations

import pytest

from holdfast.recovery.environment.launcher import launcher_facts
from holdfast.recovery.launching.fresh import near_misses, restart_evidence


@pytest.mark.parametrize(
    ("name", "other"),
    [("gpt2-smal", "gpt2-small"), ("gpt2_small", "gpt2-small"), ("GPT2-small", "gpt2-small"), ("lorra", "lora")],
)
def test_slips_are_found(name: str, other: str) -> None:
    assert near_misses(name, [other]) == [other]


@pytest.mark.parametrize(
    ("name", "other"), [("exp-1", "exp-2"), ("a", "b"), ("gpt2", "gpt3"), ("toy", "toy"), ("bert-base", "bert-large")]
)
def test_siblings_are_no_slips(name: str, other: str) -> None:
    assert near_misses(name, [other]) == []


@pytest.mark.parametrize("key", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
@pytest.mark.parametrize(("store_is_new", "launches"), [(True, 0), (False, 0)])
def test_a_restarted_job_that_the_store_does_not_know_is_evidence(key: str, store_is_new: bool, launches: int) -> None:
    """Hazard 28: the mount is missing, and the folder under it is empty."""
    said = restart_evidence(launcher_facts({key: "2"}), store_is_new=store_is_new, launches=launches)
    assert said is not None
    assert "2 times" in said


def test_a_first_start_and_a_known_run_are_no_evidence() -> None:
    assert restart_evidence(launcher_facts({}), store_is_new=True, launches=0) is None
    assert restart_evidence(launcher_facts({"SLURM_RESTART_COUNT": "3"}), store_is_new=False, launches=1) is None
