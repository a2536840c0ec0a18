"""Everything that one checkpoint holds: the registered objects, and what is saved without being asked."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from holdfast.state import Snapshot, capture
from holdfast.state.capture import collect
from holdfast.state.division import Division
from holdfast.state.values_torch import GENERATORS, generator_state, set_generator_state


@dataclass(slots=True, kw_only=True)
class Whole:
    """The live state of a training.

    Values are copies when they come back: a tensor among them that was a parameter, or a view of one, is none any more.
    """

    objects: Mapping[str, object]
    values: dict[str, Any]
    """The user's; changed in place by a restore."""
    files: dict[str, bytes]
    """Attached files by name."""
    rank: int = 0
    _division: Division | None = None

    def snapshot(self, *, rng: dict[str, Any], data: dict[str, Any] | None) -> Snapshot:
        """The state at this instant, with random states and the position in the data as given."""
        # As tensors, files are segments like everything else: equal ones are stored once.
        files = {name: torch.frombuffer(bytearray(raw), dtype=torch.uint8) for name, raw in self.files.items() if raw}
        empty = [name for name, raw in self.files.items() if not raw]
        parts = {"user": self.values, "files": files, "empty_files": empty}
        own = {"rng": rng, "data": data}
        with _uncollected():
            snapshot = capture(self.objects, parts, own=own, rank=self.rank, known=self._division)
        self._division = snapshot.division
        return replace(snapshot, anomalies=(*snapshot.anomalies, *_shared_values(snapshot)))

    def check(self) -> None:
        """Refuses, before the first step, what no save could write; copies nothing.

        Lazy modules that wait for their first forward pass may still do so: only a save needs their parameters.

        Raises:
            InvalidInput, StateError: as `holdfast.state.capture`.
        """
        waiting = [one for one in self.objects.values() if isinstance(one, nn.Module) and _is_waiting(one)]
        named = [name for name, one in self.objects.items() if not any(one is lazy for lazy in waiting)]
        collect(self.objects, {"user": self.values}, only=named)

    @contextmanager
    def generators_kept(self) -> Iterator[None]:
        """Leaves registered generators where they are: a replay draws from those that a sampler shares with others."""
        before = self.generators()
        try:
            yield
        finally:
            for one, state in before:
                set_generator_state(one, state)

    def generators(self) -> list[tuple[Any, dict[str, Any]]]:
        """Registered generators, with their states."""
        return [(one, generator_state(one)) for one in self.objects.values() if isinstance(one, GENERATORS)]

    def take(self, parts: Mapping[str, Any]) -> None:
        """Puts back what `snapshot` took beside the objects; files of the checkpoint do not replace newer ones."""
        self.values.clear()
        self.values.update(parts["user"])
        stored = {name: bytes(tensor.numpy()) for name, tensor in parts["files"].items()}
        for name, raw in {**stored, **dict.fromkeys(parts["empty_files"], b"")}.items():
            self.files.setdefault(name, raw)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Holds the garbage collector off: thousands of small objects that live on cost hundreds of its rounds in vain."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _is_waiting(module: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers()))


def _shared_values(snapshot: Snapshot) -> list[str]:
    """Values that live in the memory of an object: they are of their own after a restore."""
    found = []
    for name, others in snapshot.aliases.items():
        inside = [path for path in (name, *others) if path.startswith("values/user/")]
        outside = [path for path in (name, *others) if not path.startswith("values/")]
        if inside and outside:
            found.append(f"{', '.join(inside)} is {outside[0]} itself, and a copy of it after a restore; keep a clone")
    return found
