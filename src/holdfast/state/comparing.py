"""Whether staged tensors are what they were at their boundary, and whether their sources still are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.saver.arena import placed
from holdfast.state import tensors
from holdfast.state.fingerprints import Fingerprints
from holdfast.state.staging import Destination


class AtBoundary:
    """Fingerprints of tensors as they are now, in order with what their devices were told before and after.

    Args:
        destination: where they are being copied to.
        places: in its layout.
        sources: the live tensors, which are held.
    """

    def __init__(self, destination: Destination, places: Sequence[int], sources: Sequence[Tensor]) -> None:
        self._destination, self._places, self._sources = destination, tuple(places), tuple(sources)
        self._fingerprints = Fingerprints()
        self._then = self._fingerprints.begin(list(map(_row_major, sources)), by_device=True)

    def difference(self) -> str | None:
        """What is not as it was then, once it was copied; None: nothing. Waits for the devices."""
        for place, source, then in zip(self._places, self._sources, self._then.read(), strict=True):
            name = self._destination.layout.specs[place].name
            if self._of(staged(self._destination, place).to(source.device)) != then:
                return f"what was staged is not the live state: {name} changed during the copy"
            if self._of(source) != then:
                return f"{name} was written between the boundary and the step, so a copy of it may be torn"
        return None

    def _of(self, tensor: Tensor) -> bytes:
        return self._fingerprints.begin([_row_major(tensor)], by_device=True).read()[0]


def staged(destination: Destination, place: int) -> Tensor:
    """A copy of a tensor as it lies in its slot: its segments, one after the other."""
    spec, offset = destination.layout.specs[place], destination.layout.offsets[place]
    memory = torch.frombuffer(destination.slab.memory, dtype=torch.uint8)
    pieces = [memory[one.offset : one.offset + one.span.length] for one in placed(spec, offset)]
    return torch.cat(pieces).view(tensors.dtype_of(spec.dtype)).reshape(spec.extent)


def _row_major(tensor: Tensor) -> Tensor:
    return tensors.plain(tensor).resolve_conj().resolve_neg().contiguous()
