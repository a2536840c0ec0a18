"""Copying a state into staging memory, from wherever it lives: one face for the host and for devices.

On the host a copy is complete when it returns. What knows of CUDA is imported
when the first tensor of a CUDA device is met, and not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from holdfast.errors import SaveFailed
from holdfast.saver.control import Control
from holdfast.saver.memory import Slab
from holdfast.state.staging import Destination

if TYPE_CHECKING:
    from holdfast.state.flights import Lost
    from holdfast.state.staging_cuda import CudaStaging


@dataclass(slots=True)
class Stager:
    """Fills slots and seals them. Belongs to one thread.

    Args:
        control: where the seals are.
        check: compare what was copied with the live state.
    """

    control: Control
    check: bool = False
    _devices: CudaStaging | None = None

    def copy(
        self, destination: Destination, places: Sequence[int], sources: Sequence[Tensor], *, step: int, late: bool
    ) -> None:
        """Copies the large tensors at ``places`` of the layout; then comes `seal`.

        Args:
            destination: in a slab whose memory is set aside.
            places: in the layout.
            sources: the live tensors.
            step: completed optimizer steps.
            late: whether the copy may go on after the save has returned, until the next step.

        Raises:
            SaveFailed: it could not be copied, or it changed meanwhile.
        """
        if self._devices is None and any(tensor.is_cuda for tensor in sources):
            self._devices = _cuda(self.control, self.check)
        if self._devices is None:
            _copy_on_host(destination, places, sources)
            under_way = frozenset[int]()
        else:
            under_way = self._devices.copy(destination, places, sources, step=step, late=late)
        if self.check:
            _compare(destination, places, sources, under_way)

    def seal(self, slot: int, generation: int) -> None:
        """What was copied, and the document that was written, are a generation: seals it, or has it sealed.

        Raises:
            SaveFailed: the device has failed.
        """
        if self._devices is None:
            self.control.seal(slot, generation)
        else:
            self._devices.seal(slot, generation)

    def settle(self, seconds: float) -> bool:
        """Waits until nothing is being copied; False: it takes longer. With 0 it only looks."""
        return self._devices is None or self._devices.settle(seconds)

    def writing(self, slab: Slab | None) -> bool:
        """Whether a device may still write into a slab; its slot is not free, even if it is not sealed."""
        return self._devices is not None and slab is not None and self._devices.writing(slab)

    def lost(self) -> list[Lost]:
        """Generations that came to nothing after they were handed over; once each."""
        return [] if self._devices is None else self._devices.lost()

    def unpin(self, slab: Slab | None) -> None:
        """Before the memory of a slab goes, or is given back in part; nothing may be writing into it."""
        if self._devices is not None and slab is not None:
            self._devices.unpin(slab)

    def forget(self) -> None:
        """The training goes on from another state."""
        if self._devices is not None:
            self._devices.forget()

    def close(self, seconds: float) -> None:
        """Waits for what is being copied, for at most so long, and lets go of all memory."""
        if self._devices is not None:
            self._devices.close(seconds)
            self._devices = None


def _cuda(control: Control, check: bool) -> CudaStaging:
    from holdfast.state.staging_cuda import CudaStaging
    from holdfast.state.streams import CudaStreams

    return CudaStaging(control, CudaStreams(), check)


def _copy_on_host(destination: Destination, places: Sequence[int], sources: Sequence[Tensor]) -> None:
    try:
        destination.copy(places, sources)
    except (RuntimeError, MemoryError) as error:  # torch has no memory either
        raise SaveFailed(f"the state could not be copied: {error}") from error


def _compare(
    destination: Destination, places: Sequence[int], sources: Sequence[Tensor], under_way: frozenset[int]
) -> None:
    done = [at for at, place in enumerate(places) if place not in under_way]
    if other := destination.differing([places[at] for at in done], [sources[at] for at in done]):
        raise SaveFailed(f"what was staged is not the live state: {', '.join(other[:5])} changed during the copy")
