"""Metrics as a user logs them, and as they are stored."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch

from holdfast.errors import InvalidInput


def taken(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as they are now: numbers, and on other devices a private tensor, which is read when it is needed.

    Raises:
        InvalidInput: something that is not one number.
    """
    return {name: _taken(name, value) for name, value in metrics.items()}


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What `taken` gave as numbers; waits for devices."""
    return {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}


def _taken(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        # Reading a tensor of another device would make the loop wait for it; keeping it would keep its graph alive.
        return value.item() if value.device.type == "cpu" else value.detach().clone()
    if getattr(value, "size", 0) == 1 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    shape = getattr(value, "shape", None)
    what = type(value).__name__ if shape is None else f"{type(value).__name__} of shape {list(shape)}"
    raise InvalidInput(f"log({name}=) wants one number, not a {what}")
