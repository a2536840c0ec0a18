"""What is no number is found, wherever it is, and nothing else is."""

from __future__ import annotations

import pytest

from holdfast.errors import InvalidPolicy
from holdfast.health import Fact, Severity, nonfinite
from holdfast.policy import every

from .health_support import INF, NAN, judged_steps, looks, losses, probed, seen


@pytest.mark.parametrize("value", [NAN, INF, -INF, 10**400])
def test_a_metric_that_is_no_number_is_judged(value):
    (finding,) = looks(nonfinite("loss"), [seen(7, loss=value)])
    assert finding.severity is Severity.BROKEN
    assert (finding.first, finding.last) == (6, 7)
    assert finding.message.startswith("loss is ")


@pytest.mark.parametrize("value", [0, -3.5, 1e308, 5, None, "n/a", True, [NAN]])
def test_a_number_and_what_was_never_one_pass(value):
    assert looks(nonfinite("loss"), [seen(7, loss=value)]) == [None]


def test_a_metric_that_is_missing_has_not_passed():
    assert not nonfinite("loss").look(seen(7, accuracy=1.0), None).seen
    assert nonfinite("loss").look(seen(7, loss=1.0), None).seen


def test_every_boundary_of_a_poisoned_stretch_is_judged():
    assert judged_steps(nonfinite("loss"), losses([1.0, NAN, NAN, NAN, 1.0, 1.0, INF])) == [2, 3, 4, 7]


def test_suspect_is_all_since_the_last_number():
    """Logged every tenth step only: the NaN may have come at any step since."""
    findings = looks(nonfinite("loss"), [seen(10, loss=1.0), seen(20, loss=1.0), seen(25), seen(30, loss=NAN)])
    assert (findings[-1].first, findings[-1].last) == (20, 30)


def test_the_first_step_has_no_step_before_it():
    (finding,) = looks(nonfinite("loss"), [seen(1, loss=NAN)])
    assert (finding.first, finding.last) == (1, 1)


@pytest.mark.parametrize("what", ["gradients", "parameters"])
def test_sampled_tensors_are_judged_when_they_are_known(what):
    check = nonfinite(what)
    other = "gradients" if what == "parameters" else "parameters"
    findings = looks(
        check,
        [
            seen(50),
            seen(52, probes=[probed(50, what)]),
            seen(53, probes=[probed(50, other, bad=["x"])]),
            seen(103, probes=[probed(100, what, bad=["model/a", "model/b", "model/c", "model/d"])]),
        ],
    )
    assert findings[:3] == [None, None, None]
    assert (findings[3].first, findings[3].last) == (50, 100)
    assert findings[3].message == f"{what} are not finite after step 100: model/a, model/b, model/c and 1 more"


def test_two_samples_at_once_are_both_looked_at():
    bad, good = probed(50, bad=["w"]), probed(60)
    assert looks(nonfinite("parameters"), [seen(61, probes=[bad, good])])[0].last == 50
    assert looks(nonfinite("parameters"), [seen(61, probes=[good, bad])])[0].last == 50


def test_a_sample_of_nothing_says_nothing():
    look = nonfinite("gradients").look(seen(3, probes=[probed(2, "gradients", sampled=0)]), None)
    assert not look.seen
    assert look.finding is None


def test_gradients_that_overflow_now_and_then_can_be_borne():
    """A loss scaler finds its scale by overflowing, and skips those steps."""
    check = nonfinite("gradients", in_a_row=3)
    bad = [2, 3, 5, 7, 8, 9, 10]
    series = [seen(n, probes=[probed(n, "gradients", bad=["w"] if n in bad else ())]) for n in range(1, 12)]
    assert judged_steps(check, series) == [9, 10]


def test_only_what_is_sampled_is_wanted():
    assert nonfinite("loss").wants == frozenset()
    assert nonfinite("loss").cadence is None
    assert nonfinite("gradients").wants == {Fact.GRADIENTS}
    assert nonfinite("parameters", every=every(seconds=30)).cadence == every(seconds=30)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: nonfinite("a b"), r"nonfinite\(what\)"),
        (lambda: nonfinite(3), r"nonfinite\(what\)"),
        (lambda: nonfinite("loss", in_a_row=0), "in_a_row"),
        (lambda: nonfinite("loss", every=every(steps=10)), "whenever it is logged"),
        (lambda: nonfinite("gradients", every=every(epochs=1)), "every"),
        (lambda: nonfinite("gradients", every=10), "every"),
    ],
)
def test_nonsense_is_refused_naming_the_argument(make, rule):
    with pytest.raises(InvalidPolicy, match=rule):
        make()
