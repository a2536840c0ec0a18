"""A save may be asked for at any line of the body, and what is stored belongs to one boundary all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_training import ended, fingerprint, finished, forked

import holdfast
from holdfast import every

MOMENTS = ("before", "forward", "backward", "step", "after")


def train(store: Path, *, moment: str | None = None, die: bool = False) -> str:
    """Six steps of a model whose forward pass changes buffers; a save is asked for in the fourth."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.arange(24 * 8.0).sin().view(24, 8), batch_size=4, shuffle=True)
    with holdfast.Checkpointer(
        store, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=100)
    ) as ckpt:

        def here(at: str) -> None:
            if step == 3 and at == moment:
                ckpt.save()

        for step, batch in ckpt.batches(loader, total_steps=6):
            if step == 4 and die:
                raise SystemExit
            here("before")
            loss = model(batch).square().sum()
            here("forward")
            loss.backward()
            here("backward")
            optimizer.step()
            here("step")
            optimizer.zero_grad()
            here("after")
    return fingerprint(model, optimizer, {})


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_save_asked_for_anywhere_resumes_exactly(tmp_path: Path, moment: str) -> None:
    """I2. A forward pass has counted a batch in BatchNorm, so after it the save waits for the step."""
    undisturbed = finished(lambda: train(tmp_path / "whole"), tmp_path / "a")
    assert ended(forked(lambda: train(tmp_path / "s", moment=moment, die=True))) == 70
    (record,) = holdfast.open(tmp_path / "s").run(1).records()
    assert record.step == (3 if moment == "before" else 4)
    assert all(side.exact for side in record.exactness.values())
    assert finished(lambda: train(tmp_path / "s"), tmp_path / "b") == undisturbed
