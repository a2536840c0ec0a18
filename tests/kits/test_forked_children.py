"""A forked child that hangs says where, and is waited for all the same."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import toy_training
from staged_kit import awaited
from toy_training import ended, forked


def test_a_child_that_is_late_tells_where_it_is_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy_training, "PATIENCE", 0.1)
    there, told = tmp_path / "there", os.fstat(2).st_size
    child = forked(lambda: lingers(there, told))
    awaited(there.exists, "it lingers")
    assert ended(child) == 0
    assert "in lingers" in capfd.readouterr().err


def lingers(there: Path, told: int) -> None:
    there.touch()
    awaited(lambda: os.fstat(2).st_size > told + 500, "it is asked")


def test_a_child_collects_nothing_of_what_its_parent_has_left() -> None:
    assert ended(forked(lambda: gc.get_freeze_count() or os._exit(3))) == 0
