from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidPolicy
from holdfast.policy import SaveFacts, auto, for_keeping, for_saving, latest
from holdfast.policy.auto import FIRST, SHORTEST, daly

HOUR = 3600.0


def facts(seconds: float = 0.0, *, steps: int = 1, **known) -> SaveFacts:
    return SaveFacts(step=1000, steps_since_save=steps, seconds_since_save=seconds, **known)


def test_before_anything_was_measured_there_is_a_first_interval():
    assert auto().due(facts(FIRST - 0.1)) is None
    assert "no save was measured yet" in auto().due(facts(FIRST))


def test_without_failures_it_saves_as_often_as_the_share_allows():
    known = {"save_seconds": 3.0, "durable_seconds": 8.0}
    assert auto(0.02).interval(facts(**known)) == 150.0
    assert auto(0.01).interval(facts(**known)) == 300.0
    assert auto(0.02).due(facts(149.9, **known)) is None
    assert auto(0.02).due(facts(150.0, **known)) == "auto(max_overhead=0.02): 150 s, a save costs 3 s"


def test_cheap_saves_do_not_make_it_write_all_the_time():
    assert auto().interval(facts(save_seconds=0.001)) == SHORTEST


def test_it_does_not_save_before_the_last_save_can_be_durable():
    assert auto().interval(facts(save_seconds=0.1, durable_seconds=400.0)) == 400.0


def test_once_failures_were_seen_it_saves_as_often_as_it_pays():
    """A save of 6 s every 5 minutes would be allowed; with a failure a day, every 16 minutes loses the least."""
    known = {"save_seconds": 6.0, "failures": 2, "observed_seconds": 48 * HOUR}
    assert auto(0.02).interval(facts(**known)) == pytest.approx(daly(6.0, 24 * HOUR))
    assert 960 < auto(0.02).interval(facts(**known)) < 1020
    assert "a failure every 24 h" in auto(0.02).due(facts(5000.0, **known))


def test_many_failures_never_push_it_over_the_share():
    known = {"save_seconds": 60.0, "failures": 100, "observed_seconds": HOUR}
    assert auto(0.02).interval(facts(**known)) == 3000.0


def test_nothing_is_due_where_no_step_was_made():
    assert auto().due(facts(1e6, steps=0)) is None


def test_it_goes_by_the_clock_of_one_rank():
    assert not auto().by_step


def test_it_says_when_to_save_only():
    assert for_saving(auto()) == auto()
    with pytest.raises(InvalidPolicy, match="when to save, not what to keep"):
        for_keeping(latest(1) | auto())


@pytest.mark.parametrize("share", [0, 1, -0.1, 2, math.nan, math.inf, True, "0.1", None], ids=repr)
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(InvalidPolicy, match=r"auto\(max_overhead=\) wants a number between 0 and 1"):
        auto(share)


def test_the_formula_gives_the_figures_of_the_paper_for_its_limits():
    """Daly 2006, equation 37: Young's optimum for small costs, the mean time between failures for large ones."""
    young = math.sqrt(2 * 1.0 * 1e6)
    assert daly(1.0, 1e6) == pytest.approx(young, rel=1e-3)
    assert daly(10.0, 5.0) == 5.0
    # By hand: C = 300 s, M = 6 h: 3600 (1 + sqrt(300/43200)/3 + 300/43200/9) - 300.
    assert daly(300.0, 6 * HOUR) == pytest.approx(3402.78, abs=0.01)


def _lost(interval: float, cost: float, between: float, chance: random.Random) -> float:
    """Wall seconds for 400 mean times between failures of work, simulated: work, checkpoint, failures at random."""
    work, done, wall, fails = 400 * between, 0.0, 0.0, chance.expovariate(1 / between)
    while done < work:
        if fails < interval + cost:
            wall, fails = wall + fails, chance.expovariate(1 / between)
            continue
        wall, fails, done = wall + interval + cost, fails - interval - cost, done + interval
    return wall


def test_its_interval_loses_less_time_than_others_in_a_simulation():
    """An independent model: nothing of the formula is in it."""
    cost, between = 30.0, 4000.0
    best = daly(cost, between)
    takes = {factor: _lost(best * factor, cost, between, random.Random(1)) for factor in (0.3, 1.0, 3.0)}
    assert takes[1.0] < takes[0.3]
    assert takes[1.0] < takes[3.0]


@given(
    st.floats(1e-4, 1e4), st.floats(0.001, 0.5), st.floats(0, 1e4), st.integers(0, 1000), st.floats(0, 1e9, width=32)
)
def test_it_never_costs_more_than_its_share_whatever_was_seen(cost, share, durable, failures, observed):
    known = facts(save_seconds=cost, durable_seconds=durable, failures=failures, observed_seconds=observed)
    seconds = auto(share).interval(known)
    assert cost / seconds <= share * (1 + 1e-9)
    assert seconds >= durable
    assert math.isfinite(seconds)
