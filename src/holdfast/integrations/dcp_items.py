"""What a plan of DCP wants to be written, as the structure of a save and its bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType

from holdfast.boxes import Box, cuts, uncovered, whole
from holdfast.errors import InvalidInput, SaveFailed, UnsupportedTensor, UnsupportedValue
from holdfast.ids import Digest
from holdfast.integrations import dcp_values
from holdfast.packs.segment import Segment
from holdfast.saver import Shape
from holdfast.saver.merging_inline import InlineForm, join_inline
from holdfast.saver.publishing import Made
from holdfast.state import tensors
from holdfast.trees import Lifetime, Skeleton, Spread, TensorSpec, item_bytes
from holdfast.values import Json, part

KEY = "dcp"
"""Of the document of a checkpoint: what only DCP knows of it."""


class Piece(NamedTuple):
    """What one rank writes of a tensor."""

    spec: TensorSpec
    items: tuple[WriteItem, ...]
    """One for each of its boxes."""


@dataclass(frozen=True, slots=True)
class PlanContent:
    """The bytes of a plan's large tensors; each is asked of the planner when its turn comes."""

    pieces: Sequence[Piece]
    planner: SavePlanner

    def segments(self, lifetime: Lifetime) -> Iterable[Segment]:
        """Those of one lifetime."""
        large = (piece for piece in self.pieces if piece.spec.lifetime is lifetime and not piece.spec.inline)
        return (segment for piece in large for segment in self._segments(piece))

    def kept(self) -> Mapping[int, Digest]:
        """Nothing: all of it is at hand."""
        return {}

    def _segments(self, piece: Piece) -> Iterator[Segment]:
        dtype = piece.spec.dtype
        for item, box in zip(piece.items, piece.spec.boxes, strict=True):
            view = tensors.row_bytes(resolved(self.planner, item))
            for span in cuts(box, item_bytes(dtype)):
                yield Segment(view[span.start : span.start + span.length], dtype)


def contents(plan: SavePlan, planner: SavePlanner) -> tuple[Shape, PlanContent]:
    """The structure of what a plan wants, with values and small tensors, and where its bytes come from.

    Raises:
        UnsupportedValue, UnsupportedTensor: something has no bytes of its own, or none without pickle; by name.
    """
    pieces = _pieces(plan, planner)
    inline = (piece for piece in pieces if piece.spec.inline)
    shape = Shape(
        skeleton=Skeleton(tuple(piece.spec for piece in pieces)),
        values=_text({item.index.fqn: _value(planner, item) for item in plan.items if _is_value(item)}, {}),
        inline=b"".join(bytes(tensors.row_bytes(resolved(planner, item))) for piece in inline for item in piece.items),
    )
    return shape, PlanContent(pieces, planner)


def resolved(planner: SavePlanner, item: WriteItem) -> Tensor:
    """The tensor of an item, as planned.

    Raises:
        UnsupportedTensor: it has no bytes of its own, or is another one than was planned.
    """
    fqn, found = item.index.fqn, planner.resolve_data(item)
    if not isinstance(found, Tensor) or item.tensor_data is None:
        raise UnsupportedTensor(f"{fqn} was planned as a tensor, and the planner gives a {type(found).__name__}")
    tensors.check_bytes(found, fqn)
    tensors.check_plain(found, fqn)
    if not tensors.is_stock(found):
        raise UnsupportedTensor(f"{fqn} is a {type(found).__name__}, which has no bytes of its own; convert it")
    tensors.check_memory(found, fqn)
    wanted = (item.tensor_data.properties.dtype, tuple(item.tensor_data.chunk.sizes))
    if (found.dtype, tuple(found.shape)) != wanted:
        raise UnsupportedTensor(
            f"{fqn} is {found.dtype} of {list(found.shape)} and was planned as {wanted[0]} of {list(wanted[1])}; "
            "does the planner reuse an old plan?"
        )
    return found


def described(made: Made, metadata: Metadata) -> Made:
    """What rank 0 has written, with what only DCP knows of the checkpoint.

    Raises:
        SaveFailed: one rank alone has not all of a tensor.
        UnsupportedValue: the planner's data cannot be written.
    """
    planner = dcp_values.encode(metadata.planner_data, "planner_data")
    known = json.loads(made.shape.values)
    text = _text(known["values"], {"names": list(metadata.state_dict_metadata), "planner": planner})
    shape, state = msgspec.structs.replace(made.shape, values=text), made.state._replace(values=text)
    if made.request.world == 1:
        state = state._replace(inline=_complete(shape))
    return msgspec.structs.replace(made, shape=shape, state=state)


def _complete(shape: Shape) -> bytes:
    """The small tensors of one rank that is alone, each whole; nobody else looks whether it has all of every tensor."""
    for spec in shape.skeleton.tensors:
        if problem := uncovered(spec.shape, spec.boxes):
            raise SaveFailed(f"{spec.name} of shape {list(spec.shape)} is not complete: {problem}")
    form = InlineForm(tuple((spec.name, spec.boxes) for spec in shape.skeleton.tensors if spec.inline))
    return join_inline(shape.skeleton, [form], [shape.inline])


def _text(values: Mapping[str, Json], known: Mapping[str, Json]) -> bytes:
    # A Checkpointer that meets it finds no objects; `holdfast show` prints the values.
    document = {"objects": {}, "values": values, KEY: known}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _is_value(item: WriteItem) -> bool:
    return item.type is WriteItemType.BYTE_IO


def _value(planner: SavePlanner, item: WriteItem) -> Json:
    fqn = item.index.fqn
    if not isinstance(planner, DefaultSavePlanner):
        raise UnsupportedValue(
            f"{fqn} is no tensor, and {type(planner).__name__} does not say what it is; derive it from "
            "DefaultSavePlanner"
        )
    if type(planner).transform_object is not DefaultSavePlanner.transform_object:
        raise UnsupportedValue(
            f"{fqn} would be bytes that {type(planner).__name__}.transform_object makes, which nobody could check when "
            "they are loaded; put what it makes into the state dict instead"
        )
    return dcp_values.encode(planner.lookup_object(item.index), fqn)


def _pieces(plan: SavePlan, planner: SavePlanner) -> list[Piece]:
    by_name: dict[str, list[WriteItem]] = {}
    for item in plan.items:
        if not _is_value(item):
            by_name.setdefault(item.index.fqn, []).append(item)
    pieces = (_piece(fqn, items) for fqn, items in by_name.items())
    return [piece for piece in pieces if piece is not None]


def _piece(fqn: str, items: Sequence[WriteItem]) -> Piece | None:
    """None: nothing of the tensor is here, but other ranks have some."""
    first: Any = items[0].tensor_data
    size = tuple(first.size)
    full = [item for item in items if _box(item).elements]
    if not full and 0 not in size:
        return None
    boxes = tuple(map(_box, full)) or (whole(size),)
    spec = TensorSpec(
        name=part(fqn),
        dtype=tensors.dtype_name(first.properties.dtype),
        shape=size,
        lifetime=Lifetime.PARAMETER,
        spread=None if boxes == (whole(size),) else Spread(boxes, (0,) * len(boxes)),
    )
    return Piece(spec, tuple(full))


def _box(item: WriteItem) -> Box:
    if item.tensor_data is None:
        raise InvalidInput(f"the plan says nothing about the tensor {item.index.fqn}; is its planner complete?")
    return Box(tuple(item.tensor_data.chunk.offsets), tuple(item.tensor_data.chunk.sizes))
