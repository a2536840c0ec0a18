"""States that several ranks hold together: a transformer under FSDP2, and thousands of small tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.states import Job, Weights, _block, _noise

WIDTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedJob(Job):
    """A job of which each rank holds a part."""

    def flat(self) -> dict[str, Tensor]:
        """What this rank holds in memory."""
        return {name: local(value) for name, value in Job.flat(self).items()}

    @property
    def whole_bytes(self) -> int:
        """Of all ranks together, each element once."""
        return sum(tensor.nbytes for tensor in Job.flat(self).values())

    def touch(self) -> None:
        """One step, with other gradients than the last one: everything changes."""
        torch._foreach_mul_([local(one.grad) for one in self.model.parameters() if one.grad is not None], 1.01)
        self.optimizer.step()

    def sums(self) -> list[int]:
        """A sum over the bits of every tensor, of all ranks together: the same however it is spread."""
        mine = [int(one.reshape(-1).view(torch.int32).sum()) for one in self.flat().values() if one.dim()]
        found = torch.tensor(mine)
        dist.all_reduce(found)
        return [int(one) for one in found]


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, where it lies."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found.detach()


def transformer(folder: Path, megabytes: int) -> ShardedJob:
    """Weights in fp32 and both moments of AdamW, a quarter of them an embedding, spread by FSDP2."""
    values = megabytes * 1_000_000 // 12
    block = sum(torch.Size(shape).numel() for shape in _block(WIDTH).values())
    layers = max(1, round(0.75 * values / block))
    shapes = {"wte": (max(64, (values - layers * block) // WIDTH), WIDTH)}
    for layer in range(layers):
        shapes |= {f"{kind}_{layer}": shape for kind, shape in _block(WIDTH).items()}
    return _job(folder, shapes, "fsdp2")


def many(folder: Path, tensors: int, how: str) -> ShardedJob:
    """So many tensors of 4 to 8 KiB: a third of them weights, the others their moments; and as many counters of steps.

    ``how`` is "one", "ddp" or "fsdp2".
    """
    return _job(folder, {f"w{n}": (16 + 8 * (n % 3), 64) for n in range(tensors // 3)}, how)


def _job(folder: Path, shapes: dict[str, tuple[int, ...]], how: str) -> ShardedJob:
    model: nn.Module = Weights({name: _noise(shape) for name, shape in shapes.items()}, {})
    if how == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif how == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        model = fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = parameter.detach() * 0.01
    job = ShardedJob(model=model, optimizer=optimizer, folder=folder)
    job.touch()
    return job


def folders(folder: Path, names: list[str]) -> Iterator[Path]:
    """One folder for each library, made by whoever comes first."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        yield folder / name
