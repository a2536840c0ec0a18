"""A spike is found; a loss that falls, wobbles, stands still or starts high is none."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidPolicy
from holdfast.health import Fact, Severity, spike
from holdfast.health.window import Window

from .health_support import INF, NAN, judged_steps, looks, losses, probed, seen


def falling(steps, seed, noise=0.02):
    """A loss as it is in the beginning of a training: steep, then slow, with noise in proportion."""
    chance = random.Random(seed)
    return [(2.0 + 8.0 * math.exp(-step / 60)) * (1 + chance.gauss(0, noise)) for step in range(steps)]


@pytest.mark.parametrize("seed", range(20))
def test_a_falling_loss_with_noise_is_no_spike(seed):
    assert judged_steps(spike("loss"), losses(falling(2000, seed))) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("at", "factor"), [(60, 5), (300, 2), (1500, 1.5)])
def test_a_spike_in_a_falling_loss_is_found_and_nothing_else(seed, at, factor):
    """Where it falls steeply the window is wide, and only a high spike stands out of it."""
    values = falling(2000, seed)
    values[at] *= factor
    assert judged_steps(spike("loss"), losses(values)) == [at + 1]


def test_a_warm_up_that_starts_high_is_none():
    values = [100.0, 90.0, 150.0, 70.0, 60.0, 65.0, 50.0] + [10.0 * 0.97**n for n in range(200)]
    assert judged_steps(spike("loss"), losses(values)) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_norm_that_grows_slowly_is_none(seed):
    chance = random.Random(seed)
    values = [(1.0 + step / 500) * (1 + chance.gauss(0, 0.05)) for step in range(2000)]
    assert judged_steps(spike("grad_norm"), losses(values, metric="grad_norm")) == []


def test_a_constant_loss_is_no_spike_and_a_jump_of_it_is():
    """The median deviation is 0, and dividing by it would make a spike of the last bit."""
    values = [2.0] * 50 + [2.0000001, 2.0, 2.01] + [4.0]
    assert judged_steps(spike("loss"), losses(values)) == [54]


def test_a_loss_that_mostly_stands_still_has_the_mean_deviation():
    values = ([2.0] * 6 + [2.3] * 4) * 10 + [2.3, 9.0]
    assert judged_steps(spike("loss"), losses(values)) == [102]


def test_of_nothing_but_zeros_nothing_is_known():
    assert judged_steps(spike("loss"), losses([0.0] * 50 + [1e-9])) == []


def test_only_upwards():
    assert judged_steps(spike("loss"), losses([5.0, 5.1] * 50 + [0.001])) == []


def test_negative_metrics_have_spikes_too():
    values = [-50.0 + 0.1 * (n % 7) for n in range(100)] + [-10.0, -50.0]
    assert judged_steps(spike("elbo"), losses(values, metric="elbo")) == [101]


def test_a_stretch_of_poisoned_values_does_not_become_normal():
    values = [2.0 + 0.01 * (n % 5) for n in range(100)] + [9.0] * 60 + [2.0]
    assert judged_steps(spike("loss"), losses(values)) == list(range(101, 161))


def test_a_level_that_stays_for_a_whole_window_is_the_new_one():
    """Another mixture of data, another loss function: it must not be judged for ever."""
    values = [2.0 + 0.01 * (n % 5) for n in range(60)] + [4.0 + 0.01 * (n % 5) for n in range(80)]
    found = judged_steps(spike("loss", window=50), losses(values))
    assert found == list(range(61, 111))


def test_single_spikes_far_apart_are_no_new_level():
    values = [9.0 if n % 30 == 29 else 2.0 + 0.01 * (n % 5) for n in range(3000)]
    assert len(judged_steps(spike("loss"), losses(values))) == 100


@pytest.mark.parametrize("value", [NAN, INF])
def test_what_is_no_number_is_a_spike_at_any_time_and_leaves_no_trace(value):
    findings = looks(spike("loss"), losses([2.0, value] + [2.0, 2.1] * 30 + [value, 2.0]))
    assert [bool(finding) for finding in findings] == [False, True] + [False] * 60 + [True, False]
    assert findings[1].severity is Severity.DOUBT


def test_nothing_is_judged_before_there_is_enough_to_compare_with():
    assert judged_steps(spike("loss"), losses([2.0, 2.1] * 9 + [50.0])) == []
    assert judged_steps(spike("loss"), losses([2.0, 2.1] * 10 + [50.0])) == [21]
    assert judged_steps(spike("loss", window=5), losses([2.0, 2.1, 2.0, 2.1, 2.0, 50.0])) == [6]


def test_a_metric_that_is_missing_now_and_then_is_compared_with_what_was_logged():
    series = [seen(n, loss=2.0 + 0.01 * (n % 5)) if n % 3 == 0 else seen(n) for n in range(1, 200)]
    assert judged_steps(spike("loss"), [*series, seen(200), seen(201, loss=7.0)]) == [201]


def test_suspect_is_all_since_the_last_value_that_looked_right():
    findings = looks(spike("loss"), [*losses([2.0, 2.1] * 20), seen(45, loss=9.0), seen(46, loss=9.0)])
    assert [(one.first, one.last) for one in findings[-2:]] == [(40, 45), (40, 46)]


def test_the_gradient_norm_is_the_logged_one_or_the_sampled_one():
    usual = [seen(n, probes=[probed(n, "gradients", norm=1.0 + 0.1 * (n % 3))]) for n in range(1, 40)]
    assert judged_steps(spike("grad_norm"), [*usual, seen(40, probes=[probed(39, "gradients", norm=50.0)])]) == [40]
    logged = seen(40, grad_norm=1.0, probes=[probed(39, "gradients", norm=50.0)])
    assert judged_steps(spike("grad_norm"), [*usual, logged]) == []
    assert not spike("loss").look(usual[0], None).seen


def test_who_logs_the_gradient_norm_is_not_judged_by_another_one():
    """Logged before or after clipping, of all ranks or of one: it is not what is sampled."""
    series = [seen(n, grad_norm=1.0 + 0.1 * (n % 3)) for n in range(1, 40)]
    series.append(seen(40, probes=[probed(39, "gradients", norm=50.0)]))
    assert judged_steps(spike("grad_norm"), series) == []
    assert spike("grad_norm").wants == {Fact.GRADIENTS}
    assert spike("loss").wants == frozenset()


def test_a_sampled_norm_is_judged_at_the_step_of_the_sample():
    usual = [seen(n + 2, probes=[probed(n, "gradients", norm=1.0)]) for n in range(10, 400, 10)]
    finding = looks(spike("grad_norm"), [*usual, seen(405, probes=[probed(400, "gradients", norm=9.0)])])[-1]
    assert (finding.first, finding.last) == (390, 400)


def test_however_many_values_are_no_numbers_they_are_no_new_level():
    found = judged_steps(spike("loss"), losses([2.0, 2.1] * 20 + [NAN] * 150 + [2.0, 50.0, 2.1]))
    assert found == [*range(41, 191), 192]


def test_after_a_rollback_it_still_knows_what_was_normal_before():
    check, state = spike("loss"), None
    for observation in losses([2.0, 2.1] * 30 + [9.0] * 5):
        state = check.look(observation, state).state
    state = check.rewound(state, 40)
    assert state.window.steps[-1] == 40
    assert state.window.aside == ()
    assert check.look(seen(41, loss=9.0), state).finding is not None


@given(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=60), st.floats(-1e6, 1e6), st.sampled_from([0.25, 2, 1024]))
def test_the_score_does_not_depend_on_the_unit(values, value, factor):
    window = Window(tuple(values), tuple(range(len(values))))
    scaled = Window(tuple(one * factor for one in values), window.steps)
    assert scaled.score(value * factor) == pytest.approx(window.score(value), rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(1.0, 2.0), min_size=20, max_size=100), st.integers(0, 9))
def test_fewer_than_half_of_wild_values_hide_no_spike(values, wild):
    """Even if they had got into the window."""
    window = Window((*values, *[1e9] * wild), (0,) * (len(values) + wild))
    assert window.score(1e6) > 6 or window.scale > 1e5


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: spike(""), r"spike\(metric\)"),
        (lambda: spike("gradients"), "grad_norm"),
        (lambda: spike("loss", z=0), r"spike\(z=\)"),
        (lambda: spike("loss", z=NAN), r"spike\(z=\)"),
        (lambda: spike("loss", window=4), r"spike\(window=\)"),
        (lambda: spike("loss", window=2.5), r"spike\(window=\)"),
    ],
)
def test_nonsense_is_refused_naming_the_argument(make, rule):
    with pytest.raises(InvalidPolicy, match=rule):
        make()
