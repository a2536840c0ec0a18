"""A small training over several ranks, of which each tells what it does: for worlds that are killed.

``fsdp`` and ``ddp`` train with collectives of torch in every step, as users' scripts do; ``apart`` has none, so that a
rank can be stopped without the others noticing it in their own code, and comes to the same on any number of ranks.
"""

from __future__ import annotations

import logging
import os
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from staged_kit import Notes
from topologies import whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.ids import Digest

SAMPLES, BATCH, SAVE_EVERY = 96, 4, 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every rank runs."""

    store: Path
    notes: Path
    """A folder in which each rank writes what it is at."""
    how: str = "fsdp"
    total: int = 24
    patience: float = 10.0
    pause: float = 0.01
    """Seconds that a step takes at least."""
    then: Callable[[int, int, Checkpointer, nn.Module], Any] = lambda rank, step, ckpt, model: None
    """Called in the body, with the rank and the number of completed steps."""
    options: dict[str, Any] = field(default_factory=dict)
    rendezvous: Path | None = None
    """A file through which the ranks find each other; None: as the environment says."""

    def notes_of(self, rank: int) -> Notes:
        return Notes(self.notes / f"rank-{rank}.notes")


def train(job: Job) -> str:
    """To the end; gives the digest of what this rank has trained, ``apart`` that of everything."""
    model, optimizer, loader, ckpt = begun(job)
    rank, notes = dist.get_rank(), job.notes_of(dist.get_rank())
    with ckpt:
        for number, (step, (batch,)) in enumerate(ckpt.batches(loader, total_steps=job.total)):
            notes.add("at" if number else "began", step)
            time.sleep(job.pause)
            job.then(rank, step, ckpt, model)
            one_step(job.how, model, optimizer, step, batch)
        notes.add("left", ckpt.step)
    return digest(model, optimizer, whole if job.how == "apart" else local)


def begun(job: Job, **more: object) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader, Checkpointer]:
    """What a rank needs, in a process that is one; with ``more`` of the state."""
    quiet()
    where = {} if job.rendezvous is None else {"init_method": f"file://{job.rendezvous}"}
    where |= {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])} if where else {}
    dist.init_process_group("gloo", timeout=timedelta(seconds=job.patience), **where)
    model, optimizer = made(job.how)
    samples = TensorDataset(torch.randn(SAMPLES, 48, generator=torch.Generator().manual_seed(1)))
    sampler = holdfast.Sampler(samples, seed=5, rank=dist.get_rank(), world=dist.get_world_size())
    loader = DataLoader(samples, batch_size=BATCH, sampler=sampler)
    settings: dict[str, Any] = {"run": "toy", "save": every(steps=SAVE_EVERY), "keep": latest(99), "saver": "process"}
    settings |= {"peer_timeout": job.patience} | job.options
    state = {"model": model, "optimizer": optimizer, **more}
    return model, optimizer, loader, Checkpointer(job.store, state=state, **settings)


def quiet() -> None:
    """Settles what a child of the test runner inherits from it."""
    torch.set_num_threads(1)  # a forked child would wait for ever for threads that its parent had
    random.seed(1)
    np.random.seed(1)
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)


def made(how: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model: nn.Module = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Dropout(0.1), nn.Linear(96, 47))
    if how == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model[0], mesh=mesh)
        model = fully_shard(model, mesh=mesh)
    torch.manual_seed(100 + dist.get_rank())  # dropout is another one on every rank
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def one_step(how: str, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, batch: torch.Tensor) -> None:
    if how == "apart":
        numbers = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = (parameter * torch.rand(1, generator=numbers)).detach().clone()
    else:
        model(batch).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of it."""
    found = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found.detach().contiguous()


def digest(model: nn.Module, optimizer: torch.optim.Optimizer, view: Callable[[torch.Tensor], torch.Tensor]) -> str:
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    tensors = [*model.parameters()]
    tensors += [part for parameter in model.parameters() for part in optimizer.state[parameter].values()]
    return str(Digest.of(b"".join(view(tensor).contiguous().numpy().tobytes() for tensor in tensors)))
