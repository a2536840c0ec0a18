"""A forked child that hangs says where, and is waited for all the same."""

from __future__ import annotations

import time

import pytest
import toy_training
from toy_training import ended, forked


def test_a_child_that_is_late_tells_where_it_is_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy_training, "PATIENCE", 0.3)
    assert ended(forked(lambda: lingers(time.monotonic() + 1))) == 0
    assert "lingers" in capfd.readouterr().err


def lingers(until: float) -> None:
    while time.monotonic() < until:
        time.sleep(0.01)
