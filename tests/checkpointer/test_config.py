"""Configurations as people have them: stored, compared, and never a reason not to train."""

from __future__ import annotations

import enum
import logging
import math
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast import every


class Activation(enum.Enum):
    RELU = 1


ORDINARY = {
    "out": Path("/x"),
    "dtype": torch.bfloat16,
    "layers": {1, 2},
    "act": Activation.RELU,
    "betas": (0.9, 0.95),
    "salt": b"raw",
    "z": 1j,
    "clip": math.nan,
}


def launched(place: Path, steps: int, config: dict[str, object]) -> None:
    with holdfast.Checkpointer(
        place, run="toy", state={"model": torch.nn.Linear(2, 1)}, save=every(steps=2), config=config
    ) as ckpt:
        for _ in ckpt.steps(steps):
            pass


@pytest.mark.parametrize("key", ORDINARY)
def test_an_ordinary_configuration_is_no_obstacle_and_has_not_changed_at_the_next_launch(tmp_path, caplog, key):
    """Paths and dtypes ended the launch with a TypeError; sets, bytes and enums were said to change at each one."""
    caplog.set_level(logging.INFO)
    for steps in (2, 4):
        launched(tmp_path, steps, {key: ORDINARY[key]})
    assert "config has changed" not in caplog.text
    launched(tmp_path, 6, {key: "another"})
    assert "config has changed" in caplog.text
