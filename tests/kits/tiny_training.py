"""A training of a few tensors, fast enough to be run a thousand times, and what it must give at every step.

The batch of each step is drawn from the global generator, so a wrong weight, a
wrong optimizer or a wrong random state each give another fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import holdfast
from holdfast import Checkpointer, every
from holdfast.ids import Digest
from holdfast.records import Record


def tiny(seed: int = 3, width: int = 32) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with a tensor that goes to a pack (over 1 KiB) and one that stays in the tree, and its optimizer."""
    torch.set_num_threads(1)  # a child that is forked after torch has started threads would wait for them for ever
    torch.manual_seed(seed)
    model = nn.Linear(16, width)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """A step on a random batch; gives the loss."""
    optimizer.zero_grad()
    loss = model(torch.randn(4, 16)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def digest_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str:
    """The digest of all weights, and of the optimizer's moments."""
    tensors = [*model.state_dict().values()]
    if optimizer is not None:
        tensors += [part for one in optimizer.state_dict()["state"].values() for part in one.values()]
    return str(Digest.of(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)))


@cache
def expected(steps: int = 16) -> tuple[str, ...]:
    """The digest after 0, 1, 2 ... steps of a training without any checkpoint."""
    model, optimizer = tiny()
    found = [digest_of(model, optimizer)]
    for _ in range(steps):
        one_step(model, optimizer)
        found.append(digest_of(model, optimizer))
    return tuple(found)


@dataclass
class Trained:
    """What a launch did."""

    ckpt: Checkpointer
    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: list[int] = field(default_factory=list)
    """The steps that the loop was given."""

    @property
    def digest(self) -> str:
        return digest_of(self.model, self.optimizer)


def launched(
    store: Path | str,
    total: int,
    *,
    then: Callable[[int, Checkpointer], Any] = lambda step, ckpt: None,
    **options: Any,
) -> Trained:
    """One launch of the script: builds everything anew, trains up to ``total`` steps, calls ``then`` after each.

    It saves in line unless told otherwise: file operations of this very process are what is failed and counted.
    """
    model, optimizer = tiny()
    settings: dict[str, Any] = {
        "run": "toy",
        "save": every(steps=2),
        "keep": holdfast.latest(3),
        "saver": "inline",
    } | options
    with Checkpointer(store, state={"model": model, "optimizer": optimizer}, **settings) as ckpt:
        done = Trained(ckpt, model, optimizer)
        for step in ckpt.steps(total):
            done.steps.append(step)
            ckpt.log(loss=one_step(model, optimizer))
            then(step, ckpt)
    return done


def records_of(store: Path | str, run: int = 1) -> list[Record]:
    """The committed checkpoints of a run, oldest first."""
    return holdfast.open(store).run(run).records()


def steps_of(store: Path | str, run: int = 1) -> list[int]:
    """The steps at which there is a checkpoint, oldest first."""
    return [record.step for record in records_of(store, run)]


class Stop(Exception):  # it is raised in place of a crash
    """Ends a training from within, as a crash of the user's own code does."""


def crash_at(step: int) -> Callable[[int, Checkpointer], None]:
    """For ``then``: the user's code fails in the body of ``step``."""

    def then(at: int, ckpt: Checkpointer) -> None:
        if at == step:
            raise Stop(f"at step {at}")

    return then
