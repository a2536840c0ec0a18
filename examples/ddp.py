"""A small model under DistributedDataParallel, that goes on where it was whenever it is started again.

    torchrun --nproc-per-node 2 examples/ddp.py
    torchrun --nproc-per-node 2 --max-restarts 3 examples/ddp.py

Kill a rank, kill all of them, start it with another number of ranks: no sample
is lost or seen twice, and no checkpoint is ever half there.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import every, latest


def dataset() -> TensorDataset:
    numbers = torch.Generator().manual_seed(0)
    points = torch.randn(4096, 32, generator=numbers)
    return TensorDataset(points, points.sin().sum(1, keepdim=True))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 1))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--store", default="checkpoints")
    asked = arguments.parse_args()

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )
    model = DistributedDataParallel(network().to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = dataset()
    # One order for all ranks, and a cursor in samples: any number of ranks goes on where another one stopped.
    loader = DataLoader(data, batch_sampler=holdfast.Sampler(data, batch_size=64 // world, rank=rank, world=world))

    with holdfast.Checkpointer(
        asked.store,
        run="ddp",
        state={"model": model, "optimizer": optimizer},
        save=every(steps=20) | every(minutes=10),
        keep=latest(3),
    ) as ckpt:
        loss = None  # no step is made if all were made before
        for step, (points, wanted) in ckpt.batches(loader, total_steps=asked.steps):
            loss = nn.functional.mse_loss(model(points.to(device)), wanted.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.log(loss=loss.detach())
            if rank == 0 and step % 20 == 0:
                print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    if rank == 0:
        last = "none of them now" if loss is None else f"loss {loss.item():.6f}"
        print(f"finished: {ckpt.step} steps, {last}" if ckpt.last else "nothing was saved", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
