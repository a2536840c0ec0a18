"""One hook before every step of every torch optimizer, for as long as somebody listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

Listener = Callable[[Optimizer], None]


class StepHook:
    """The global pre-step hook, counted by its listeners: the first one brings it, the last one takes it away.

    Called in the thread that steps, before anything of the step is put on a stream; with a step that is recorded into
    a CUDA graph only then, not when the graph is replayed. Not for optimizers that are no `torch.optim.Optimizer`,
    nor for subclasses that do not call its ``__init__``.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._handle: Any = None

    @property
    def installed(self) -> bool:
        """Whether torch calls it."""
        return self._handle is not None

    def add(self, listener: Listener) -> None:
        """Calls ``listener`` with the optimizer before each step, until it is removed as often as it was added."""
        self._listeners.append(listener)
        if self._handle is None:
            # A compiler that traced it would replay what it did once, and not call it.
            seen_as_it_is: Any = torch._dynamo.disable
            self._handle = register_optimizer_step_pre_hook(seen_as_it_is(self._before_step))

    def remove(self, listener: Listener) -> None:
        """The listener hears no more; one that is not there is no error."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if not self._listeners and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for listener in tuple(self._listeners):
            listener(optimizer)


STEP_HOOK = StepHook()
"""The one of this process."""
