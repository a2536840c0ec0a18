"""Copying from devices while the training goes on: side streams, and a seal that the last of them writes.

One generation at a time. Per device: the side stream waits for the stream of
the training, copies what must not wait, then what may (`lazy_places`). The save
waits for the former; before the next optimizer step the streams of the training
wait for the latter, and the host for nothing. One stream then waits for the
copies of all devices and writes the number of the generation into the control
words, so the saver sees that it is complete without the trainer's doing, and
never sees it if the trainer dies before.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import SaveFailed
from holdfast.saver.arena import Layout
from holdfast.saver.control import LENGTH, Control
from holdfast.saver.memory import Slab
from holdfast.state.comparing import AtBoundary
from holdfast.state.flights import Flight, Lost, Split, split
from holdfast.state.lazy import StepLog, Watch, lazy_places, memory_of
from holdfast.state.pinning import Pinning, Range, pinned_ranges
from holdfast.state.staging import Destination
from holdfast.state.step_hook import STEP_HOOK
from holdfast.state.streams import Streams
from holdfast.trees import Lifetime

logger = logging.getLogger(__name__)

COPY_SECONDS = 600.0
"""How long a copy may take before something hangs, a collective for example that the training waits for."""

CAPTURE_SECONDS = 60.0
"""How long the recording of a CUDA graph is held up for a copy."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.00005, 0.005


@dataclass(slots=True, eq=False)
class CudaStaging:
    """Copies a state that lives on devices, at least in part. Belongs to one thread, but for the hook.

    Args:
        check: before the next step, compare what was copied, and what it was copied from, with the state at the
            boundary, and seal it only then; the step waits for that.
    """

    control: Control
    streams: Streams
    check: bool = False
    _pinning: Pinning = field(init=False)
    _layouts: dict[int, Layout] = field(default_factory=dict)
    _log: StepLog = field(default_factory=StepLog)
    _watch: Watch = field(default_factory=Watch)
    _flight: Flight | None = None
    _lost: list[Lost] = field(default_factory=list)
    _pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self._pinning = Pinning(self.streams)
        STEP_HOOK.add(self._before_step)

    # One generation

    def copy(
        self, destination: Destination, places: Sequence[int], sources: Sequence[Tensor], *, step: int, late: bool
    ) -> frozenset[int]:
        """Copies the large tensors at ``places`` of the layout, and gives those places that are still under way.

        All others are complete when it returns. `seal` or `settle` comes next.

        Args:
            destination: in a slab whose memory is set aside.
            places: in the layout.
            sources: the live tensors.
            step: completed optimizer steps.
            late: whether anything may be under way.

        Raises:
            SaveFailed: a CUDA graph is being recorded, a device has failed or hangs, or the generation before is
                still under way. `writing` tells whether the slab may be used.
        """
        if self.streams.capturing():
            raise SaveFailed("a CUDA graph is being recorded, and nothing can be copied into it; save between steps")
        if not self.settle(COPY_SECONDS):
            raise SaveFailed(f"the device has not copied the checkpoint before within {COPY_SECONDS:.0f} s")
        devices = [self.streams.device_of(tensor) for tensor in sources]
        lazy = self._chosen(destination, places, sources, devices, step, late=late)
        under_way = [places[place] for place in sorted(lazy)]
        self._flight = flight = Flight(destination, tuple(under_way), tuple(sources[place] for place in sorted(lazy)))
        try:
            if self.check and lazy:
                # In order with what the training does before and after, as nothing on another stream would be.
                flight.boundary = AtBoundary(destination, flight.lazy, flight.sources)
            self._copy(flight, places, sources, split(devices, lazy))
        except RuntimeError as error:
            self._mark_ends(flight, devices)
            raise SaveFailed(f"the state could not be copied from the device: {error}") from error
        if not lazy:
            self._flight = None
        return frozenset(under_way)

    def seal(self, slot: int, generation: int) -> None:
        """The generation that was copied is complete, or will be: then its last stream writes the seal.

        Raises:
            SaveFailed: the device has failed.
        """
        flight = self._flight
        if flight is None:
            self.control.seal(slot, generation)
            return
        flight.slot, flight.generation = slot, generation
        if self.check:
            return  # once it was compared
        stream = self.streams.side(min(flight.events))
        try:
            for event in flight.events.values():
                self.streams.wait(stream, event)
            self.streams.write(stream, self._word(slot), generation)
            flight.sealed = self.streams.record(stream)
        except RuntimeError as error:
            raise SaveFailed(f"the device could not be told to seal the copy: {error}") from error

    def writing(self, slab: Slab) -> bool:
        """Whether a device may still write into a slab: it must neither be used nor go."""
        return self._flight is not None and self._flight.destination.slab is slab

    def settle(self, seconds: float) -> bool:
        """Waits until nothing is under way; False: it takes longer. With 0 it only looks."""
        flight = self._flight
        if flight is None:
            return True
        try:
            if not self._await(flight.last, seconds):
                return False
        except RuntimeError as error:
            if not self._is_sealed(flight):  # else only what came after the copy has failed
                flight.why = f"the device has failed before the copy was complete: {error}"
        self._land(flight)
        return True

    def lost(self) -> list[Lost]:
        """Generations that came to nothing, or to something else than the state at their boundary; once each."""
        found, self._lost = self._lost, []
        return found

    # Memory, beginning and end

    def unpin(self, slab: Slab) -> None:
        """Before the memory of a slab goes; nothing of it may be under way."""
        self._layouts.pop(slab.serial, None)
        self._pinning.unpin(slab.serial)

    def forget(self) -> None:
        """The training goes on from another state."""
        self._log.forget()

    def close(self, seconds: float) -> None:
        """Waits for what is under way, and lets go of everything."""
        if os.getpid() != self._pid:
            return  # in a forked child there is no CUDA
        STEP_HOOK.remove(self._before_step)
        if self.settle(seconds):
            self._layouts = {}
            self._pinning.unpin_all()
        else:
            logger.error("a device still copies a checkpoint after %.0f s; it may be lost", seconds)

    def _pin(self, slab: Slab, layout: Layout, device: int) -> bool:
        """Whether devices can write into the slot and its seal by themselves."""
        if self._layouts.get(slab.serial) is not layout:
            self._layouts[slab.serial] = layout
            self._pinning.pin(slab, pinned_ranges(layout), device)
        control = self._pinning.pin(self.control.slab, [Range(0, LENGTH)], device)
        return control and self._pinning.has(slab)

    # Choosing and copying

    def _chosen(
        self,
        destination: Destination,
        places: Sequence[int],
        sources: Sequence[Tensor],
        devices: Sequence[int | None],
        step: int,
        *,
        late: bool,
    ) -> frozenset[int]:
        """Those that may be under way, as places in ``sources``; and watches all that might be, the next time."""
        optimizers, steps = self._log.look(step)
        specs = destination.layout.specs
        names = [specs[place].name for place in places]
        there = {
            at
            for at, place in enumerate(places)
            if devices[at] is not None and specs[place].lifetime is not Lifetime.FROZEN
        }
        steady = self._watch.steady(names) & there
        self._watch.begin([names[at] for at in sorted(there)], [sources[at] for at in sorted(there)])
        first = next((device for device in devices if device is not None), None)
        if first is None or not self._pin(destination.slab, destination.layout, first) or not late:
            return frozenset()
        return lazy_places(list(map(memory_of, sources)), optimizers, steps=steps, steady=steady)

    def _copy(self, flight: Flight, places: Sequence[int], sources: Sequence[Tensor], order: Split) -> None:
        def copy(chosen: Sequence[int], *, non_blocking: bool) -> None:
            into, out_of = [places[at] for at in chosen], [sources[at] for at in chosen]
            flight.destination.copy(into, out_of, non_blocking=non_blocking)

        boundary, urgent = [], []
        for device, eager in order.eager.items():
            stream = self.streams.side(device)
            boundary.append(self.streams.record(self.streams.current(device)))
            self.streams.wait(stream, boundary[-1])
            for chosen in filter(None, (eager, order.lazy[device])):
                self.streams.run(stream, partial(copy, chosen, non_blocking=True))
                flight.events[device] = self.streams.record(stream)
                urgent += [flight.events[device]] if chosen is eager else []
        if any(self.streams.pinned(sources[place]) for place in order.host):
            self._await_all(boundary)  # a copy to the host, of an average perhaps, may be under way by itself
        copy(order.host, non_blocking=False)
        self._await_all(urgent)

    def _mark_ends(self, flight: Flight, devices: Sequence[int | None]) -> None:
        """After a failure somewhere in between: what was begun may still be written."""
        try:
            for device in {device for device in devices if device is not None}:
                flight.events[device] = self.streams.record(self.streams.side(device))
        except RuntimeError as error:
            logger.debug("the device takes no more orders: %s", error)
            self._flight = None

    def _await_all(self, events: Sequence[Any]) -> None:
        if not self._await(events, COPY_SECONDS):
            raise SaveFailed(f"the device has not copied the state within {COPY_SECONDS:.0f} s; does it hang?")

    def _await(self, events: Sequence[Any], seconds: float) -> bool:
        end, pause = time.monotonic() + seconds, _FIRST_PAUSE
        for event in events:
            # Asked again and again: a wait of CUDA's own has no end if the device hangs.
            while not self.streams.finished(event):
                if time.monotonic() >= end:
                    return False
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def _word(self, slot: int) -> Tensor:
        place = self.control.seal_place(slot)
        return torch.frombuffer(self.control.slab.memory, dtype=torch.int64, count=1, offset=place)

    # Before a step

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if os.getpid() != self._pid:
            return
        captured = self.streams.capturing()
        self._log.step(optimizer, captured=captured)
        flight = self._flight
        try:
            if flight is not None:
                self._hold_back(flight, captured=captured)
            else:
                self._watch.end()
        except RuntimeError as error:
            # The step will fail of the same error, and the training hears of it there.
            logger.debug("before a step: %s", error)

    def _hold_back(self, flight: Flight, *, captured: bool) -> None:
        """The step comes after the copies; as far as possible without making the host wait."""
        if captured:
            self._examine(flight)
            self._await_seal(flight)
        elif self.check:
            if not self.settle(COPY_SECONDS):
                flight.why = f"the device has not copied the state within {COPY_SECONDS:.0f} s"
        else:
            self._examine(flight)
            for device in flight.events:
                for event in flight.events.values():
                    self.streams.wait(self.streams.current(device), event)
            self.settle(0)

    def _await_seal(self, flight: Flight) -> None:
        """While a graph is recorded CUDA must not be asked for anything, but memory may be looked at."""
        end = time.monotonic() + CAPTURE_SECONDS
        while flight.sealed is not None and not self._is_sealed(flight):
            if time.monotonic() >= end:
                flight.why = f"a CUDA graph was recorded, and the copy was not complete after {CAPTURE_SECONDS:.0f} s"
                return
            time.sleep(_FIRST_PAUSE)
        if flight.sealed is None:
            flight.why = "a CUDA graph was recorded before it could be compared"

    def _is_sealed(self, flight: Flight) -> bool:
        row = self.control.row(flight.slot) if flight.sealed is not None else None
        return row is not None and row.generation == flight.generation

    # The end of a copy

    def _land(self, flight: Flight) -> None:
        """Nothing of it is under way any more."""
        self._examine(flight)
        if flight.boundary is not None and flight.why is None and flight.generation:
            flight.why = flight.boundary.difference()
            if flight.why is None:
                self.control.seal(flight.slot, flight.generation)
        self._flight = None
        if flight.why is not None and flight.generation:
            self._lost.append(Lost(flight.generation, flight.why))

    def _examine(self, flight: Flight) -> None:
        """Whether anybody was seen to write what was still being copied."""
        changed = self._watch.end()
        if not changed or flight.why is not None:
            return
        specs = flight.destination.layout.specs
        if changed := sorted({specs[place].name for place in flight.lazy}.intersection(changed)):
            flight.why = (
                f"{', '.join(changed[:5])} changed between the boundary and the step, while it may have been copied; "
                "from now on the loop waits for copies of it"
            )
