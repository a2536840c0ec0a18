"""``gpu_errors``, ``gpu_hot``, ``gpu_throttled``: what the driver says of the devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast.health import arguments
from holdfast.health.base import Check, Finding, Look
from holdfast.health.memory import warned
from holdfast.health.observation import Fact, Gpu, Observation
from holdfast.health.verdict import Severity
from holdfast.health.writing import written
from holdfast.policy import Every, every
from holdfast.policy.numbers import plain_numbers

_OFTEN = every(seconds=30)
_WANTS = frozenset({Fact.GPU})

_OF_PROGRAMS = frozenset({13, 31, 43, 45, 68})
"""An illegal instruction or address, and what the driver clears away after a process has ended."""
_XIDS = {
    48: "a memory error that ECC could not correct",
    62: "its power management has stopped",
    63: "a row of its memory is remapped at the next reset",
    64: "a row of its memory could not be remapped",
    74: "an error of NVLink",
    79: "it has fallen off the bus",
    94: "a memory error that was contained to one program",
    95: "a memory error that was not contained: everything on the device is in doubt",
    119: "its firmware does not answer",
    120: "an error of its firmware",
    140: "memory errors that ECC could not correct",
}
"""The ones that trainings meet; source: NVIDIA's Xid catalog for data centre GPUs."""


@dataclass(frozen=True, slots=True)
class GpuErrors(Check):
    """See `gpu_errors`."""

    facts: ClassVar[frozenset[Fact]] = _WANTS
    every: Every = _OFTEN

    def __post_init__(self) -> None:
        arguments.cadence("gpu_errors(every=)", self.every)

    def rewound(self, state: Any, step: int) -> Any:
        """See `Check.rewound`: the counters of a device are no matter of the state."""
        return state

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        known = [one for one in observation.machine.gpus if one.uncorrected is not None or one.failing or one.xids]
        before: Mapping[int, int] = state or {}
        counts = {one.device: one.uncorrected for one in known if one.uncorrected is not None}
        if not known:
            return Look(before, seen=False)
        message = "; ".join(said for one in known for said in _errors(one, before.get(one.device)))
        step = observation.step
        # Nobody says which step the error fell into: all since the last look are in doubt, and good is withheld.
        finding = Finding(message, Severity.DOUBT, max(1, step), max(1, step)) if message else None
        return Look({**before, **counts}, finding)

    def __str__(self) -> str:
        return written("gpu_errors", self)


@dataclass(frozen=True, slots=True)
class GpuHot(Check):
    """See `gpu_hot`."""

    facts: ClassVar[frozenset[Fact]] = _WANTS
    celsius: float = 90.0
    every: Every = _OFTEN

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.number("gpu_hot(celsius=)", self.celsius)
        arguments.cadence("gpu_hot(every=)", self.every)

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        known = [(one.device, one.celsius) for one in observation.machine.gpus if one.celsius is not None]
        if not known:
            return Look(state, seen=False)
        hot = ", ".join(f"GPU {device} has {celsius:.0f} C" for device, celsius in known if celsius >= self.celsius)
        return warned(observation, state, f"{hot}; {self.celsius:g} are the limit" if hot else None)

    def __str__(self) -> str:
        return written("gpu_hot", self)


@dataclass(frozen=True, slots=True)
class GpuThrottled(Check):
    """See `gpu_throttled`."""

    facts: ClassVar[frozenset[Fact]] = _WANTS
    every: Every = _OFTEN

    def __post_init__(self) -> None:
        arguments.cadence("gpu_throttled(every=)", self.every)

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        if not observation.machine.gpus:
            return Look(state, seen=False)
        slow = [f"GPU {one.device} ({', '.join(one.throttled)})" for one in observation.machine.gpus if one.throttled]
        return warned(observation, state, f"throttled: {', '.join(slow)}" if slow else None)

    def __str__(self) -> str:
        return written("gpu_throttled", self)


def gpu_errors(*, every: Every | None = None) -> GpuErrors:
    """A GPU has had memory errors that ECC could not correct or XID errors since the last look, or is beyond repair.

    XID errors that a program brings about, this one or another on the same device, are not counted. What was there
    before the first look is not judged. Wants the package nvidia-ml-py, as all checks of GPUs but `gpu_memory` do;
    without it they see nothing. Every 30 seconds.
    """
    return GpuErrors(every or _OFTEN)


def gpu_hot(celsius: float = 90.0, *, every: Every | None = None) -> GpuHot:
    """A GPU has at least this temperature; every 30 seconds.

    Raises:
        InvalidPolicy: no temperature above 0.
    """
    return GpuHot(celsius, every or _OFTEN)


def gpu_throttled(*, every: Every | None = None) -> GpuThrottled:
    """A GPU is slowed down by heat, a power brake or its hardware; its everyday power cap is not counted.

    Every 30 seconds.
    """
    return GpuThrottled(every or _OFTEN)


def _errors(gpu: Gpu, before: int | None) -> Iterator[str]:
    if gpu.uncorrected is not None and before is not None and gpu.uncorrected > before:
        yield f"GPU {gpu.device} has had {gpu.uncorrected - before} uncorrected memory errors since the last look"
    if gpu.failing is not None:
        yield f"GPU {gpu.device}: {gpu.failing}"
    for xid in sorted({*gpu.xids} - _OF_PROGRAMS):
        yield f"GPU {gpu.device}: XID {xid}, {_XIDS.get(xid, 'see the Xid catalog of NVIDIA')}"
