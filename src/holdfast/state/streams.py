"""What staging wants of a device that works by itself: streams, events, and memory that it can write into.

One small protocol, so that all that is decided can be tested where there is no
such device. `CudaStreams` is the real one, and decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

_cuda: Any = torch.cuda
"""Without its types, for half of it has none."""

_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for all devices, not only for the one that is current."""


class Streams(Protocol):
    """Devices by index. Streams and events are opaque; whatever fails raises RuntimeError, at once or later."""

    def capturing(self) -> bool:
        """Whether a CUDA graph is being recorded: nothing may be waited for, and nothing asked of an event."""

    def device_of(self, tensor: Tensor) -> int | None:
        """The device that a tensor lives on; None: the host."""

    def pinned(self, tensor: Tensor) -> bool:
        """Whether a device may be writing into a tensor of the host."""

    def current(self, device: int) -> Any:
        """The stream that the training works on."""

    def side(self, device: int) -> Any:
        """A stream beside it, always the same; made when it is first asked for."""

    def record(self, stream: Any) -> Any:
        """An event: all that was put on ``stream`` so far."""

    def wait(self, stream: Any, event: Any) -> None:
        """What is put on ``stream`` from now on comes after ``event``; the host goes on."""

    def finished(self, event: Any) -> bool:
        """Whether it has happened; does not wait."""

    def run(self, stream: Any, work: Callable[[], None]) -> None:
        """Calls ``work``, and whatever it asks of the device is put on ``stream``."""

    def write(self, stream: Any, place: Tensor, number: int) -> None:
        """Writes ``number`` into one int64 of registered host memory, when the turn of the stream comes."""

    def register(self, device: int, address: int, length: int) -> None:
        """Pins a range of host memory, so that devices write into it by themselves."""

    def unregister(self, device: int, address: int) -> None:
        """Undoes `register`; nothing may write there any more."""


class CudaStreams:
    """The streams of CUDA. Touches no device but those that it is asked about.

    A context on device 0 costs half a GiB there, and is made by any call with no device selected: hence every call
    selects one. ``torch.cuda.device`` gives back the one before without making a context on it, and
    ``torch.cuda.stream`` alone would not.
    """

    def __init__(self) -> None:
        self._sides: dict[int, Any] = {}

    def capturing(self) -> bool:
        """See `Streams`."""
        return torch.cuda.is_current_stream_capturing()

    def device_of(self, tensor: Tensor) -> int | None:
        """See `Streams`."""
        return tensor.device.index if tensor.is_cuda else None

    def pinned(self, tensor: Tensor) -> bool:
        """See `Streams`."""
        return tensor.is_pinned()

    def current(self, device: int) -> Any:
        """See `Streams`."""
        return torch.cuda.current_stream(device)

    def side(self, device: int) -> Any:
        """See `Streams`."""
        if device not in self._sides:
            self._sides[device] = _cuda.Stream(device)
        return self._sides[device]

    def record(self, stream: Any) -> Any:
        """See `Streams`."""
        event = _cuda.Event()
        event.record(stream)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """See `Streams`."""
        stream.wait_event(event)

    def finished(self, event: Any) -> bool:
        """See `Streams`."""
        return bool(event.query())

    def run(self, stream: Any, work: Callable[[], None]) -> None:
        """See `Streams`."""
        with torch.cuda.device(stream.device), torch.cuda.stream(stream):
            work()

    def write(self, stream: Any, place: Tensor, number: int) -> None:
        """See `Streams`."""

        def work() -> None:
            # Freed at once, and not used again before the copy: its memory belongs to this stream.
            word = torch.full((1,), number, dtype=torch.int64, device=stream.device)
            place.copy_(word, non_blocking=True)

        self.run(stream, work)

    def register(self, device: int, address: int, length: int) -> None:
        """See `Streams`."""
        _apart(device, lambda: _cuda.cudart().cudaHostRegister(address, length, _PORTABLE))

    def unregister(self, device: int, address: int) -> None:
        """See `Streams`."""
        _apart(device, lambda: _cuda.cudart().cudaHostUnregister(address))


def _apart(device: int, call: Callable[[], Any]) -> None:
    """Makes a call of the CUDA runtime in a thread of its own.

    The runtime keeps the last error of each thread, and torch would raise it at the next kernel of the user's.

    Raises:
        RuntimeError: it has failed.
    """
    failed: list[RuntimeError] = []

    def run() -> None:
        try:
            with torch.cuda.device(device):
                torch.cuda.check_error(call())
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="holdfast-pin", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
