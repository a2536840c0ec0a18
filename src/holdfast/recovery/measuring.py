"""Metrics as a user logs them, and as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.errors import InvalidInput


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as numbers; tensors and NumPy scalars are read here, when a checkpoint needs them.

    Raises:
        InvalidInput: a tensor or an array that is not one number.
    """
    return {name: _number(name, value) for name, value in metrics.items()}


def _number(name: str, value: Any) -> Any:
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (ValueError, RuntimeError) as error:
        raise InvalidInput(f"log({name}=) wants one number, not {getattr(value, 'shape', value)}: {error}") from error
