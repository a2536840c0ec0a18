"""Gradients are no part of a checkpoint: they belong to the batch at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def clear_gradients(objects: Iterable[object]) -> None:
    """Lets go of the gradients of every parameter of the given modules and optimizers, and of given parameters."""
    for one in objects:
        for parameter in _parameters(one):
            parameter.grad = None


def _parameters(one: object) -> Iterator[Tensor]:
    if isinstance(one, nn.Module):
        yield from one.parameters()
    elif isinstance(one, torch.optim.Optimizer):
        yield from (parameter for group in one.param_groups for parameter in group["params"])
    elif isinstance(one, nn.Parameter):
        yield one
