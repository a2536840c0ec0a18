"""Configurations as people have them: stored, compared, and never a reason not to train."""

from __future__ import annotations

import argparse
import enum
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast import every


class Activation(enum.Enum):
    RELU = 1


@dataclass
class Settings:
    lr: float = 1
    api_key: str = "REAL"


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


@pytest.mark.parametrize("config", [argparse.Namespace(lr=1, api_key="REAL"), Settings(), vars(Settings())])
def test_a_program_is_given_what_it_gave_and_the_store_has_no_secret(tmp_path, config):
    """From a namespace or a dataclass the program was given '<redacted>' for its key."""
    ckpt = holdfast.Checkpointer(tmp_path, run="toy", state={"model": torch.nn.Linear(2, 1)}, config=config)
    with ckpt:
        assert ckpt.config == {"lr": 1, "api_key": "REAL"}
    assert holdfast.open(tmp_path).run(1).info.config == {"lr": 1, "api_key": "<redacted>"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"REAL" in path.read_bytes()]
