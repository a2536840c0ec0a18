"""A training for a queue: ends early when it is asked to, with an exit code that says "start me again".

sbatch examples/slurm/train.sbatch python examples/slurm/train.py --steps 20000
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import nn

import holdfast
from holdfast import every, latest


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--store", default="checkpoints")
    arguments.add_argument("--pause", type=float, default=0.0, help="seconds that a step takes at least")
    asked = arguments.parse_args()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with holdfast.Checkpointer(
        asked.store,
        run="queued",
        state={"model": model, "optimizer": optimizer},
        save=every(minutes=15),
        keep=latest(2),
    ) as ckpt:
        loss = None  # no step is made if all were made before
        for step in ckpt.steps(asked.steps):
            points = torch.randn(64, 32)
            loss = nn.functional.mse_loss(model(points), points.sin().sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(asked.pause)
            if step % 20 == 0:
                print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    if ckpt.preempted:
        print(f"{ckpt.preempted.signal} at step {ckpt.preempted.step}, saved: {ckpt.preempted.durable}", flush=True)
        return ckpt.preempted.exit_code
    last = "none of them now" if loss is None else f"loss {loss.item():.6f}"
    print(f"finished: {ckpt.step} steps, {last}" if ckpt.last else "nothing was saved", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
