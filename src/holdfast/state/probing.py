"""Samples of parameters and gradients: whether they are finite, and how large, without making a device wait.

At a boundary a few tensors, in turn, are reduced to one number each, put
together, and copied to the host in the order of the device's own work. They
are read at a later boundary, when an event says that they have arrived. On
the host the numbers are there at once.

Parameters are reduced by the infinity norm, which is finite exactly if they
are. Gradients are reduced by the 2-norm in float32 or better, so that the norm
over all of them comes with it: one above 1e19 counts as infinite.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from holdfast.health.observation import SAMPLED, Fact, Probed
from holdfast.state.held import local
from holdfast.state.norms import host_norms, is_plain_sum, local_numbers, norms

if TYPE_CHECKING:
    from holdfast.state.streams import Streams

logger = logging.getLogger(__name__)

_cuda: Any = torch.cuda
"""Without its types, for half of it has none."""
_PAUSE = 0.0002

TENSORS = 64
"""In one sample of parameters; all gradients are looked at, for their norm."""
BYTES = 256 << 20
"""In one sample of parameters on a device, as soon as there is one in it: a tenth of a millisecond for a fast one."""
HOST_BYTES = 64 << 20
"""The same on the host, where the loop waits for it: a few milliseconds."""
LATE = 16
"""Sets of metrics that may be under way; a device that is further behind has other troubles, and they are dropped."""

Named = Callable[[], Iterable[tuple[str, Tensor]]]
_Chosen = tuple[list[tuple[str, Tensor]], bool]


@dataclass(slots=True)
class _Flight:
    """A sample whose numbers are on their way."""

    step: int
    what: Fact
    names: list[str]
    numbers: list[Tensor]
    """On the host, or being copied there; in the order of the names."""
    events: list[Any]
    whole: bool
    """Whether nothing was left out, so that the norms make a norm of all."""
    scale: Tensor | None = None
    skips: Tensor | None = None
    """As `Prober.begin` has them, on the host, or being copied there."""


class _Late(NamedTuple):
    """Metrics on their way."""

    step: int
    numbers: dict[str, Any]
    events: list[Any]


@dataclass(slots=True)
class Prober:
    """Takes samples and hands them over later. Not thread-safe; used by the thread that trains.

    Args:
        parameters: gives the trained tensors with their names; asked for each sample, for wrappers replace them.
        streams: the devices.
        tensors: at most so many parameters in one sample.
        size: no more bytes of parameters in one sample, but for a single tensor; 256 MiB on a device and 64 MiB on the
            host if left out.
        host: whether tensors on the host are looked at, which is done while the loop waits.
    """

    parameters: Named
    streams: Streams = field(default_factory=lambda: streams_in_use())
    tensors: int = TENSORS
    size: int | None = None
    host: bool = True
    _flights: dict[Fact, _Flight] = field(default_factory=dict)
    _buffers: dict[tuple[Fact, int], Tensor] = field(default_factory=dict)
    _next: int = 0
    _lost: bool = False
    """Whether the device has failed: nothing is worth waiting for."""

    def begin(
        self, wanted: Iterable[Fact], step: int, *, scale: Tensor | None = None, skips: Tensor | None = None
    ) -> None:
        """Begins a sample of each sort in ``wanted`` but for those that are still under way. Never waits for a device.

        Gradients are what ``.grad`` holds now: call it before they are cleared, at a boundary or before a step.

        Args:
            wanted: what `Watch.wants` gave; other facts are passed over.
            step: completed optimizer steps.
            scale: what a loss scaler has multiplied the gradients by.
            skips: not 0 if it skips this step; then there is no sample of it.
        """
        if _is_capturing(self.streams):
            return  # nothing of ours may get into a graph that is replayed
        for what in sorted(SAMPLED.intersection(wanted)):
            if what in self._flights:
                continue
            try:
                with torch.no_grad():
                    flight = self._begin(what, step)
                    flight.scale, flight.skips = self._number(flight, scale), self._number(flight, skips)
                    self._flights[what] = flight
            except RuntimeError as error:
                # An error of the device, which the training will meet itself, or a tensor that has no norm.
                logger.debug("the %s were not sampled: %s", what, error)

    def finished(self, seconds: float = 0.0) -> tuple[Probed, ...]:
        """The samples that have arrived since the last call.

        Args:
            seconds: how long to wait for those that are under way; 0 only looks.
        """
        if _is_capturing(self.streams):
            return ()
        end = time.monotonic() + seconds
        while not self._lost and time.monotonic() < end and not all(map(self._has_arrived, self._flights.values())):
            time.sleep(_PAUSE)
        arrived = [flight for flight in self._flights.values() if self._has_arrived(flight)]
        for flight in arrived:
            del self._flights[flight.what]
        return tuple(_probed(flight) for flight in arrived if flight.skips is None or not flight.skips.item())

    def forget(self) -> None:
        """The training has gone back: what is under way is of no interest. Its memory is used again only later."""
        for flight in self._flights.values():
            if flight.events:
                self._buffers = {key: one for key, one in self._buffers.items() if key[0] is not flight.what}
        self._flights = {}

    def _begin(self, what: Fact, step: int) -> _Flight:
        chosen, whole = self._gradients() if what is Fact.GRADIENTS else self._sample()
        by_device: dict[int | None, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, tensor in chosen:
            by_device[self.streams.device_of(tensor)].append((name, tensor))
        if not self.host and None in by_device:
            del by_device[None]
            whole = False
        flight = _Flight(step, what, [name for some in by_device.values() for name, _ in some], [], [], whole)
        for device, some in by_device.items():
            self._reduce(flight, device, [tensor for _, tensor in some])
        return flight

    def _gradients(self) -> _Chosen:
        """All there are; those that cannot be looked at, or add up to something else, make no norm of all."""
        gradients = [(name, one.grad) for name, one in self.parameters() if one.grad is not None]
        named = [(name, one) for name, one in gradients if local(one).numel()]
        found = _plain(named)
        return found, len(found) == len(named) and all(is_plain_sum(gradient) for _, gradient in named)

    def _sample(self) -> _Chosen:
        """The next parameters in turn, and whether these are all."""
        named = list(self.parameters())
        if not named:
            return [], False
        start = self._next % len(named)
        most = self.size or (HOST_BYTES if self.streams.device_of(named[start][1]) is None else BYTES)
        taken = size = 0
        for _, tensor in chain(named[start:], named[:start]):
            size += tensor.numel() * tensor.element_size()
            if taken and (taken >= self.tensors or size > most):
                break
            taken += 1
        self._next = start + taken
        return _plain(list(chain(named[start:], named[:start]))[:taken]), taken == len(named)

    def _reduce(self, flight: _Flight, device: int | None, tensors: list[Tensor]) -> None:
        if device is None:
            flight.numbers.append(host_norms(tensors, exact=flight.what is Fact.PARAMETERS))
            return
        reduce = partial(norms, tensors, 2.0 if flight.what is Fact.GRADIENTS else math.inf)
        buffer = self._buffer(flight.what, device, len(tensors))
        stream = self.streams.current(device)
        # In order with the work of the training, so nothing has changed yet, and no memory is used again too early.
        self.streams.run(stream, lambda: _copy(buffer, reduce))
        flight.numbers.append(buffer)
        flight.events.append(self.streams.record(stream))

    def _number(self, flight: _Flight, value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        buffer, events = _sent(self.streams, value)
        flight.events += events
        return buffer

    def _buffer(self, what: Fact, device: int, length: int) -> Tensor:
        """Pinned memory for the numbers; one for each sort and device, for there is one sample of it at a time."""
        known = self._buffers.get((what, device))
        if known is None or known.numel() < length:
            pin = _cuda.is_initialized()
            known = torch.empty(max(length, self.tensors), dtype=torch.float64, pin_memory=pin)
            self._buffers[what, device] = known
        return known[:length]

    def _has_arrived(self, flight: _Flight) -> bool:
        try:
            return all(self.streams.finished(event) for event in flight.events)
        except RuntimeError as error:
            logger.debug("the %s of step %d did not arrive: %s", flight.what, flight.step, error)
            self._lost = True
            return False


@dataclass(slots=True)
class LateMetrics:
    """Metrics that were logged as tensors of a device, as numbers, some boundaries later. Not thread-safe.

    Reading one at its own boundary would make the loop wait for the step that it belongs to.

    Args:
        streams: the devices.
    """

    streams: Streams = field(default_factory=lambda: streams_in_use())
    _flights: deque[_Late] = field(default_factory=deque)
    _lost: bool = False
    """Whether the device has failed: nothing is worth waiting for."""

    def begin(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Notes what was logged for a step: numbers, and private tensors of one element. Never waits for a device."""
        if _is_capturing(self.streams) or len(self._flights) >= LATE:
            return
        numbers: dict[str, Any] = {}
        events: list[Any] = []
        for name, value in metrics.items():
            if isinstance(value, Tensor) and value.device.type == "meta":
                continue
            if not isinstance(value, Tensor):
                numbers[name] = value
                continue
            numbers[name], more = _sent(self.streams, value)
            events += more
        self._flights.append(_Late(step, numbers, events))

    def finished(self, seconds: float = 0.0) -> list[tuple[int, dict[str, Any]]]:
        """Steps and their metrics that have become known since the last call, in order.

        Args:
            seconds: how long to wait for all of them; 0 only looks.
        """
        found, end = self._arrived(), time.monotonic() + seconds
        while self._flights and not self._lost and not _is_capturing(self.streams) and time.monotonic() < end:
            time.sleep(_PAUSE)
            found += self._arrived()
        return found

    def _arrived(self) -> list[tuple[int, dict[str, Any]]]:
        found = []
        while self._flights and not _is_capturing(self.streams) and self._has_arrived(self._flights[0]):
            flight = self._flights.popleft()
            plain = {name: one.item() if isinstance(one, Tensor) else one for name, one in flight.numbers.items()}
            found.append((flight.step, plain))
        return found

    def forget(self) -> None:
        """The training has gone back: what is under way is of no interest."""
        self._flights.clear()

    def _has_arrived(self, flight: _Late) -> bool:
        try:
            return all(self.streams.finished(event) for event in flight.events)
        except RuntimeError as error:
            logger.debug("the metrics of step %d did not arrive: %s", flight.step, error)
            self._lost = True
            return False


def _is_capturing(streams: Streams) -> bool:
    return streams.capturing()


class _Host:
    """Of a program without devices: everything is read where it lies. Other calls are for devices only."""

    def capturing(self) -> bool:
        return False

    def device_of(self, tensor: Tensor) -> int | None:
        return None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a program without devices has no {name}")


def streams_in_use() -> Streams:
    """Those of CUDA, if the program has begun to use it: asking would begin it."""
    if not _cuda.is_initialized():
        return cast("Streams", _Host())
    from holdfast.state.streams import CudaStreams  # so that a training on the CPU loads nothing of it

    return CudaStreams()


def _sent(streams: Streams, value: Tensor) -> tuple[Tensor, list[Any]]:
    """One number on the host, or on its way there; what has to happen before it can be read."""
    device = streams.device_of(value)
    if device is None:
        return value.detach().double().reshape(1), []
    buffer = torch.empty(1, dtype=torch.float64, pin_memory=_cuda.is_initialized())
    stream = streams.current(device)
    streams.run(stream, partial(_copy, buffer, partial(_one, value)))
    return buffer, [streams.record(stream)]


def _one(value: Tensor) -> Tensor:
    return value.detach().reshape(1)


def _plain(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    return [(name, found) for name, tensor in named if (found := local_numbers(tensor)) is not None]


def _copy(buffer: Tensor, reduce: Callable[[], Tensor]) -> None:
    buffer.copy_(reduce().double(), non_blocking=True)


def _probed(flight: _Flight) -> Probed:
    values = [number for numbers in flight.numbers for number in numbers.tolist()]
    # Large scales make infinite norms of numbers that are none, and the scaler has looked for infinities itself.
    is_bad = (lambda value: not math.isfinite(value)) if flight.scale is None else math.isnan
    broken = tuple(name for name, value in zip(flight.names, values, strict=True) if is_bad(value))
    scale = 1.0 if flight.scale is None else flight.scale.item()
    norm = math.hypot(*values) / scale if flight.what is Fact.GRADIENTS and flight.whole and values else None
    if flight.scale is not None and norm == math.inf:
        norm = None
    return Probed(step=flight.step, what=flight.what, sampled=len(values), nonfinite=broken, norm=norm)


def named_parameters(objects: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    """The trained parameters of the modules among registered objects, by name; each one once."""
    seen: set[int] = set()
    for name, one in objects.items():
        if not isinstance(one, torch.nn.Module):
            continue
        for path, parameter in one.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}/{path}", parameter
