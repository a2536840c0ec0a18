"""What a loader draws its indices from: the chain of its samplers, and the state that they keep themselves."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch.distributed
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from holdfast.state import loaders_random as randomness
from holdfast.state.sampler import Sampler

_QUIET = {RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler, Sampler}
_NESTED = ("sampler", "batch_sampler", "base_sampler")
_SCALARS = (bool, int, float, str)
_GLIMPSE = 64


def is_map_style(loader: object) -> bool:
    """Whether it is a torch loader that asks its dataset for indices."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def innermost(loader: Any) -> Any:
    """The loader that makes the iterators, where a wrapper (such as accelerate's) names it ``base_dataloader``."""
    inner = getattr(loader, "__dict__", {}).get("base_dataloader")
    return loader if inner is None else innermost(inner)


def slot(loader: DataLoader[Any]) -> str:
    """The attribute that holds the loader's index sampler."""
    return "sampler" if loader.batch_sampler is None else "batch_sampler"


def chain(loader: object) -> dict[str, Any]:
    """The samplers of a loader by their path, from the index sampler inwards; empty without any."""
    found: dict[str, Any] = {}
    if not is_map_style(loader):
        return found
    path = slot(loader)  # type: ignore[arg-type]
    node: Any = getattr(loader, path)
    while node is not None and not any(node is known for known in found.values()):
        found[path] = node
        name = next((name for name in _NESTED if getattr(node, name, None) is not None), "")
        path, node = f"{path}.{name}", getattr(node, name, None) if name else None
    return found


def draws_once(sampler: object) -> bool:
    """Whether it draws from the global generators before its first index only."""
    inner = sampler.sampler if type(sampler) is BatchSampler else sampler
    return type(inner) in _QUIET or isinstance(inner, list | tuple | range)


def kind(samplers: dict[str, Any]) -> str | None:
    """The classes of a chain of samplers, for comparison and for people."""
    return " over ".join(type(sampler).__name__ for sampler in samplers.values()) or None


def world_size(samplers: dict[str, Any]) -> int:
    """The number of ranks that the samplers share, else the one of torch.distributed, else 1."""
    for sampler in samplers.values():
        if isinstance(shared := getattr(sampler, "num_replicas", None), int):
            return shared
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def length(thing: object) -> int | None:
    """Its ``len``, or None where it has none."""
    try:
        return len(thing)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def set_epoch(loader: object, epoch: int) -> None:
    """Tells the epoch to everything around the loader that wants to know it."""
    for target in _unique([loader, *chain(loader).values(), getattr(loader, "dataset", None)]):
        if callable(getattr(target, "set_epoch", None)):
            target.set_epoch(epoch)


def generators(owner: object) -> dict[str, randomness.Generator]:
    """The generators among the attributes of an object, by name."""
    return {name: value for name, value in _attributes(owner) if isinstance(value, randomness.OWNED)}


class OwnState:
    """The state that the samplers of one loader keep themselves: generators, and scalars that move.

    A scalar attribute counts as moving when it differs from what it was when the
    loader was first seen, so configuration is not carried from one program to the next.
    """

    def __init__(self, loader: object) -> None:
        # Weakly: the kept iterator of a loader holds this, see `Tap`.
        self._loader = weakref.ref(loader) if hasattr(loader, "__dict__") else lambda: None
        self._owners = chain(loader)
        self._first = dict(self._scalars())
        self._sketched = dict(self._collections())

    def capture(self) -> dict[str, Any]:
        """The state, as plain values and tensors."""
        owned = {path: randomness.generator_state(found) for path, _, found in self._generators()}
        moved = {path: value for path, value in self._scalars() if self._first.get(path, value) != value}
        return {"generators": owned, "moved": moved}

    def rewind(self) -> None:
        """Makes the scalars what they were when the loader was first seen: `capture` leaves out what is as it was."""
        self._put(self._first)

    def restore(self, state: dict[str, Any]) -> None:
        """Puts back what `capture` gave; what this loader does not have is left out."""
        for path, _, generator in self._generators():
            if path in state["generators"]:
                randomness.set_generator_state(generator, state["generators"][path])
        self._put(state["moved"])

    def changed_elsewhere(self) -> list[str]:
        """What moves and is not captured: a list that is shuffled in place. Looks at some elements only.

        Samplers of torch and of ours have none, those with ``set_epoch`` can make theirs again, and those with
        ``state_dict`` are asked for it by the loader.
        """
        return [path for path, sketch in self._collections() if self._sketched.get(path, sketch) != sketch]

    def _put(self, scalars: dict[str, Any]) -> None:
        for path, value in scalars.items():
            owner, _, name = path.rpartition(".")
            if owner in self._owners and getattr(self._owners[owner], name, value) != value:
                setattr(self._owners[owner], name, value)

    def _collections(self) -> Iterator[tuple[str, Any]]:
        for path, owner in self._owners.items():
            if type(owner) in _QUIET or hasattr(owner, "set_epoch") or hasattr(owner, "state_dict"):
                continue
            for name, value in _attributes(owner):
                if (sketch := _sketch(value)) is not None:
                    yield f"{path}.{name}", sketch

    def _generators(self) -> Iterator[tuple[str, Any, Any]]:
        seen: set[int] = set()
        for path, owner in {"loader": self._loader(), **self._owners}.items():
            for name, generator in generators(owner).items():
                if id(generator) not in seen:
                    seen.add(id(generator))
                    yield f"{path}.{name}", owner, generator

    def _scalars(self) -> Iterator[tuple[str, Any]]:
        for path, owner in self._owners.items():
            yield from ((f"{path}.{name}", value) for name, value in _attributes(owner) if type(value) in _SCALARS)


def _sketch(value: object) -> Any:
    """The length and some elements of a collection; None for anything else."""
    if isinstance(value, np.ndarray | torch.Tensor):
        flat = value.reshape(-1)
        return len(flat), flat[:: max(1, len(flat) // _GLIMPSE)].tolist()
    if isinstance(value, list):
        return len(value), [_element(one) for one in value[:: max(1, len(value) // _GLIMPSE)]]
    if isinstance(value, deque | dict | set):
        return len(value), [_element(one) for one in islice(value, _GLIMPSE)]
    return None


def _element(value: object) -> Any:
    if type(value) in _SCALARS:
        return value
    return [_element(one) for one in value[:4]] if isinstance(value, list | tuple) else type(value).__name__


def _attributes(owner: object) -> Iterable[tuple[str, Any]]:
    return list(getattr(owner, "__dict__", {}).items())


def _unique(things: Iterable[Any]) -> list[Any]:
    return list({id(thing): thing for thing in things if thing is not None}.values())
