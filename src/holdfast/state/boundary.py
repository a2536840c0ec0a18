"""Where one optimizer step ends and the next begins, as torch's global step hook tells it."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class OptimizerSteps:
    """Counts the steps of some optimizers; a context, so that the hook is gone after the loop.

    A step that GradScaler skips fires no hook and is not counted. Optimizers that are not
    `torch.optim.Optimizer` and steps inside a replayed CUDA graph cannot be seen: `sees` is False
    where there is nothing to watch.
    """

    def __init__(self, objects: Iterable[object]) -> None:
        self._watched = {id(one) for one in objects if isinstance(one, torch.optim.Optimizer)}
        self._taken = 0
        self._handle: Any = None

    @property
    def sees(self) -> bool:
        """Whether there is any optimizer to watch."""
        return bool(self._watched)

    @property
    def taken(self) -> int:
        """Steps since the last `reset`."""
        return self._taken

    def reset(self) -> None:
        """Begin to count anew."""
        self._taken = 0

    def __enter__(self) -> Self:
        self._handle = register_optimizer_step_post_hook(self._hook)
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._handle.remove()

    def _hook(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(optimizer) in self._watched:
            self._taken += 1
