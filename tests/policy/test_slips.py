"""What is mistyped in a policy is answered with how it is written."""

from __future__ import annotations

import pytest

from holdfast.errors import InvalidPolicy
from holdfast.policy import best, parse


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("best(val_loss)", 'write names in quotes: best("val_loss")'),
        ("best(val/loss, 2, mode=max)", 'write names in quotes: best("val/loss", 2, mode="max")'),
        ("latest(3) | best(eval.loss)", 'write names in quotes: best("eval.loss")'),
        ("at_most(500 GB)", 'it is written like every(steps=500) | best("val_loss")'),
        ("every 5 steps", "with names and sizes in quotes"),
        ("evry(steps=5)", "there is no evry(); did you mean every?"),
        ("oldest(5)", "did you mean latest?"),
        ("daily(5)", "there is no daily(); there is at, at_most, auto, best, every, latest, never, newer"),
        ("every(step=5)", "every() has no step=; did you mean every(steps=5)?"),
        ("every(days=5)", "every() has no days=; it takes steps, seconds, minutes, hours, epochs"),
        ("never(steps=5)", "never() has no steps=; it takes nothing"),
        ("every(**{'steps': 3})", "write out what ** stands for"),
        ("every(500)", "every() wants names: every(steps=500), or seconds=, minutes=, hours=, epochs="),
        ("newer(24)", "newer() wants names: newer(minutes=24), or hours=, days="),
        ("at([1, 2])", "at() wants names: at(steps=[1, 2])"),
        ("at(1, 2)", "at() wants names: at(steps=[1, 2])"),
        ("at()", "at() wants steps, such as at(steps=[100, 1000])"),
        ("latest()", "latest() wants n, such as latest(3)"),
        ("latest(3, 4)", "latest() takes only n without names; it is written like latest(3)"),
        ("at_most()", 'at_most() wants size, such as at_most("500GB")'),
        ("never(5)", "never() takes nothing"),
        ('best("acc", "max")', "best() wants mode=: best('acc', mode='max')"),
        ("best(acc, max)", """best() wants mode=: best("acc", mode='max')"""),
        ('best("acc", 2, "max")', "best() wants mode=: best('acc', 2, mode='max')"),
        ("latest", "latest wants brackets: latest(...)"),
        ("every(steps=5) or best('loss')", "joined by |"),
        ("every(steps=f())", "'f()' is no number, text or list"),
        ("best('a', min_delta=none)", "write None for none"),
    ],
)
def test_the_message_shows_how_it_is_written(text, said):
    """Each of these got an internal message of Python, or a list of all there is."""
    with pytest.raises(InvalidPolicy) as refused:
        parse(text)
    assert str(refused.value).startswith(f"cannot read the policy {text!r}: ")
    assert said in str(refused.value)
    assert not any(
        word in str(refused.value) for word in ("<unknown>", "ast.", "malformed", "keyword argument", "positional")
    )


def test_python_is_told_as_well_where_the_direction_of_a_metric_goes():
    with pytest.raises(InvalidPolicy, match=r"^best\(\) wants mode=: best\('acc', mode='max'\)$"):
        best("acc", "max")
