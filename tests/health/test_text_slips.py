"""What is mistyped in a rule or a watchdog is answered with how it is written."""

from __future__ import annotations

import pytest

from holdfast.errors import InvalidPolicy
from holdfast.health import parse, watchdog_of


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonfinite(loss)", 'write names in quotes: nonfinite("loss")'),
        ("when(nonfinite('loss'), rollback(to=good))", 'write names in quotes: rollback(to="good")'),
        ("when(nonfinite('loss'), rollback(skip_data=false))", "write False for false"),
        ("when(nonfinite('loss'), stop)", "stop wants brackets: stop(...)"),
        ("when(nonfinite('loss'), rolback())", "there is no rolback(); did you mean rollback?"),
        (
            "when(nonfinite('loss'), rollback(scale=0.5))",
            "rollback() has no scale=; did you mean rollback(scale_lr=0.5)?",
        ),
        ("when(nonfinite('loss'), actions=3)", "when() has no actions="),
        ("when(nonfinite('loss') stop())", 'it is written like when(nonfinite("loss"), rollback(), stop())'),
        ("on", 'it is written like when(nonfinite("loss"), rollback(), stop())'),
        ("nonfinite", "nonfinite wants brackets: nonfinite(...)"),
    ],
)
def test_the_message_shows_how_it_is_written(text, said):
    """Each of these got an internal message of Python, or a list of all there is."""
    with pytest.raises(InvalidPolicy) as refused:
        parse(text)
    assert str(refused.value).startswith(f"cannot read {text!r}: ")
    assert said in str(refused.value)
    assert not any(word in str(refused.value) for word in ("<unknown>", "ast.", "malformed", "keyword argument"))


def test_a_watchdog_without_brackets_is_told_apart_from_a_broken_one():
    with pytest.raises(InvalidPolicy, match=r"it is written like watchdog\(hung=600\)"):
        watchdog_of("hung=600")
    with pytest.raises(InvalidPolicy, match=r"did you mean watchdog\(hung=600\)"):
        watchdog_of("watchdog(hang=600)")
