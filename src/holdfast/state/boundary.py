"""Where one optimizer step ends and the next begins, and whether anything has changed since."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class OptimizerSteps:
    """Counts the steps of some optimizers; a context, so that the hook is gone after the loop.

    Where a wrapper stands around an optimizer (accelerate's names the inner one ``optimizer``), the inner one is
    watched, for the hook belongs to it. A step that GradScaler skips fires no hook and is not counted. Optimizers
    that are not `torch.optim.Optimizer` and steps inside a replayed CUDA graph cannot be seen: `sees` is False where
    there is nothing to watch.
    """

    def __init__(self, objects: Iterable[object]) -> None:
        found = [_innermost(one) for one in objects if isinstance(one, torch.optim.Optimizer)]
        self._watched = {id(one): one for one in found}
        self._stepped: set[int] = set()
        self._open: set[int] = set()
        self._taken = self._seen = 0
        self._handles: list[Any] = []

    @property
    def sees(self) -> bool:
        """Whether there is any optimizer to watch."""
        return bool(self._watched)

    @property
    def taken(self) -> int:
        """Steps since the last `reset`."""
        return self._taken

    @property
    def seen(self) -> int:
        """As `taken`, with the steps of optimizers that are not watched: they change parameters all the same."""
        return self._seen

    @property
    def torn(self) -> bool:
        """Whether a step of any optimizer has begun and did not come to its end: it has changed what it came to.

        If the program makes that step once more, it wants what comes of it.
        """
        return bool(self._open)

    def reset(self) -> None:
        """Begin to count anew."""
        self._taken = self._seen = 0
        self._stepped.clear()
        self._open.clear()

    def lagging(self) -> list[torch.optim.Optimizer]:
        """Those that made no step since the last `reset` and hold gradients: they are in the middle of a sum.

        Gradients that are only waiting to be cleared look the same. Looks at every parameter.
        """
        waiting = [one for key, one in self._watched.items() if key not in self._stepped]
        return [
            one for one in waiting if any(p.grad is not None for group in one.param_groups for p in group["params"])
        ]

    def __enter__(self) -> Self:
        self._handles = [register_optimizer_step_pre_hook(self._begins), register_optimizer_step_post_hook(self._ended)]
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _begins(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._open.add(id(optimizer))

    def _ended(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen += 1
        self._open.discard(id(optimizer))
        if id(optimizer) in self._watched:
            self._taken += 1
            self._stepped.add(id(optimizer))


_INNER = ("optimizer", "_optimizer", "base_optimizer")
"""How accelerate, others, and optimizers that look around (SAM, Lookahead) name the one that makes the steps."""


def _innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    seen: set[int] = set()
    while id(optimizer) not in seen:
        seen.add(id(optimizer))
        parts = (vars(optimizer).get(name) for name in _INNER)
        optimizer = next((part for part in parts if isinstance(part, torch.optim.Optimizer)), optimizer)
    return optimizer


_Buffer = tuple[Tensor | None, int]
"""With its version."""

KEPT = 4 * 2**20
"""Bytes of buffers up to which a copy of the boundary is kept: running means are small, tables of positions are not."""


class BufferChanges:
    """Whether the persistent buffers of some modules were changed since a boundary: a forward pass counts batches.

    Sees assignments and writes in place. Writes through ``.data`` leave no trace that could be seen without reading
    every byte. Where buffers are small, a copy of each is kept on its device, so that a forward pass that came to
    nothing can be undone.
    """

    def __init__(self, objects: Iterable[object]) -> None:
        self._modules = [one for one in objects if isinstance(one, nn.Module)]
        self._places: list[tuple[dict[str, Tensor | None], str]] = []
        self._noted: list[_Buffer] = []
        self._copies: list[Tensor] | None = None
        """Of all buffers, in order; empty: they are not kept; None: not looked at yet."""

    def look(self) -> None:
        """Finds the buffers; too slow for every step, so buffers that are registered later are not seen."""
        modules = (part for one in self._modules for part in one.modules())
        self._places = [
            (part._buffers, name)
            for part in modules
            for name in part._buffers
            if name not in part._non_persistent_buffers_set
        ]
        self._noted, self._copies = [], None

    def note(self) -> None:
        """This is the boundary."""
        now = self._now()
        if self._copies is None or not _same(now, self._noted):
            self._copies = _copies([one for one, _ in now])
        elif self._copies:
            self._update(now)
        self._noted = now

    def _update(self, now: list[_Buffer]) -> None:
        """Brings the copies up to date, all in one call: batch norm changes its means and tells only of its count."""
        if any(old != new for (_, old), (_, new) in zip(self._noted, now, strict=True)):
            with torch.no_grad():
                torch._foreach_copy_(self._copies or [], [one for one, _ in now if one is not None])

    @property
    def any(self) -> bool:
        """Whether there are changes since `note`."""
        now = self._now()
        return not _same(now, self._noted) or any(x != y for (_, x), (_, y) in zip(now, self._noted, strict=True))

    def undo(self) -> bool:
        """Puts the boundary's content back into the buffers that have changed; False: there is no copy of it."""
        now = self._now()
        if not self._copies or not _same(now, self._noted):
            return False  # another tensor is registered: nobody knows what else has changed
        with torch.no_grad():
            for copy, (live, _) in zip(self._copies, now, strict=True):
                if live is not None:  # as there are copies, none is
                    live.copy_(copy)
        self._noted = self._now()
        return True

    def _now(self) -> list[_Buffer]:
        return [(tensor := buffers.get(name), _version(tensor)) for buffers, name in self._places]


class ParameterChanges:
    """Whether parameters of some modules, and tensors of their own, were written to or moved since a boundary.

    Optimizers do that, too. Writes in place through ``.data`` leave no trace. Tensors that are registered later are
    not seen.
    """

    def __init__(self, objects: Iterable[object]) -> None:
        self._objects = [one for one in objects if isinstance(one, (nn.Module, Tensor))]
        self._tensors: list[Tensor] = []
        self._placed: list[Tensor] = []
        """Those of them whose memory can be told."""
        self._noted: tuple[list[int], list[int]] = ([], [])

    def look(self) -> None:
        """Finds them; too slow for every step."""
        parts = (one.parameters() if isinstance(one, nn.Module) else (one,) for one in self._objects)
        self._tensors = [tensor for part in parts for tensor in part if is_lazy(tensor) or not tensor.is_inference()]
        self._placed = [one for one in self._tensors if type(one) in _STORED and one.layout is torch.strided]
        self.note()

    def note(self) -> None:
        """This is the boundary."""
        self._noted = self._now()

    @property
    def any(self) -> bool:
        """Whether there are changes since `note`."""
        return self._now() != self._noted

    def _now(self) -> tuple[list[int], list[int]]:
        return [one._version for one in self._tensors], [one.data_ptr() for one in self._placed]


_STORED = (Tensor, nn.Parameter)


def _same(now: list[_Buffer], then: list[_Buffer]) -> bool:
    return len(now) == len(then) and all(a is b for (a, _), (b, _) in zip(now, then, strict=True))


def _copies(buffers: Iterable[Tensor | None]) -> list[Tensor]:
    """Private copies, or none at all where they are large or of an odd kind."""
    found = list(buffers)
    live = [one for one in found if one is not None and _plain(one)]
    if len(live) < len(found) or sum(one.nbytes for one in live) > KEPT:
        return []
    return [one.detach().clone() for one in live]


def _plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and not tensor.is_inference() and tensor.layout is torch.strided


def _version(tensor: Tensor | None) -> int:
    # Tensors of inference mode have no version, and cannot be written to outside of it.
    return 0 if tensor is None or tensor.is_inference() else tensor._version
