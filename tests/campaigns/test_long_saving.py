"""Save after save after save: neither the trainer nor its saver holds more at the end than at the beginning."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from memory_watch import ALLOWANCES, MemoryWatch
from staged_kit import Family, check_store, saver_of
from torch import nn
from toy_training import ended, forked

from holdfast import Checkpointer, every, latest

WARM = 10
BREATHING = replace(ALLOWANCES, descriptors=2, threads=2, shared_memory=4 << 20, pss=64 << 20)
"""Far below a leak at every save: 24 descriptors or threads, or 88 MB in the shortest watch.

A look may fall into what follows a save, with its files and threads. Every `FULL_EVERY`-th save takes the frozen
tensors, 1 MB, whole: into a slot that may not have held them before. Pages of files count for more where another
process that had them, too, has ended.
"""
LONG = [pytest.mark.soak, pytest.mark.timeout(3600)]


def train(store: Path, saves: int, *, wait: str) -> None:
    """Saves at every step, with retention behind it, and fails if anything of trainer or saver grows."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(400, 600), nn.ReLU(), nn.Linear(600, 400))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    state = {"model": model, "optimizer": optimizer}
    watches: list[MemoryWatch] = []
    with Checkpointer(store, state=state, save=every(steps=10**6), keep=latest(2), saver="process") as ckpt:
        for step in ckpt.steps(saves):
            if step:
                ckpt.save(wait=wait)
            model(torch.randn(8, 400)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.log(loss=1 / (step + 1))
            if step == 1:
                watches = [MemoryWatch(os.getpid()), MemoryWatch(saver_of(os.getpid()).pid)]
            if step % 2:  # every other save is still under way when the next one comes
                ckpt._training._checkpoints.drain()
                for watch in watches:
                    watch.look()
        for watch in watches:
            watch.check_flat(warm=WARM, allowances=BREATHING)
            print(watch.seen[WARM], watch.seen[-1], sep="\n")
        assert not [one for one in psutil.Process().children() if one.status() == psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("wait", ["staged", "durable"])
@pytest.mark.parametrize("saves", [44, pytest.param(400, marks=LONG)])
def test_many_saves_in_a_row_leave_memory_descriptors_and_threads_as_they_were(
    tmp_path: Path, saves: int, wait: str
) -> None:
    family = Family()
    assert ended(forked(family.of(lambda: train(tmp_path / "s", saves, wait=wait)))) == 0
    family.await_savers_end()
    check_store(tmp_path / "s")
