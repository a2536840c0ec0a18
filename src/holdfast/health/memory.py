"""``host_memory``, ``cgroup_memory``, ``gpu_memory``, ``out_of_memory``: room that runs out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast.health import arguments
from holdfast.health.base import Check, Finding, Look
from holdfast.health.observation import Fact, Observation
from holdfast.health.verdict import Severity
from holdfast.health.writing import written
from holdfast.policy import Every, every
from holdfast.policy.numbers import plain_numbers
from holdfast.policy.sizes import show_size

_OFTEN = every(seconds=10)


def warned(observation: Observation, state: Any, message: str | None) -> Look:
    """A look that only warns, of this very step."""
    step = observation.step
    return Look(state, Finding(message, Severity.WARNING, step, step) if message else None)


@dataclass(frozen=True, slots=True)
class HostMemoryLow(Check):
    """See `host_memory`."""

    facts: ClassVar[frozenset[Fact]] = frozenset({Fact.HOST})
    below: int | str = "1GiB"
    every: Every = _OFTEN

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.size("host_memory(below=)", self.below)
        arguments.cadence("host_memory(every=)", self.every)

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        host = observation.machine.host
        if host is None or host.available is None:
            return Look(state, seen=False)
        least = arguments.size("host_memory(below=)", self.below)
        said = f"{show_size(host.available)} of memory are available on the host, less than {show_size(least)}"
        own = f"; {show_size(host.rss)} are this process's" if host.rss is not None else ""
        return warned(observation, state, said + own if host.available < least else None)

    def __str__(self) -> str:
        return written("host_memory", self)


@dataclass(frozen=True, slots=True)
class CgroupMemoryFull(Check):
    """See `cgroup_memory`."""

    facts: ClassVar[frozenset[Fact]] = frozenset({Fact.CGROUP})
    above: float = 0.95
    every: Every = _OFTEN

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.number("cgroup_memory(above=)", self.above, most=1.0)
        arguments.cadence("cgroup_memory(every=)", self.every)

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        cgroup = observation.machine.cgroup
        if cgroup is None:
            return Look(state, seen=False)
        message = (
            f"{show_size(cgroup.used)} of the {show_size(cgroup.limit)} that {cgroup.where or 'the cgroup'} allows "
            f"are in use, more than {self.above:.0%}: the kernel ends somebody at the limit"
        )
        return warned(observation, state, message if cgroup.share > self.above else None)

    def __str__(self) -> str:
        return written("cgroup_memory", self)


@dataclass(frozen=True, slots=True)
class GpuMemoryFull(Check):
    """See `gpu_memory`."""

    facts: ClassVar[frozenset[Fact]] = frozenset({Fact.GPU_MEMORY})
    above: float = 0.95
    every: Every = _OFTEN

    def __post_init__(self) -> None:
        plain_numbers(self)
        arguments.number("gpu_memory(above=)", self.above, most=1.0)
        arguments.cadence("gpu_memory(every=)", self.every)

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        devices = observation.machine.gpu_memory
        if not devices:
            return Look(state, seen=False)
        full = [one for one in devices if one.share > self.above]
        said = ", ".join(f"{show_size(one.used)} of {show_size(one.total)} on GPU {one.device}" for one in full)
        return warned(observation, state, f"{said} are in use, more than {self.above:.0%}" if full else None)

    def __str__(self) -> str:
        return written("gpu_memory", self)


@dataclass(frozen=True, slots=True)
class OutOfMemory(Check):
    """See `out_of_memory`."""

    def look(self, observation: Observation, state: Any) -> Look:
        """See `Check.look`."""
        return warned(observation, state, observation.out_of_memory)

    def __str__(self) -> str:
        return written("out_of_memory", self)


def host_memory(*, below: int | str = "1GiB", every: Every | None = None) -> HostMemoryLow:
    """Less than ``below`` (bytes, or a text such as ``"4GB"``) is available on the host; looked at every 10 seconds.

    Raises:
        InvalidPolicy: no size, or no cadence.

    Example:
        >>> print(host_memory(below="4GB"))
        host_memory(below="4GB")
    """
    return HostMemoryLow(below, every or _OFTEN)


def cgroup_memory(*, above: float = 0.95, every: Every | None = None) -> CgroupMemoryFull:
    """More than this share of the tightest cgroup limit is in use, clean page cache not counted; every 10 seconds.

    Raises:
        InvalidPolicy: ``above`` not in (0, 1], or no cadence.
    """
    return CgroupMemoryFull(above, every or _OFTEN)


def gpu_memory(*, above: float = 0.95, every: Every | None = None) -> GpuMemoryFull:
    """More than this share of a GPU's memory is in use; what torch keeps in reserve is not; every 10 seconds.

    Raises:
        InvalidPolicy: ``above`` not in (0, 1], or no cadence.
    """
    return GpuMemoryFull(above, every or _OFTEN)


def out_of_memory() -> OutOfMemory:
    """The step before this boundary failed for want of memory on the device."""
    return OutOfMemory()
