"""Failed saves are borne up to a limit, and the reason for the end names it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidPolicy
from holdfast.policy import Tolerance, tolerance_of, tolerate

amounts = st.integers(1, 10**6) | st.floats(1e-3, 1e6)
singles = st.one_of(
    st.integers(0, 10**6).map(lambda n: tolerate(failures=n)),
    amounts.map(lambda x: tolerate(minutes=x)),
    amounts.map(lambda x: tolerate(hours=x)),
)


@pytest.mark.parametrize(("borne", "failures", "ends"), [(3, 3, False), (3, 4, True), (0, 0, False), (0, 1, True)])
def test_so_many_failures_in_a_row_are_borne_and_no_more(borne, failures, ends):
    assert (tolerate(failures=borne).exceeded(failures, 1e9) is not None) is ends


@pytest.mark.parametrize(
    ("tolerance", "seconds", "ends"),
    [
        (tolerate(minutes=60), 3600.0, False),
        (tolerate(minutes=60), 3600.1, True),
        (tolerate(hours=0.5), 1800.0, False),
        (tolerate(hours=0.5), 1801.0, True),
    ],
)
def test_so_long_a_time_is_borne_and_no_longer(tolerance, seconds, ends):
    assert (tolerance.exceeded(1, seconds) is not None) is ends


def test_time_without_a_failure_ends_nothing():
    """Whoever saves once a day has no checkpoint for hours, and nothing is wrong."""
    assert tolerate(minutes=60).exceeded(0, 1e9) is None


def test_the_first_limit_that_is_exceeded_ends_it():
    both = tolerate(failures=3) | tolerate(minutes=60)
    assert both.exceeded(3, 3600.0) is None
    assert both.exceeded(4, 10.0) == "4 saves in a row have failed, and tolerate(failures=3) bears 3"
    assert (
        both.exceeded(1, 5400.0) == "no save has succeeded for 90 min, and tolerate(minutes=60) was all that is borne"
    )
    assert both.exceeded(9, 1e6).startswith("9 saves in a row")


def test_the_reason_reads_well_for_one_and_for_hours():
    assert tolerance_of("raise").exceeded(1, 0.0) == "1 save has failed, and tolerate(failures=0) bears none"
    assert "for 3.0 h," in tolerate(hours=2).exceeded(1, 10800.0)
    assert "for 45 s," in tolerate(minutes=0.5).exceeded(1, 45.0)


@pytest.mark.parametrize(
    ("asked", "tolerance"),
    [
        (None, tolerate(failures=3)),
        (0, tolerate(failures=0)),
        (7, tolerate(failures=7)),
        ("7", tolerate(failures=7)),
        ("raise", tolerate(failures=0)),
        ("warn", Tolerance()),
        (tolerate(hours=1), tolerate(hours=1)),
        (" tolerate(failures=5)|tolerate(hours=1.5) ", tolerate(failures=5) | tolerate(hours=1.5)),
    ],
)
def test_what_users_ask_for_is_understood(asked, tolerance):
    assert tolerance_of(asked) == tolerance


def test_who_only_wants_warnings_bears_anything():
    assert tolerance_of("warn").exceeded(10**9, 1e12) is None


@given(st.lists(singles, min_size=0, max_size=4))
def test_a_tolerance_reads_back_from_its_text(parts):
    whole = Tolerance()
    for part in parts:
        whole = whole | part
    assert tolerance_of(str(whole)) == whole


def test_equal_limits_are_one():
    assert tolerate(failures=3) | tolerate(failures=3) == tolerate(failures=3)
    assert str(tolerate(failures=3) | tolerate(minutes=1)) == "tolerate(failures=3) | tolerate(minutes=1)"


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: tolerate(), "exactly one of failures"),
        (lambda: tolerate(failures=1, hours=1), "given: failures, hours"),
        (lambda: tolerate(failures=-1), "integer of at least 0"),
        (lambda: tolerate(failures=1.5), "integer"),
        (lambda: tolerate(failures=True), "integer"),
        (lambda: tolerate(minutes=0), "above 0"),
        (lambda: tolerate(hours=float("inf")), "finite"),
        (lambda: tolerate(hours=float("nan")), "finite"),
        (lambda: tolerate(minutes="5"), "finite"),
    ],
)
def test_nonsense_is_refused_naming_field_and_rule(make, rule):
    with pytest.raises(InvalidPolicy, match=rule):
        make()


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "never",
        "tolerate",
        "tolerate(3)",
        "tolerate(3, failures=3)",
        "3" + " " * 40_000,
        "tolerate(failures=3) + tolerate(hours=1)",
        "tolerate(**{'failures': 3})",
        "tolerate(failures=__import__('os').getpid())",
        "tolerate(steps=3)",
        "every(steps=3)",
        "1.5",
        "True",
        "-1",
        "\0",
        "tolerate(" * 500,
        "3|" * 6000 + "3",
        True,
        1.5,
        b"raise",
        -1,
    ],
    ids=lambda asked: str(asked)[:30],
)
def test_anything_else_is_refused(asked):
    with pytest.raises(InvalidPolicy):
        tolerance_of(asked)


def test_only_tolerances_are_combined():
    with pytest.raises(TypeError):
        tolerate(failures=3) | 3
