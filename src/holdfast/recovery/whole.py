"""Everything that one checkpoint holds: the registered objects, and what is saved without being asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.state import Snapshot, capture
from holdfast.state.capture import collect
from holdfast.state.values_torch import GENERATORS, generator_state, set_generator_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The live state of a training."""

    objects: Mapping[str, object]
    values: dict[str, Any]
    """The user's; changed in place by a restore."""
    files: dict[str, bytes]
    """Attached files by name."""

    def snapshot(self, *, rng: dict[str, Any], data: dict[str, Any] | None) -> Snapshot:
        """The state at this instant, with random states and the position in the data as given."""
        # As tensors, files are segments like everything else: equal ones are stored once.
        files = {name: torch.frombuffer(bytearray(raw), dtype=torch.uint8) for name, raw in self.files.items() if raw}
        empty = [name for name, raw in self.files.items() if not raw]
        parts = {"user": self.values, "rng": rng, "data": data, "files": files, "empty_files": empty}
        return capture(self.objects, parts, rng=False)

    def check(self) -> None:
        """Refuses, before the first step, what no save could write; copies nothing.

        Raises:
            InvalidInput, StateError: as `holdfast.state.capture`.
        """
        collect(self.objects, {"user": self.values})

    @contextmanager
    def generators_kept(self) -> Iterator[None]:
        """Leaves registered generators where they are: a replay draws from those that a sampler shares with others."""
        before = [(one, generator_state(one)) for one in self.objects.values() if isinstance(one, GENERATORS)]
        yield
        for one, state in before:
            set_generator_state(one, state)

    def take(self, parts: Mapping[str, Any]) -> None:
        """Puts back what `snapshot` took beside the objects; files of the checkpoint do not replace newer ones."""
        self.values.clear()
        self.values.update(parts["user"])
        stored = {name: bytes(tensor.numpy()) for name, tensor in parts["files"].items()}
        for name, raw in {**stored, **dict.fromkeys(parts["empty_files"], b"")}.items():
            self.files.setdefault(name, raw)
