"""One training, lived in one go or in several lives in a row: both must come to the same.

A life is a launch with objects of its own; it dies by an exception in the body
of the loop, so that nothing is saved for it. Every life begins with other
random states and other weights than the one before: what is not restored shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from toy_training import model_of

import holdfast
from holdfast import Checkpointer, every
from holdfast.catalog.naming.references import resolve
from holdfast.records import Record
from holdfast.recovery.restoring.loading import load_objects

__all__ = ["Death", "Program", "digest", "filled", "line", "lived", "model_of", "records", "seeded_life", "stored"]


class Death(Exception):
    """The end of a life."""


@dataclass
class Program:
    """What a training script makes: objects to save, an update that answers something comparable, and a loader."""

    state: Mapping[str, Any]
    update: Callable[[Any], object]
    loader: Iterable[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def seeded_life(number: int) -> None:
    """The random states that a new process happens to have."""
    torch.manual_seed(1000 + number)
    np.random.seed(2000 + number)
    random.seed(3000 + number)


def lived(
    folder: Path, build: Callable[[], Program], *, total: int, deaths: Iterable[int] = (), **options: Any
) -> dict[int, str]:
    """What each step answered, in the life that was the last one to make it, and at -1 what all state is in the end.

    A death at a step comes after its update and before its boundary, so that the next life repeats it.
    """
    seen: dict[int, str] = {}
    for number, death in enumerate([*deaths, None]):
        seeded_life(number)
        program = build()
        _live(folder, program, total, death, seen, {"save": every(steps=2), **program.options, **options})
    seen[-1] = digest(program.state)
    return seen


def _live(folder, program, total, death, seen, options) -> None:
    try:
        with Checkpointer(folder, run="lives", state=program.state, **options) as ckpt:
            loop = (
                ckpt.batches(program.loader, total_steps=total)
                if program.loader is not None
                else ((step, None) for step in ckpt.steps(total))
            )
            for step, batch in loop:
                answer = program.update(batch)
                seen[step] = seen.get(step, "") if answer is None else repr(answer)
                if step == death:
                    raise Death
    except Death:
        pass


def digest(state: Mapping[str, Any]) -> str:
    """Everything that the objects say about themselves, to the bit."""
    return repr({name: _said(value.state_dict()) for name, value in state.items() if hasattr(value, "state_dict")})


def _said(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().view(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), bytes(flat.numpy())
    if isinstance(value, Mapping):
        return {key: _said(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_said(item) for item in value]
    return value


def filled(module: nn.Module, value: float) -> nn.Module:
    """A module all of whose parameters have one value: a step that can be recognised."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def records(folder: Path, run: int = 1) -> list[Record]:
    """All committed checkpoints of a run, in order."""
    return holdfast.open(folder).run(run).records()


def line(folder: Path, run: int = 1) -> list[int]:
    """The steps on the line of the head, oldest first."""
    here = holdfast.open(folder).run(run)
    lineage = here.lineage()
    return [] if lineage.head is None else [target.step for target in lineage.ancestors(lineage.head)][::-1]


def stored(folder: Path, reference: str, module: nn.Module, name: str = "model") -> nn.Module:
    """``module`` as a checkpoint has it; no launch is made for it."""
    store = holdfast.open(folder)
    load_objects(store, resolve(store, reference), {name: module}, only=[name])
    return module
