"""A slip in the name of a metric is told: what looks at nothing keeps nothing, saves nothing and finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import Stop, crash_at, launched

import holdfast
from holdfast import best, every, latest
from holdfast.health import nonfinite, spike, stop, when

SLIPS = {
    "save": best("eval_los", mode="min"),
    "keep": latest(2) | best("f1"),
    "health": [when(spike("lss"), stop()), when(nonfinite("gradients"))],
}


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if "never logged" in one.message or "never due" in one.message]


def logs(at: int, name: str):
    def then(step: int, ckpt: holdfast.Checkpointer) -> None:
        if step >= at:
            ckpt.log(**{name: 0.5})

    return then


def test_metrics_that_nobody_logs_are_named_at_the_end(tmp_path: Path, caplog) -> None:
    launched(tmp_path / "s", 5, then=logs(2, "eval_loss"), **SLIPS)
    assert warned(caplog) == [
        "keep=best(\"f1\") looks at 'f1', and that was never logged: there is loss, eval_loss",
        "save=best(\"eval_los\") looks at 'eval_los', and that was never logged: did you mean 'eval_loss'?",
        "health=spike(\"lss\") looks at 'lss', and that was never logged: did you mean 'loss'?",
    ]


def test_what_looks_like_a_slip_is_told_soon(tmp_path: Path, caplog) -> None:
    """An evaluation may come late; a name that is nearly there does not."""
    with pytest.raises(Stop):
        launched(tmp_path / "s", 150, then=crash_at(120), **SLIPS)
    assert [one.partition(" looks")[0] for one in warned(caplog)] == ['health=spike("lss")']


def test_nothing_is_said_where_everything_comes_or_nothing_is_logged_at_all(tmp_path: Path, caplog) -> None:
    launched(tmp_path / "s", 5, then=logs(4, "f1"), keep=latest(2) | best("f1"), health=[nonfinite("loss")])
    launched(tmp_path / "t", 5)
    assert warned(caplog) == []


def test_a_policy_for_epochs_in_a_loop_without_any_is_told(tmp_path: Path, caplog) -> None:
    launched(tmp_path / "s", 5, save=every(epochs=1) | every(steps=2))
    (text,) = warned(caplog)
    assert text.startswith("save=every(epochs=1) is never due in steps()")
