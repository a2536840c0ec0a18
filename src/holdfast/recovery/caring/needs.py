"""What the next checkpoint will need of the store's disk: as the newest one tells, else as the live state does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Optimizer

from holdfast.records import Record


class Needs(NamedTuple):
    """What the next checkpoint will need, as far as it is known."""

    bytes: int | None = None
    files: int | None = None
    once: int = 0
    """Bytes on top that only the next one writes, and those after it share."""


NOT_KNOWN = Needs()
SLACK = 1 << 20
"""Bytes that a checkpoint may need beside what the one before it has written: its record, manifest and marks."""
BESIDE = 8
"""Files and folders of a checkpoint beside its packs: record, manifest, marks, the journal; and one for each rank."""
PACKS = 2
"""Of each rank, in a first checkpoint."""
_MOMENTS = {"Adafactor": 0, "Lion": 1, "Muon": 1}
"""Tensors of the size of a parameter that an optimizer will hold of it, by the name of its class; else two."""


def needs_of(last: Record, objects: Iterable[object]) -> Needs:
    """What the next checkpoint will need, as far as the newest one tells.

    What is frozen is written by the first one of a run and shared by all others.

    Args:
        last: the newest one.
        objects: what is saved.
    """
    shares = last.parent is not None and last.parent.run == last.run
    written = last.bytes.stored if shares else max(0, last.bytes.logical - frozen_bytes(objects))
    return Needs(_roomy(written), len(last.packs) + BESIDE + last.world)


def expected(objects: Iterable[object], world: int) -> Needs:
    """What the first checkpoint will need, as `live_bytes` has it; no codec is reckoned with.

    Args:
        objects: what is saved.
        world: how many ranks save it.
    """
    known = list(objects)
    frozen = frozen_bytes(known)
    return Needs(_roomy(live_bytes(known) - frozen), BESIDE + world + PACKS * world, frozen)


def frozen_bytes(objects: Iterable[object]) -> int:
    """Of the parameters of modules that are not trained."""
    found = (one for module in objects if isinstance(module, nn.Module) for one in module.parameters())
    return _bytes(one for one in found if not one.requires_grad)


def live_bytes(objects: Iterable[object]) -> int:
    """Of the state as it will be after the first step: modules, tensors, and what optimizers hold or will hold.

    Of an optimizer that has made no step that is an upper bound for the Adams: two moments of each trained parameter,
    as large as itself. Plain SGD has none, with momentum one. DTensors count as a whole, for the store takes them from
    all ranks; shards that are no DTensors count as what this rank has of them. Other objects count as nothing.
    """
    known = list(objects)
    optimizers = {id(one): one for one in known if isinstance(one, Optimizer)}.values()
    to_come = sum(_moments(one, group) * _bytes(_new(one, group)) for one in optimizers for group in one.param_groups)
    return _bytes(one for value in known for one in _tensors(value)) + to_come


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, nn.Module):
        yield from value.parameters()
        yield from _saved_buffers(value)
    elif isinstance(value, Optimizer):
        held = (mine for mine in value.state.values() if isinstance(mine, Mapping))
        yield from (one for mine in held for one in mine.values() if isinstance(one, Tensor))
    elif isinstance(value, Tensor):
        yield value


def _saved_buffers(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield buffer


def _new(optimizer: Optimizer, group: dict[str, Any]) -> list[Tensor]:
    """The parameters of which it holds nothing yet."""
    return [one for one in group["params"] if one.requires_grad and one not in optimizer.state]


def _moments(optimizer: Optimizer, group: dict[str, Any]) -> int:
    if isinstance(optimizer, SGD):
        return 1 if group["momentum"] else 0
    return _MOMENTS.get(type(optimizer).__name__, 2)


def _bytes(tensors: Iterable[Tensor]) -> int:
    found = {id(one): one for one in tensors if not is_lazy(one)}  # those have no size yet
    return sum(one.nbytes for one in found.values())


def _roomy(written: int) -> int:
    return written + written // 8 + SLACK
