"""Which tensors may be copied after a save has returned: those that nothing writes before the next optimizer step.

A copy that goes on while the training does is right only for memory that stays
as it was at the boundary until the copy is complete. The global pre-step hook
of torch makes a step wait for that; whatever else writes (a running mean, an
average of the weights, an optimizer that knows no hook, the replay of a CUDA
graph) asks nobody. So only parameters and states of optimizers are candidates,
and of these only where all steps were seen to go through the hook.
`Tensor._version` proves nothing: fused kernels and ``.data`` do not change it.
"""

from __future__ import annotations

import bisect
import itertools
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Memory(NamedTuple):
    """The bytes that a tensor reaches, holes included."""

    device: str
    start: int
    end: int


def memory_of(tensor: Tensor) -> Memory | None:
    """Where a plain tensor lies; None for others, and for empty ones.

    Example:
        >>> whole = torch.zeros(4, 2)
        >>> a, b = memory_of(whole), memory_of(whole[1:])
        >>> a.end - a.start, b.start - a.start, b.end == a.end
        (32, 8, True)
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or not tensor.numel():
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return Memory(str(tensor.device), start, start + (last + 1) * tensor.element_size())


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepping:
    """How one optimizer has stepped since the last look."""

    tensors: tuple[Memory, ...]
    """Its parameters and its state."""
    steps: int
    """That went through the hook."""
    captured: bool
    """Whether its step is in a CUDA graph, or was made to be: replays call no hook."""


def lazy_places(
    sources: Sequence[Memory | None], optimizers: Iterable[Stepping], *, steps: int, steady: Collection[int]
) -> frozenset[int]:
    """The places in ``sources`` that may be copied while the training goes on. Pure.

    Args:
        sources: what is copied.
        optimizers: all that were ever seen.
        steps: optimizer steps of the training since the last look. An optimizer is trusted if it came through the
            hook at least as often: otherwise some steps were made where no hook is called.
        steady: places that were not seen to change between a boundary and a step.
    """
    known = list(optimizers)
    trusted = {memory for one in known if _trusted(one, steps) for memory in one.tensors}
    candidates = {place for place in steady if sources[place] in trusted}
    others = [memory for one in known if not _trusted(one, steps) for memory in one.tensors]
    others += [memory for place, memory in enumerate(sources) if memory is not None and place not in candidates]
    blocked = _Ranges(others)
    return frozenset(place for place in candidates if not blocked.touch(sources[place]))


def _trusted(one: Stepping, steps: int) -> bool:
    return one.steps >= steps > 0 and not one.captured


class _Ranges:
    """Pieces of memory, merged, so that overlaps are found by bisection."""

    def __init__(self, memories: Iterable[Memory]) -> None:
        self._merged: list[Memory] = []
        for memory in sorted(memories):
            last = self._merged[-1] if self._merged else None
            if last is not None and last.device == memory.device and memory.start <= last.end:
                self._merged[-1] = last._replace(end=max(last.end, memory.end))
            else:
                self._merged.append(memory)

    def touch(self, memory: Memory | None) -> bool:
        """Whether ``memory`` shares a byte with any of them."""
        if memory is None:
            return True
        at = bisect.bisect_left(self._merged, Memory(memory.device, memory.end, 0))
        before = self._merged[at - 1] if at else None
        return before is not None and before.device == memory.device and before.end > memory.start


class StepLog:
    """Which optimizers have stepped through the hook, how often, and whether into a CUDA graph. Keeps none alive."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._looked: int | None = None

    def step(self, optimizer: Optimizer, *, captured: bool) -> None:
        """One step of it begins."""
        seen = self._seen.get(id(optimizer))
        if seen is None or seen.optimizer() is not optimizer:
            seen = self._seen[id(optimizer)] = _Seen(weakref.ref(optimizer))
        seen.steps += 1
        seen.captured = seen.captured or captured

    def look(self, step: int) -> tuple[list[Stepping], int]:
        """How each has stepped since the last look, and how many steps the training has made; counts anew.

        Args:
            step: completed optimizer steps of the training.
        """
        self._seen = {key: seen for key, seen in self._seen.items() if seen.optimizer() is not None}
        made = 0 if self._looked is None else max(0, step - self._looked)
        found = [seen.taken() for seen in self._seen.values()]
        self._looked = step
        return found, made

    def forget(self) -> None:
        """The training goes on from another step: nothing counts until the next look."""
        self._looked = None


@dataclass(slots=True)
class _Seen:
    optimizer: weakref.ref[Optimizer]
    steps: int = 0
    captured: bool = False

    def taken(self) -> Stepping:
        steps, self.steps = self.steps, 0
        return stepping(self.optimizer(), steps, captured=self.captured)


def stepping(optimizer: Optimizer | None, steps: int, *, captured: bool) -> Stepping:
    """What is known of an optimizer that came so often through the hook; None: it is gone."""
    if optimizer is None:
        return Stepping(tensors=(), steps=steps, captured=captured)
    captured = captured or any(group.get("capturable") for group in optimizer.param_groups)
    memories = (memory_of(tensor) for tensor in _owned(optimizer))
    return Stepping(tensors=tuple(found for found in memories if found), steps=steps, captured=captured)


def _owned(optimizer: Optimizer) -> Iterator[Tensor]:
    # Not what else is in the groups: a learning rate in a tensor is written by its scheduler.
    for group in optimizer.param_groups:
        yield from group["params"]
    yield from _tensors_in(optimizer.state)


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_tensors_in, tuple(value.values())))
    elif isinstance(value, (list, tuple, deque)):
        yield from itertools.chain.from_iterable(map(_tensors_in, tuple(value)))


class Watch:
    """Which tensors are seen to be written between a boundary and the next step; by name.

    No proof that they are not (see above), but whoever clips weights, or perturbs them before the step, is found out.
    """

    def __init__(self) -> None:
        self._steady: set[str] = set()
        self._unsteady: set[str] = set()
        self._noted: list[tuple[str, Tensor, int | None]] = []

    def steady(self, names: Sequence[str]) -> frozenset[int]:
        """The places of those that were watched and never changed."""
        return frozenset(place for place, name in enumerate(names) if name in self._steady)

    def begin(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """This is the boundary. Holds the tensors until `end`."""
        self._noted = [(name, tensor, _version(tensor)) for name, tensor in zip(names, tensors, strict=True)]

    def end(self) -> list[str]:
        """The step begins: which have changed; the first call since `begin` counts, later ones find nothing."""
        noted, self._noted = self._noted, []
        changed = [name for name, tensor, was in noted if was is None or _version(tensor) != was]
        self._unsteady |= set(changed)
        self._steady |= {name for name, _, _ in noted}
        self._steady -= self._unsteady
        return changed


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
