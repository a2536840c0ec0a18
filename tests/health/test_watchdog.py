"""A watchdog that leaves healthy trainings alone, whatever they do between two steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidPolicy
from holdfast.health import Then, watchdog

took = st.lists(st.floats(0.01, 1e4), max_size=50)
anything = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=50)


def test_by_default_nothing_is_ever_ended():
    for silent in (1.0, 1e3, 1e6, 1e9):
        assert watchdog().due(silent, [0.2] * 100, armed=True, dumped=True) is None
        assert watchdog().due(silent, [0.2] * 100, armed=True, dumped=False) in (None, Then.DUMP)


def test_a_training_with_fast_steps_may_still_be_silent_for_ten_minutes():
    """A step of 0.2 s says nothing of how long a compilation takes."""
    assert watchdog().limit([0.2] * 1000) == 600.0
    assert watchdog().due(599.0, [0.2] * 1000, armed=True, dumped=False) is None
    assert watchdog().due(600.0, [0.2] * 1000, armed=True, dumped=False) is Then.DUMP


def test_nothing_is_derived_from_a_few_steps():
    assert watchdog().limit([0.2] * 9) is None
    assert watchdog().due(1e9, [0.2] * 9, armed=True, dumped=False) is None
    assert watchdog(hung=60.0).due(61.0, [], armed=True, dumped=False) is Then.DUMP


def test_who_once_took_long_may_take_long_again():
    assert watchdog().limit([1.0] * 50 + [2000.0]) == 4000.0


def test_impossible_times_are_passed_over():
    assert watchdog().limit([60.0] * 10 + [-5.0, float("nan"), float("inf")]) == 1200.0


@given(took, st.floats(0, 1e9), st.booleans())
def test_nothing_is_done_while_it_is_not_armed(seconds, silent, dumped):
    dog = watchdog(hung=1.0, then="end", end_after=2.0)
    assert dog.due(silent, seconds, armed=False, dumped=dumped) is None


@given(anything, st.floats(0, 1e9))
def test_it_is_dumped_before_it_is_ended_and_never_ended_before_its_time(seconds, silent):
    dog = watchdog(then="end", end_after=900.0)
    assert dog.due(silent, seconds, armed=True, dumped=False) is not Then.END
    if dog.due(silent, seconds, armed=True, dumped=True) is Then.END:
        assert silent >= 900.0
        assert silent >= dog.limit(seconds)


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
