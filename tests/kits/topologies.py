"""Small models under every wrapper that a training may have, and what is in them as a whole, told by torch itself."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn

NET = {1: ["one"], 2: ["ddp2", "fsdp2", "tp2"], 4: ["ddp4", "fsdp4", "hsdp4", "fsdp2tp2"]}
"""By world size, how `Net` can be spread."""
DEEP = {1: ["one"], 2: ["ddp2", "fsdp2", "pp2"], 4: ["fsdp4"]}
"""By world size, how `Deep` can be spread."""


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def begin() -> None:
    if world() > 1:
        dist.init_process_group("gloo")


def end() -> None:
    if world() > 1:
        dist.barrier()
        dist.destroy_process_group()


class Net(nn.Module):
    """Tied embeddings, buffers, frozen and unused parameters, rows that do not divide by the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(61, 24)
        self.norm = nn.BatchNorm1d(24)
        self.up = nn.Linear(24, 72)
        self.down = nn.Linear(72, 24)
        self.odd = nn.Linear(24, 37)
        self.back = nn.Linear(37, 24)
        self.head = nn.Linear(24, 61, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(50, 50)
        self.frozen.requires_grad_(False)
        self.unused = nn.Parameter(torch.randn(700))
        self.register_buffer("big", torch.randn(30, 30))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(tokens))
        x = x + self.down(torch.relu(self.up(x)))
        x = x + self.back(torch.relu(self.odd(x)))
        return self.head(x)


class Deep(nn.Module):
    """Layers under names that a pipeline stage keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(i): nn.Linear(40, 40) for i in range(4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = torch.tanh(layer(x))
        return x


def batch(step: int, part: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(1000 * step + part)
    return torch.randint(0, 61, (8,), generator=numbers), torch.randint(0, 61, (8,), generator=numbers)


def spread(model: nn.Module, how: str) -> nn.Module:
    """The model, wrapped; an optimizer is made after that."""
    if how == "one":
        return model
    if how.startswith("ddp"):
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    if how.startswith("pp"):
        for name in list(model.layers):
            if int(name) // 2 != rank():
                del model.layers[name]
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    if how == "tp2":
        return parallelize_module(model, init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)), plan)
    if how == "fsdp2tp2":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(model, mesh["tp"], plan)
        return fully_shard(model, mesh=mesh["dp"])
    if how == "hsdp4":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (world(),))
    units = [model.up, model.odd] if isinstance(model, Net) else list(model.layers.values())
    for unit in units:
        fully_shard(unit, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def made(kind: str, how: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = spread({"net": Net, "deep": Deep}[kind](), how)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def loss_of(model: nn.Module, step: int, part: int) -> torch.Tensor:
    tokens, wanted = batch(step, part)
    return nn.functional.cross_entropy(model(tokens), wanted)


def train(kind: str, how: str, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step. Tensor parallel ranks have the same batch, data parallel ones their own."""
    if kind == "deep":
        numbers = torch.Generator().manual_seed(step)
        for name, parameter in sorted(unwrapped(model).named_parameters()):
            del name
            with torch.no_grad():
                parameter.grad = (parameter * torch.rand(1, generator=numbers)).detach().clone()
    else:
        part = rank() if how.startswith(("ddp", "fsdp4", "hsdp")) or how == "fsdp2" else rank() // 2
        loss_of(model, step, part).backward()
    optimizer.step()
    optimizer.zero_grad()


def unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, by torch's own means."""
    found = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found.detach().clone()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, how: str) -> dict[str, torch.Tensor]:
    """Model and optimizer as a whole, by name; of pipeline stages what all of them have."""
    inner = unwrapped(model)
    for module in inner.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    found = {f"model.{k}": whole(v) for k, v in inner.state_dict().items()}
    names = {p: name for name, p in inner.named_parameters()}
    for parameter, state in optimizer.state.items():
        found |= {f"optimizer.{names[parameter]}.{k}": whole(v) for k, v in state.items()}
    if how.startswith("pp"):
        others: list = [None] * world()
        dist.all_gather_object(others, found)
        found = {k: v for one in others for k, v in one.items()}
    return found
