"""Saving in the training loop itself, and what is left of it in the process afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from lives import Death, records
from torch import nn

from holdfast import Checkpointer, every, latest


def held_open(folder: Path) -> list[str]:
    """What this process has open below a folder, with a name or without one."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue  # the one of the listing itself
    return [path for path in found if path.startswith(str(folder))]


def trained(folder: Path, saver: str, die: int | None = None) -> None:
    model = nn.Linear(40, 40)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with Checkpointer(folder, run="r", state=state, save=every(steps=1), keep=latest(9), saver=saver) as ckpt:
        for step in ckpt.steps(3):
            model(torch.ones(1, 40)).sum().backward()
            state["optimizer"].step()
            if step == die:
                raise Death


@pytest.mark.parametrize("saver", ["inline", "process"])
@pytest.mark.parametrize("die", [None, 2])
def test_a_checkpointer_that_is_closed_holds_nothing_open_in_its_store(tmp_path, saver, die):
    """Many in one process, as in a search, would run out of descriptors; and a disk could not be unmounted."""
    if die is None:
        trained(tmp_path / "s", saver)
    else:
        with pytest.raises(Death):
            trained(tmp_path / "s", saver, die)
    assert records(tmp_path / "s")
    assert held_open(tmp_path / "s") == []
