"""Nested Python structures, flattened: tagged JSON on one side, plain tensors on the other.

`Collector` flattens: every tensor becomes ``{"$": "tensor", "name": path}`` and
an entry of its list. Tensors over the same memory (same address, shape,
strides and dtype) are one entry with aliases. Tensors that share memory only
in part are stored apart; that their aliasing is lost is said.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import values
from holdfast.state import composites, tensors
from holdfast.state.held import Held, Sharing, held, is_sharded
from holdfast.trees import Lifetime, Spread, TensorSpec
from holdfast.values import Json

_MASK_LIMIT = 1 << 26
# Overlap in larger storages is judged by address ranges, which may call interleaved views overlapping.


@dataclass(slots=True)
class _Entry:
    name: str
    tensor: Tensor
    lifetime: Lifetime
    shape: tuple[int, ...]
    spread: Spread | None
    sharing: Sharing | None
    aliases: list[str] = field(default_factory=list)
    leaves: list[dict[str, Json]] = field(default_factory=list)

    def spec(self) -> TensorSpec:
        return TensorSpec(
            name=self.name,
            dtype=tensors.dtype_name(self.tensor.dtype),
            shape=self.shape,
            lifetime=self.lifetime,
            # A shard may be dense where another one is not, and all ranks must say the same.
            dim_order=tensors.dim_order(self.tensor) if self.spread is None else (),
            aliases=tuple(self.aliases),
            spread=self.spread,
        )


class Collector:
    """Collects the tensors of a state while its values are encoded. Not thread-safe; holds references only."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._sharing: Sharing | None = None
        self._by_memory: dict[tuple[Any, ...], _Entry] = {}
        self._by_name: dict[str, _Entry] = {}
        self._by_object: dict[int, tuple[Tensor, _Entry]] = {}
        """DTensors: of one that is tied nothing may be here that would tell."""
        self._subclasses: Counter[tuple[str, str]] = Counter()
        """By object and class, how many tensors there are among values, not in modules."""

    @contextmanager
    def shared(self, sharing: Sharing | None) -> Iterator[None]:
        """Within it, what other ranks are known to have of each tensor that says nothing of that by itself."""
        before, self._sharing = self._sharing, sharing
        try:
            yield
        finally:
            self._sharing = before

    def encode(self, value: object, path: str) -> Json:
        """The tagged JSON of any value; tensors and arrays within are collected.

        Raises:
            UnsupportedValue, UnsupportedTensor: with the path of what cannot be stored.
        """
        found = self._leaf(value, path)  # most values of an optimizer are tensors
        return values.encode(value, path, leaf=self._leaf) if found is None else found

    def tensor(self, tensor: Tensor, path: str, lifetime: Lifetime = Lifetime.OPTIMIZER) -> dict[str, Json]:
        """The tagged JSON of one tensor, plain or composite, which is collected.

        Args:
            tensor: any; of a DTensor, what is here.
            path: under which it is stored.
            lifetime: of its bytes.

        Raises:
            UnsupportedTensor: it has no bytes that could be stored.
        """
        tensors.check_bytes(tensor, path)
        if (known := self._by_object.get(id(tensor))) is not None:
            return self._alias(known[1], path)
        here = held(tensor, path, self._sharing)
        parts = composites.split(here.local, path)
        if parts is None:
            leaf = self._plain(here, path, lifetime)
            if here.local is not tensor:
                self._by_object[id(tensor)] = tensor, self._by_name[leaf["name"]]
            return leaf
        names = parts.parts.items()
        inner = {name: self.tensor(part, values.join(path, name), lifetime) for name, part in names}
        return {**parts.facts, "parts": inner}

    def finish(self) -> tuple[list[tuple[TensorSpec, Tensor]], list[str]]:
        """All tensors with their specs, in the order of collection, and what was noticed about them."""
        notes = []
        for a, b in self._overlaps():
            notes.append(f"aliasing lost: {a.name} and {b.name} share memory in part")
            for leaf in a.leaves + b.leaves:
                leaf["overlaps"] = True
        for (name, what), count in self._subclasses.items():
            notes.append(
                f"{name} has {count} tensors of {what}, which are filled where they exist and cannot be made anew: a "
                "new process resumes from this only if it makes them before"
            )
        return [(entry.spec(), entry.tensor) for entry in self._entries], notes

    def homes(self) -> dict[str, Tensor]:
        """The live tensors by name and by alias; DTensors as such."""
        found = {path: entry.tensor for entry in self._entries for path in (entry.name, *entry.aliases)}
        whole = self._by_object.values()
        return found | {path: tensor for tensor, entry in whole for path in (entry.name, *entry.aliases)}

    def sharings(self) -> list[Sharing | None]:
        """Per tensor, in the same order, who else has the same."""
        return [entry.sharing for entry in self._entries]

    def _leaf(self, value: object, path: str) -> Json:
        if isinstance(value, Tensor):
            found = self.tensor(value, path)
            if found["$"] == "tensor":
                found |= {"parameter": True} if isinstance(value, torch.nn.Parameter) else {}
                found |= {"grad": True} if value.requires_grad and value.is_leaf else {}
                found |= {"sharded": True} if is_sharded(value) else {}
            elif found["$"] == "subclass":
                self._subclasses[path.partition("/")[0], found["class"]] += 1
            return found
        if type(value) is np.ndarray:
            return {"$": "ndarray", "data": self.tensor(composites.shared_array(value, path), path)}
        return None

    def _plain(self, here: Held, path: str, lifetime: Lifetime) -> dict[str, Json]:
        tensors.check_plain(here.local, path)
        tensor = tensors.plain(here.local)
        tensors.check_memory(tensor, path)
        place = (str(tensor.device), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, here.spread)
        # A conjugated or negated view is another value at the same address; empty tensors have none.
        key = (*place, tensor.is_conj(), tensor.is_neg())
        entry = self._by_memory.get(key) if tensor.numel() else None
        if entry is None:
            entry = self._by_memory[key] = _Entry(path, tensor, lifetime, here.shape, here.spread, here.sharing)
            self._entries.append(entry)
            self._by_name[path] = entry
            return self._leaf_of(entry)
        return self._alias(entry, path)

    def _alias(self, entry: _Entry, path: str) -> dict[str, Json]:
        entry.aliases.append(path)
        return self._leaf_of(entry)

    def _leaf_of(self, entry: _Entry) -> dict[str, Json]:
        leaf: dict[str, Json] = {"$": "tensor", "name": entry.name}
        entry.leaves.append(leaf)
        return leaf

    def _overlaps(self) -> Iterator[tuple[_Entry, _Entry]]:
        by_storage: dict[tuple[str, int], list[_Entry]] = defaultdict(list)
        for entry in self._entries:
            if entry.tensor.numel():
                storage = entry.tensor.untyped_storage()
                by_storage[str(entry.tensor.device), storage.data_ptr()].append(entry)
        for entries in filter(_several, by_storage.values()):
            yield from _overlapping(sorted(entries, key=lambda entry: _span(entry.tensor)))


def homes(value: object, path: str) -> dict[str, Tensor]:
    """The live tensors in a value, by their paths when it is stored at ``path``; errors as of `Collector.encode`."""
    collector = Collector()
    collector.encode(value, path)
    return collector.homes()


def leaves(data: Json) -> Iterator[dict[str, Any]]:
    """Every plain tensor in tagged JSON, in order, aliases included."""
    if isinstance(data, dict):
        if data.get("$") == "tensor":
            yield data
            return
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from leaves(item)


def _several(entries: list[_Entry]) -> bool:
    return len(entries) > 1


def _span(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _overlapping(entries: list[_Entry]) -> Iterator[tuple[_Entry, _Entry]]:
    for i, a in enumerate(entries):
        end = _span(a.tensor)[1]
        for b in entries[i + 1 :]:
            if _span(b.tensor)[0] >= end:
                break
            if _share(a.tensor, b.tensor):
                yield a, b


def _share(a: Tensor, b: Tensor) -> bool:
    (begin, end_a), (begin_b, end_b) = _span(a), _span(b)
    size, offset = a.element_size(), begin_b - begin
    count = (max(end_a, end_b) - begin) // size
    if b.element_size() != size or offset % size or count > _MASK_LIMIT:
        return True
    touched = torch.zeros(count, dtype=torch.bool, device="cpu")
    touched.as_strided(a.shape, a.stride(), 0).fill_(True)
    return bool(touched.as_strided(b.shape, b.stride(), offset // size).any())
