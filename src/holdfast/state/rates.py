"""Learning rates, wherever optimizers and schedulers keep them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr")
_OF_SCHEDULERS = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")


def scale_rates(objects: Iterable[object], factor: float) -> list[float]:
    """Multiplies every learning rate of the given optimizers, and what their schedulers compute it from.

    A scheduler goes on with the same curve, that much lower, and keeps it in checkpoints. A floor that
    a scheduler was given as one number (``eta_min``) stays where it is.

    Returns:
        The rates of all groups of the optimizers, as they are now.
    """
    known = list(objects)
    optimizers = [one for one in known if isinstance(one, Optimizer)]
    groups = [group for one in optimizers for group in one.param_groups]
    for group in groups:
        for key in _OF_GROUPS:
            if key in group:
                group[key] = _scaled(group[key], factor)
    for scheduler in _schedulers(known):
        for key in _OF_SCHEDULERS:
            if isinstance(rates := getattr(scheduler, key, None), list):
                setattr(scheduler, key, [_scaled(rate, factor) for rate in rates])
    return [float(group["lr"]) for group in groups]


def _scaled(rate: Any, factor: float) -> Any:
    if isinstance(rate, torch.Tensor):
        return rate.mul_(factor)  # a captured graph reads it where it lies
    return rate * factor


def _schedulers(objects: Iterable[object]) -> Iterator[object]:
    for one in objects:
        if isinstance(one, LRScheduler):
            yield one
            yield from _schedulers(getattr(one, "_schedulers", ()))
