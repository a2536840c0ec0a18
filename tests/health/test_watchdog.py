"""A watchdog that leaves healthy trainings alone, whatever they do between two steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidPolicy
from holdfast.health import watchdog

took = st.lists(st.floats(0.01, 1e4), max_size=50)
anything = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=50)


def test_by_default_nothing_is_ever_ended():
    for took_seconds in ([], [0.2] * 100, [700.0] * 100):
        assert watchdog().limits(took_seconds).end == 0.0


def test_a_training_with_fast_steps_may_still_be_silent_for_ten_minutes():
    """A step of 0.2 s says nothing of how long a compilation takes."""
    assert watchdog().limit([0.2] * 1000) == 600.0
    assert watchdog().limits([0.2] * 1000) == (600.0, 0.0)


def test_nothing_is_derived_from_a_few_steps():
    assert watchdog().limit([0.2] * 9) is None
    assert watchdog().limits([0.2] * 9) == (0.0, 0.0)
    assert watchdog(hung=60.0).limits([]) == (60.0, 0.0)
    assert watchdog(then="end", end_after=900.0).limits([]) == (900.0, 900.0)


def test_who_once_took_long_may_take_long_again():
    assert watchdog().limit([1.0] * 50 + [2000.0]) == 4000.0


def test_impossible_times_are_passed_over():
    assert watchdog().limit([60.0] * 10 + [-5.0, float("nan"), float("inf")]) == 1200.0


def test_who_once_took_long_is_not_ended_before_it_counts_as_hung():
    """It was ended at 900 s: whoever saves for 700 s now and then must be heard of before that."""
    dog = watchdog(then="end", end_after=900.0)
    assert dog.limits([0.2] * 50 + [700.0]) == (1400.0, 1400.0)


@given(anything, st.none() | st.floats(1.0, 900.0))
def test_it_is_dumped_before_it_is_ended_and_never_ended_before_its_time(seconds, hung):
    dog = watchdog(hung=hung, then="end", end_after=900.0)
    limits = dog.limits(seconds)
    assert limits.end >= 900.0
    assert limits.end >= limits.hung > 0
    assert limits.hung == (dog.limit(seconds) or 900.0)


@given(took)
def test_a_derived_limit_is_above_everything_that_was_seen(seconds):
    limit = watchdog().limit(seconds)
    assert limit is None or (limit >= 600.0 and limit >= 2 * max(seconds))


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: watchdog(then="end"), "wants end_after="),
        (lambda: watchdog(end_after=5.0), "goes with then='end'"),
        (lambda: watchdog(then="kill"), "'dump' or 'end'"),
        (lambda: watchdog(hung=0), r"watchdog\(hung=\)"),
        (lambda: watchdog(factor=1.0), r"watchdog\(factor=\)"),
        (lambda: watchdog(minimum=-1), r"watchdog\(minimum=\)"),
        (lambda: watchdog(hung=60.0, then="end", end_after=30.0), "at least the 60 s"),
    ],
)
def test_nonsense_is_refused_naming_the_argument(make, rule):
    with pytest.raises(InvalidPolicy, match=rule):
        make()
