"""Copying large tensors into staging memory, segment by segment, as fast as memory allows.

What is plain memory on both sides is moved; torch copies the rest (other
devices, other memory orders) into tensors over shared memory, one for each
segment, which are made once per layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from holdfast.boxes import SEGMENT_BYTES
from holdfast.errors import SaveFailed
from holdfast.packs.buffers import address
from holdfast.saver.arena import Layout, Placed, gaps, placed
from holdfast.saver.memory import Slab
from holdfast.state import tensors
from holdfast.state.moving import Move, run
from holdfast.trees import TensorSpec, item_bytes, segment_count

_PLAIN = frozenset(("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"))
"""Dtypes that torch copies on all devices; others are copied as bytes or integers of their width."""


@dataclass(slots=True)
class Destination:
    """Where the segments of one layout go in one slab. Not thread-safe."""

    slab: Slab
    layout: Layout
    _memory: Tensor = field(init=False)
    _places: dict[int, list[Placed]] = field(init=False, default_factory=dict)
    _views: dict[int, list[Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        with torch.inference_mode(False):  # what is made within it could not be written to outside of it
            self._memory = torch.frombuffer(self.slab.memory, dtype=torch.uint8)

    def copy(self, places: Sequence[int], sources: Sequence[Tensor], *, non_blocking: bool = False) -> None:
        """Copies the large tensors at ``places`` of the layout; on the CPU the copy is complete when it returns."""
        pairs = list(zip(places, sources, strict=True))
        plain = [(place, source) for place, source in pairs if _in_order(source)]
        run(self._moves(plain), sum(self.layout.specs[place].held for place, _ in plain))
        others = [(place, source) for place, source in pairs if not _in_order(source)]
        into = [piece for place, _ in others for piece in self._segments(place)]
        if into:  # torch refuses empty lists
            out_of = [piece for place, source in others for piece in _cut(self.layout.specs[place], source)]
            with torch.no_grad():
                torch._foreach_copy_(into, out_of, non_blocking=non_blocking)

    def _moves(self, pairs: Sequence[tuple[int, Tensor]]) -> Iterator[Move]:
        begin = self._memory.data_ptr()
        for place, source in pairs:
            at = source.data_ptr()
            for span, offset in self._pieces(place):
                yield Move(begin + offset, at + span.start, span.length)

    def differing(self, places: Sequence[int], sources: Sequence[Tensor]) -> list[str]:
        """Names of the tensors whose live bytes are not those that were staged."""
        return [
            self.layout.specs[place].name
            for place, source in zip(places, sources, strict=True)
            if not all(map(_same, self._segments(place), _cut(self.layout.specs[place], source)))
        ]

    def _pieces(self, place: int) -> list[Placed]:
        """Where the segments of a tensor go; what is behind them is zero."""
        if place not in self._places:
            spec, offset = self.layout.specs[place], self.layout.offsets[place]
            # Only now is the memory of this tensor sure to be set aside, and what another layout left in it goes.
            for gap in gaps(spec, offset):
                self.slab.memory[gap] = bytes(gap.stop - gap.start)
            self._places[place] = list(placed(spec, offset))
        return self._places[place]

    def _segments(self, place: int) -> list[Tensor]:
        """The same as tensors."""
        if place not in self._views:
            with torch.inference_mode(False):
                self._views[place] = list(self._made(place))
        return self._views[place]

    def _made(self, place: int) -> Iterator[Tensor]:
        spec, dtype = self.layout.specs[place], _carrier(self.layout.specs[place])
        width = item_bytes(spec.dtype) // dtype.itemsize
        extent = spec.extent
        row = spec.held // (extent[0] or 1) if extent else spec.held
        for span, offset in self._pieces(place):
            piece = self._memory[offset : offset + span.length].view(dtype)
            if not extent or row > SEGMENT_BYTES:
                yield piece
            else:
                shape = (span.length // row, *extent[1:])
                yield piece.view(shape if width == 1 else (*shape, width))


def _in_order(source: Tensor) -> bool:
    """Whether the memory of a tensor is its row-major bytes, at hand on the host."""
    return source.is_cpu and source.is_contiguous() and not (source.is_conj() or source.is_neg())


def _carrier(spec: TensorSpec) -> torch.dtype:
    """A dtype that can be copied everywhere and divides the width of the spec's."""
    if spec.dtype in _PLAIN:
        return tensors.dtype_of(spec.dtype)
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}[item_bytes(spec.dtype)]


def _cut(spec: TensorSpec, source: Tensor) -> Iterator[Tensor]:
    """A live tensor in pieces that match its segments."""
    source = tensors.plain(source).resolve_conj().resolve_neg()
    carrier = _carrier(spec)
    if source.dtype != carrier:
        source = _carried(source, carrier)
    if not spec.held:
        return
    extent = spec.extent
    row = spec.held // extent[0] if extent else spec.held
    if not extent or row > SEGMENT_BYTES:
        flat, width = source.reshape(-1), carrier.itemsize
        for span, _ in placed(spec, 0):
            yield flat[span.start // width : (span.start + span.length) // width]
        return
    if len(spec.boxes) == 1 and segment_count(spec) == 1:
        yield source
        return
    for span, _ in placed(spec, 0):
        yield source[span.start // row : (span.start + span.length) // row]


def _carried(source: Tensor, carrier: torch.dtype) -> Tensor:
    if source.dtype.itemsize == carrier.itemsize:
        return source.view(carrier)
    # complex128 as pairs of 64-bit integers: as many dimensions more as the destination has.
    return torch.view_as_real(source).view(carrier)


def _same(staged: Tensor, live: Tensor) -> bool:
    live = live.cpu().contiguous()
    return torch.equal(tensors.flat_bytes(staged), tensors.flat_bytes(live))


def check_mapping(destination: Destination) -> None:
    """Refuses a slab that torch sees elsewhere than Python does.

    Raises:
        SaveFailed: it does.
    """
    if destination._memory.data_ptr() != address(destination.slab.memory):
        raise SaveFailed("staging memory is not where torch takes it to be")
