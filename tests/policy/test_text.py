from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_kit import Listening

from holdfast.errors import InvalidPolicy
from holdfast.policy import Policy, any_of, at, at_most, auto, best, every, latest, newer, parse
from holdfast.policy.text import readable

positive = st.integers(1, 10**9)
amounts = positive | st.floats(1e-6, 1e9)
singles = st.one_of(
    positive.map(latest),
    positive.map(lambda n: every(steps=n)),
    positive.map(lambda n: every(epochs=n)),
    amounts.map(lambda x: every(seconds=x)),
    amounts.map(lambda x: every(minutes=x)),
    amounts.map(lambda x: every(hours=x)),
    amounts.map(lambda x: newer(hours=x)),
    amounts.map(lambda x: newer(days=x)),
    amounts.map(lambda x: newer(minutes=x)),
    st.lists(positive, min_size=1, max_size=5).map(lambda steps: at(steps=steps)),
    st.floats(1e-6, 0.999).map(auto),
    (positive | positive.map(lambda n: f"{n} GiB") | positive.map(lambda n: f"{n}MB")).map(at_most),
    st.builds(
        best,
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters=":"), min_size=1, max_size=30),
        st.integers(1, 9),
        mode=st.sampled_from(["min", "max"]),
        min_delta=st.just(0.0) | st.floats(0, 10),
    ),
)


@given(singles)
def test_a_policy_reads_back_from_its_text(policy):
    assert parse(str(policy)) == policy


@given(st.lists(singles, min_size=2, max_size=4, unique_by=str))
def test_a_combination_reads_back_from_its_text(policies):
    assert parse(str(any_of(*policies))) == any_of(*policies)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "latest(3) and latest(2)",
        "latest(3) + latest(2)",
        "oldest(3)",
        "every(steps=__import__('os').getpid())",
        "every(**{'steps': 3})",
        "(lambda: 1)()",
        "latest(3).n",
        "latest(*[3])",
        "every(500)",
        "at(100)",
        "at(steps=100)",
        "newer(24)",
        "at_most(bytes=3)",
        'at_most("plenty")',
        "auto(max_overhead=2)",
        "latest(3) |",
        "latest(" * 500,
        "   ",
        "latest(1)|" * 2000 + "latest(1)",
        " | ".join(f"latest({n})" for n in range(1, 1100)),
        "\0",
        'best("\\d")',
    ],
    ids=lambda text: text[:30],
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidPolicy):
        parse(text)


def test_what_a_person_types_is_read():
    assert parse("  latest(3)|best('val_loss',2,mode='max') ") == latest(3) | best("val_loss", 2, mode="max")
    assert parse("every(steps=10_000)") == every(steps=10_000)
    assert parse("auto() | at(steps=[100, 1_000])") == auto() | at(steps=[1000, 100])
    assert parse("newer(hours=24) | at_most('500GB')") == newer(hours=24) | at_most("500GB")


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: every(), "exactly one of steps"),
        (lambda: every(steps=1, epochs=1), "given: steps, epochs"),
        (lambda: every(steps=0), r"every\(steps=\) wants an integer above 0"),
        (lambda: every(steps=1.5), "integer"),
        (lambda: every(steps=True), "integer"),
        (lambda: every(epochs=-1), "above 0"),
        (lambda: every(seconds=float("nan")), r"every\(seconds=\) wants a finite number"),
        (lambda: every(hours=float("inf")), "finite"),
        (lambda: every(minutes="5"), "finite number"),
        (lambda: latest(0), r"latest\(n\) wants an integer of at least 1, not 0"),
        (lambda: latest(True), "at least 1"),
        (lambda: latest(2.0), "at least 1"),
        (lambda: best(""), r"best\(metric\)"),
        (lambda: best("val loss"), "without spaces"),
        (lambda: best("val:loss"), "':'"),
        (lambda: best(3), "not 3"),
        (lambda: best("m", 0), r"best\('m', n\)"),
        (lambda: best("m", mode="least"), r"best\(mode=\) wants 'min' or 'max'"),
        (lambda: best("m", min_delta=-1), "min_delta"),
        (lambda: best("m", min_delta=float("nan")), "min_delta"),
    ],
)
def test_nonsense_is_refused_naming_field_and_rule(make, rule):
    with pytest.raises(InvalidPolicy, match=rule):
        make()


def test_equal_policies_are_equal_and_nested_ones_flatten():
    assert (latest(3) | (every(steps=5) | latest(3))) == any_of(latest(3), every(steps=5))
    assert len({latest(3), latest(3), latest(4)}) == 2


def test_a_list_of_two_thousand_steps_reads_back():
    policy = latest(3) | at(steps=range(500, 1_000_001, 500))
    assert parse(str(policy)) == policy


def test_many_parts_read_back_also_deep_inside_a_program():
    """What is taken at the start of a script must not be too deep for a command that reads it."""
    policy = any_of(*map(latest, range(1, 1001)))

    def deep(frames: int) -> Policy:
        return parse(str(policy)) if frames == 0 else deep(frames - 1)

    assert deep(200) == policy


@pytest.mark.parametrize(
    "policy",
    [
        at(steps=range(1, 20_000)),
        any_of(*map(latest, range(1, 1100))),
        any_of(*(best(str(n) + "\N{GRINNING FACE}" * 190) for n in range(60))),
    ],
    ids=["long", "many", "wide"],
)
def test_a_policy_that_would_not_read_back_is_refused_before_it_is_stored(policy):
    with pytest.raises(InvalidPolicy, match=r"^keep= cannot be read back"):
        readable("keep", policy)


def test_a_policy_that_is_too_long_is_told_what_to_say_instead():
    with pytest.raises(InvalidPolicy, match=r"every\(steps=500\) instead of a list"):
        parse(str(at(steps=range(1, 20_000))))


def test_a_policy_of_ones_own_cannot_be_read_back():
    with pytest.raises(InvalidPolicy, match=r"^save= cannot be read back"):
        readable("save", Listening())


@pytest.mark.parametrize("policy", [any_of(latest(3)), latest(3) | (latest(2) | at(steps=[5]))], ids=str)
def test_what_reads_back_is_taken(policy):
    assert readable("keep", policy) is policy
