"""What is mistyped in a policy is answered with how it is written."""

from __future__ import annotations

import pytest

from holdfast.errors import InvalidPolicy
from holdfast.policy import parse


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
    assert not any(word in str(refused.value) for word in ("<unknown>", "ast.", "malformed", "keyword argument"))
