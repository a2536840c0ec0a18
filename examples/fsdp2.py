"""A small transformer sharded with fully_shard: each rank saves what it holds, and any number of ranks loads it.

    torchrun --nproc-per-node 4 examples/fsdp2.py
    torchrun --nproc-per-node 2 examples/fsdp2.py --steps 400    # goes on with half as many ranks

Nothing is gathered: a checkpoint of 4 ranks has what each of them holds, a
load reads what each needs.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import every, latest

WORDS, WIDTH, LENGTH = 256, 64, 32


class Model(nn.Module):
    """Predicts the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True)
        self.blocks = nn.ModuleList([layer, nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.1, batch_first=True)])
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight  # stored once

    def forward(self, words: Tensor) -> Tensor:
        """Scores of the word after each."""
        x, mask = self.embed(words), nn.Transformer.generate_square_subsequent_mask(words.shape[1])
        for block in self.blocks:
            x = block(x, src_mask=mask.to(x.device), is_causal=True)
        return self.head(x)  # type: ignore[no-any-return]


def dataset() -> TensorDataset:
    numbers = torch.Generator().manual_seed(0)
    first = torch.randint(WORDS, (2048, 1), generator=numbers)
    stride = torch.randint(1, 8, (2048, 1), generator=numbers)
    return TensorDataset((first + stride * torch.arange(LENGTH + 1)) % WORDS)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--store", default="checkpoints")
    asked = arguments.parse_args()

    cuda = torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    model = Model().to(device)
    mesh = init_device_mesh(device.type, (world,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)  # after sharding: it has the sharded parameters
    data = dataset()
    loader = DataLoader(data, batch_sampler=holdfast.Sampler(data, batch_size=32 // world, rank=rank, world=world))

    with holdfast.Checkpointer(
        asked.store, run="fsdp2", state={"model": model, "optimizer": optimizer}, save=every(steps=20), keep=latest(3)
    ) as ckpt:
        loss = None  # no step is made if all were made before
        for step, (words,) in ckpt.batches(loader, total_steps=asked.steps):
            words = words.to(device)
            scores = model(words[:, :-1])
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), words[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.log(loss=loss.detach())
            if rank == 0 and step % 20 == 0:
                print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    if rank == 0:
        last = "none of them now" if loss is None else f"loss {loss.item():.6f}"
        print(f"finished: {ckpt.step} steps, {last}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
