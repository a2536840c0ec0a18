from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidPolicy
from holdfast.ids import RecordId
from holdfast.policy import at, at_most, best, every, for_keeping, latest, newer


@dataclass(frozen=True)
class One:
    step: int
    epoch: int | None = None
    seconds: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> RecordId:
        return RecordId(f"{self.step:016x}")


def line(*ones: One) -> list[One]:
    return sorted(ones, key=lambda one: one.step, reverse=True)


def steps(policy, ones: list[One]) -> list[int]:
    return sorted(int(id_, 16) for id_ in policy.kept(ones))


def test_latest_keeps_the_newest():
    assert steps(latest(2), line(One(1), One(2), One(3))) == [2, 3]
    assert steps(latest(5), line(One(1))) == [1]


def test_every_steps_keeps_the_first_at_or_after_each_multiple():
    ones = line(*(One(step) for step in (90, 100, 150, 199, 203, 250, 400)))
    assert steps(every(steps=100), ones) == [100, 203, 400]


def test_every_step_is_every_step_and_the_first_group_begins_at_zero():
    """A baseline at step 0 was dropped by ``every(steps=1)``, which is said to keep all."""
    ones = line(*map(One, (0, 1, 2, 3, 90)))
    assert steps(every(steps=1), ones) == [0, 1, 2, 3, 90]
    assert steps(every(steps=50), ones) == [0, 90]
    assert steps(every(steps=50), line(*map(One, (1, 2, 90)))) == [90], "a first one that is no multiple"


def test_every_epochs_keeps_the_last_of_each_group():
    ones = line(One(1, epoch=0), One(2, epoch=0), One(3, epoch=1), One(4, epoch=2), One(5, epoch=2), One(6))
    assert steps(every(epochs=1), ones) == [2, 3, 5]
    assert steps(every(epochs=2), ones) == [3, 5]


def test_every_hour_keeps_the_first_of_each_hour_of_the_clock():
    ones = line(*(One(n, seconds=n * 1000.0) for n in range(10)))
    assert steps(every(hours=1), ones) == [0, 4, 8]
    late = line(*(One(n, seconds=1800 + n * 1000.0) for n in range(10)))
    assert steps(every(hours=1), late) == [0, 2, 6, 9]


def test_a_milestone_that_is_gone_does_not_cost_the_ones_after_it():
    """Distances from one kept to the next would shift, and 6 o'clock would go once 0 o'clock had gone for a limit."""
    hours = [0, 3, 6, 9, 12]
    ones = line(*(One(n, seconds=3600.0 * n) for n in hours))
    assert steps(every(hours=6), ones) == [0, 6, 12]
    assert steps(every(hours=6), line(*ones[:-1])) == [3, 6, 12]


def test_a_clock_that_was_set_back_keeps_more_and_never_less():
    ones = line(One(1, seconds=100_000), One(2, seconds=0), One(3, seconds=10))
    assert steps(every(hours=1), ones) == [1, 2]
    assert steps(newer(hours=1), ones) == [1, 2, 3]


def test_newer_counts_from_the_newest_and_not_from_now():
    """A training that waits in a queue for a week loses nothing by waiting."""
    ones = line(*(One(n, seconds=3600.0 * n) for n in range(100)))
    assert steps(newer(hours=24), ones) == list(range(75, 100))
    assert steps(newer(days=1), ones) == list(range(75, 100))
    assert steps(newer(minutes=60), ones) == [98, 99]
    assert steps(newer(hours=24), []) == []


@pytest.mark.parametrize(
    "amounts", [{}, {"hours": 0}, {"hours": -1}, {"hours": math.nan}, {"days": 1, "hours": 1}], ids=repr
)
def test_newer_wants_exactly_one_time_above_zero(amounts):
    with pytest.raises(InvalidPolicy, match=r"newer\("):
        newer(**amounts)


def test_best_keeps_the_n_best():
    ones = line(*(One(n, metrics={"m": value}) for n, value in enumerate([3.0, 1.0, 2.0, 5.0])))
    assert steps(best("m", 2), ones) == [1, 2]
    assert steps(best("m", 2, mode="max"), ones) == [0, 3]


def test_of_equal_values_the_older_stays():
    assert steps(best("m"), line(One(1, metrics={"m": 1.0}), One(2, metrics={"m": 1.0}))) == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "x"], ids=repr)
def test_what_is_no_finite_number_is_never_kept_as_best(value):
    """Hazards 14: a NaN that came first stays best for ever under a plain ``<``."""
    ones = line(One(1, metrics={"m": value}), One(2, metrics={"m": 9.0}), One(3))
    assert steps(best("m", 3), ones) == [2]
    assert steps(best("m", 3, mode="max"), ones) == [2]


def test_a_combination_keeps_what_either_keeps_and_says_why():
    """Users-ask 28: best, last and milestone are separate rules that do not eat each other."""
    ones = line(One(10, metrics={"m": 1.0}), One(15, metrics={"m": 2.0}), One(20), One(21), One(22))
    kept = (latest(2) | best("m") | every(steps=10)).kept(ones)
    assert {int(id_, 16): why for id_, why in kept.items()} == {
        10: 'best("m"): 1; every(steps=10)',
        20: "every(steps=10)",
        21: "latest(2)",
        22: "latest(2)",
    }


def test_for_keeping_wants_a_policy():
    policy = latest(2) | every(steps=10)
    assert for_keeping(policy) is policy
    with pytest.raises(InvalidPolicy, match="keep="):
        for_keeping(3)


ones_strategy = st.lists(
    st.builds(
        One,
        step=st.integers(0, 400),
        epoch=st.none() | st.integers(0, 9),
        seconds=st.floats(-1e5, 1e5),
        metrics=st.dictionaries(st.just("m"), st.floats(allow_nan=True) | st.none()),
    ),
    unique_by=lambda one: one.step,
    max_size=30,
).map(lambda ones: line(*ones))
policies = st.sampled_from(
    [
        latest(3),
        best("m", 2),
        best("m", mode="max"),
        every(steps=7),
        every(epochs=2),
        every(minutes=20),
        newer(hours=3),
        at(steps=[5, 50, 200]),
        at_most("1GB"),
        newer(hours=1) | every(hours=2) | at_most("1GB"),
        latest(1) | best("m") | every(steps=50),
    ]
)


@given(policies, ones_strategy)
def test_keeping_again_keeps_the_same(policy, ones):
    """Deleting what is not kept changes nothing about what is: retention never erodes a store."""
    kept = policy.kept(ones)
    survivors = [one for one in ones if one.id in kept]
    assert set(policy.kept(survivors)) == set(kept)


@given(policies, ones_strategy)
def test_only_given_checkpoints_are_kept(policy, ones):
    assert set(policy.kept(ones)) <= {one.id for one in ones}
