"""Learning rates, wherever optimizers and schedulers keep them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_OF_SCHEDULERS = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")


def scale_rates(objects: Iterable[object], factor: float) -> list[float]:
    """Multiplies every learning rate of the given optimizers, and what their schedulers compute it from.

    A scheduler goes on with the same curve, that much lower, and keeps it in checkpoints. A floor that
    a scheduler was given as one number (``eta_min``) stays where it is. Each is multiplied once, in however many
    places it lies. What nobody registered, or the program itself, may set rates back: see `free_rates`.

    Returns:
        The rates of all groups of the optimizers, as they are now.
    """
    known = list(objects)
    groups, done = _groups(known), set[int]()
    for group in groups:
        for key in _OF_GROUPS:
            if key in group:
                group[key] = _scaled(group[key], factor, done)
    for scheduler in _schedulers(known):
        for key in _OF_SCHEDULERS:
            if isinstance(rates := getattr(scheduler, key, None), list):
                setattr(scheduler, key, [_scaled(rate, factor, done) for rate in rates])
    return [float(group["lr"]) for group in groups]


def free_rates(objects: Iterable[object]) -> list[float]:
    """The rates of the groups that no scheduler among the given objects sets: they keep what they were scaled to.

    A rate that is a tensor on a device is waited for.
    """
    known = list(objects)
    ruled = {id(group) for one in _schedulers(known) for group in one.optimizer.param_groups}
    return [float(group["lr"]) for group in _groups(known) if id(group) not in ruled]


def set_back(before: Sequence[float], now: Sequence[float], factor: float) -> bool:
    """Whether a rate that was scaled by ``factor`` is by now nearer to what it was before.

    Nearer, for whoever sets it follows a curve of its own.

    Example:
        >>> set_back([0.1], [0.05], 0.5), set_back([0.1], [0.0499], 0.5), set_back([0.1], [0.0998], 0.5)
        (False, False, True)
    """
    pairs = [(old, new) for old, new in zip(before, now, strict=False) if 0 < old < math.inf and 0 < new < math.inf]
    return any(abs(math.log(new / old)) < abs(math.log(new / (old * factor))) for old, new in pairs)


def _scaled(rate: Any, factor: float, done: set[int]) -> Any:
    """``done``: the ids of tensors, for torch gives one and the same to all groups."""
    if not isinstance(rate, torch.Tensor):
        return rate * factor
    if id(rate) not in done:
        done.add(id(rate))
        rate.mul_(factor)  # a captured graph reads it where it lies
    return rate


def _groups(objects: Iterable[object]) -> list[dict[str, Any]]:
    """Each once, whether an optimizer has two names or a wrapper beside it."""
    groups = [group for one in objects if isinstance(one, Optimizer) for group in one.param_groups]
    return list({id(group): group for group in groups}.values())


def _schedulers(objects: Iterable[object]) -> list[LRScheduler]:
    """Each once, and what chains are made of."""
    return list({id(one): one for one in _chained(objects)}.values())


def _chained(objects: Iterable[object]) -> Iterator[LRScheduler]:
    for one in objects:
        if isinstance(one, LRScheduler):
            yield one
            yield from _chained(getattr(one, "_schedulers", ()))
