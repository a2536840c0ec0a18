"""What NVIDIA's driver says of a device, through the package nvidia-ml-py, where that is installed.

Thin on purpose. Whatever is missing or fails (the package, the library, the
right, the sensor) is not known, and never an error. Constants are those of
nvml.h, which do not change.

Sources: NVML API reference, "Event Handling Methods" (each XID is one event, and waits in the set until it is fetched);
NVIDIA's Xid catalog for what a number means.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

from holdfast.health.observation import Gpu

logger = logging.getLogger(__name__)

_TEMPERATURE_GPU = 0
_UNCORRECTED, _VOLATILE = 1, 0
_THROTTLED = {0x08: "hw-slowdown", 0x20: "sw-thermal", 0x40: "hw-thermal", 0x80: "hw-power-brake"}
"""Idle clocks, the everyday power cap and clocks that somebody has set are no trouble."""
_XID_EVENTS = 0x8
_MOST_EVENTS = 64
"""Of one look: a device that is lost may have more to say than anybody wants to hear."""


class Nvml:
    """The driver, asked lazily.

    Args:
        module: something with the functions of ``pynvml``; imported when it is first needed if left out.
    """

    def __init__(self, module: Any = None) -> None:
        self._module = module
        self._ready: bool | None = None
        self._handles: dict[str, Any] = {}
        self._events: dict[str, Any] = {}

    def read(self, device: int, uuid: str) -> Gpu | None:
        """How a device is; None: the driver cannot be asked, or does not know it.

        Args:
            device: the number that torch gives it, which is not the driver's.
            uuid: without the ``GPU-`` before it.
        """
        handle = self._handle(uuid)
        if handle is None:
            return None
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if bits is None:  # its name before version 12.535
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return Gpu(
            device=device,
            celsius=self._ask("nvmlDeviceGetTemperature", handle, _TEMPERATURE_GPU),
            uncorrected=self._ask("nvmlDeviceGetTotalEccErrors", handle, _UNCORRECTED, _VOLATILE),
            failing=_failing(self._ask("nvmlDeviceGetRemappedRows", handle)),
            throttled=tuple(name for bit, name in _THROTTLED.items() if (bits or 0) & bit),
            xids=self._xids(uuid, handle),
        )

    def _xids(self, uuid: str, handle: Any) -> tuple[int, ...]:
        """What has come since the last look; the first one only begins to listen."""
        if uuid not in self._events:
            self._events[uuid] = self._listening(handle)
        if (events := self._events[uuid]) is None:
            return ()
        waits = (self._ask("nvmlEventSetWait_v2", events, 0) for _ in range(_MOST_EVENTS))
        return tuple(int(event.eventData) for event in itertools.takewhile(lambda event: event is not None, waits))

    def _listening(self, handle: Any) -> Any:
        """A set of events, to which those of the device come from now on; None: the driver has none."""
        events = self._ask("nvmlEventSetCreate")
        if events is not None:
            self._ask("nvmlDeviceRegisterEvents", handle, _XID_EVENTS, events)
        return events

    def _handle(self, uuid: str) -> Any:
        if self._ready is None:
            self._ready = self._begin()
        if not self._ready:
            return None
        if uuid not in self._handles:
            self._handles[uuid] = self._ask("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}")
        return self._handles[uuid]

    def _begin(self) -> bool:
        try:
            self._module = self._module or import_module("pynvml")
            self._module.nvmlInit()
        except Exception as error:
            logger.info("temperature and errors of GPUs are not known (%s); install holdfast[gpu] to have them", error)
            return False
        return True

    def _ask(self, name: str, *arguments: Any) -> Any:
        ask: Callable[..., Any] | None = getattr(self._module, name, None)
        try:
            return None if ask is None else ask(*arguments)
        except Exception as error:  # NVMLError, whose class is the module's
            logger.debug("%s: %s", name, error)
            return None


def _failing(rows: Any) -> str | None:
    """From corrected, uncorrected, whether a remap waits for a reset, and whether one has failed."""
    try:
        _, _, _, failed = rows
    except (TypeError, ValueError):
        return None
    return "a row of its memory could not be remapped; the device wants to be replaced" if failed else None
