"""What this process holds of a tensor, and by which evidence others hold the same: DTensors and plain ones alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from holdfast.boxes import Box, places, whole
from holdfast.errors import UnsupportedTensor
from holdfast.state import tensors
from holdfast.state.holding import of_dtensor
from holdfast.trees import Spread, TensorSpec


class Sharing(NamedTuple):
    """Several ranks hold the same boxes of a tensor, and there is evidence for it."""

    ranks: tuple[int, ...]
    """Global ranks, in an order that all of them know."""
    first_only: bool = False
    """Whether the first one's bytes are the ones, although the others may differ: buffers of a replicated module."""


class Region(NamedTuple):
    """A box that is held, and where."""

    box: Box
    """In the global tensor."""
    tensor: Tensor
    """Of the box's sizes: live memory."""


class Held(NamedTuple):
    """A tensor as this process has it."""

    local: Tensor
    shape: tuple[int, ...]
    """Of the global tensor."""
    spread: Spread | None
    """None: it is all here."""
    sharing: Sharing | None


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return not tensors.is_stock(tensor) and tensors.is_a(tensor, "torch.distributed.tensor", "DTensor")


def local(tensor: Tensor) -> Tensor:
    """The memory of this process behind a DTensor; any other tensor is itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def held(tensor: Tensor, path: str, sharing: Sharing | None = None) -> Held:
    """What is here of ``tensor``.

    Args:
        tensor: any.
        path: of it, for messages.
        sharing: evidence from outside, for one that is no DTensor.

    Raises:
        UnsupportedTensor: a DTensor whose placements do not say what is here.
    """
    if not is_sharded(tensor):
        return Held(tensor, tuple(tensor.shape), None, sharing)
    found, here = of_dtensor(tensor, path), local(tensor)
    evidence = Sharing(found.holders) if len(found.holders) > 1 else None
    boxes = tuple(piece.box for piece in found.pieces)
    spread = None if boxes == (whole(found.shape),) else Spread(boxes, (0,) * len(boxes))
    if tensor.device_mesh.size() > 1 and not tensors.is_stock(here):  # type: ignore[attr-defined]
        raise UnsupportedTensor(f"{path} is a DTensor of {type(here).__name__}, whose shards cannot be stored")
    return Held(here, found.shape, spread, evidence)


def regions(tensor: Tensor, path: str) -> list[Region]:
    """The boxes that are here of ``tensor``; errors as in `held`."""
    found = held(tensor, path)
    boxes = [whole(found.shape)] if found.spread is None else list(found.spread.boxes)
    return cut(found.local, boxes)


def regions_of(spec: TensorSpec, here: Tensor) -> list[Region]:
    """The boxes of ``spec`` in the memory that has just them."""
    return cut(here, spec.boxes)


def cut(here: Tensor, boxes: Sequence[Box]) -> list[Region]:
    """The views of boxes in a tensor that has just them."""
    if len(boxes) == 1:
        return [Region(boxes[0], here)]
    return [Region(box, narrowed(here, at, box.sizes)) for box, at in zip(boxes, places(boxes), strict=True)]


def narrowed(tensor: Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """A rectangle of a tensor, the same memory."""
    for dim, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, offset, size)
    return tensor
