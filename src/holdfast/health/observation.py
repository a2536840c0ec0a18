"""What a check may look at: facts of one boundary, gathered before it is asked.

No clock, disk, device or network is reached from a check, so a verdict can be
replayed, tested and explained. None, and what is not there, mean "not known"
and never "nothing wrong".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Fact(StrEnum):
    """A group of facts that costs something to gather; `Watch.wants` says which are needed at a boundary."""

    GRADIENTS = "gradients"
    PARAMETERS = "parameters"
    HOST = "host"
    CGROUP = "cgroup"
    GPU_MEMORY = "gpu-memory"
    GPU = "gpu"
    DISK = "disk"


SAMPLED = frozenset({Fact.GRADIENTS, Fact.PARAMETERS})
"""Sampled on the device at one boundary, and known at a later one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a sample of tensors looked like after ``step``; on a device it is known a few steps later."""

    step: int
    """Completed optimizer steps when the sample was taken."""
    what: Fact
    """``GRADIENTS`` or ``PARAMETERS``."""
    sampled: int
    """How many tensors were looked at; 0: there were none, so nothing is known."""
    nonfinite: tuple[str, ...] = ()
    """Names of those that hold a NaN or an infinity."""
    norm: float | None = None
    """The 2-norm over all gradients of this rank; None if not all of them were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Memory of this process and of its machine, in bytes."""

    rss: int | None = None
    """Resident memory of this process."""
    available: int | None = None
    """What can be taken without swapping (MemAvailable)."""
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMemory:
    """The tightest cgroup limit over this process, in bytes."""

    used: int
    """What cannot be given back at once: without clean page cache."""
    limit: int
    where: str = ""
    """The file that sets the limit."""

    @property
    def share(self) -> float:
        """Used over allowed."""
        return self.used / self.limit if self.limit else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of one device, in bytes."""

    device: int
    used: int
    """By everybody, without what torch has taken and not handed out."""
    total: int

    @property
    def share(self) -> float:
        """Used over present."""
        return self.used / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """How one device is, as its driver says; None: it does not say."""

    device: int
    celsius: float | None = None
    uncorrected: int | None = None
    """Memory errors that ECC could not correct, counted since the driver was loaded."""
    failing: str | None = None
    """What the driver calls broken or about to be: rows that cannot be remapped, for example."""
    xids: tuple[int, ...] = ()
    """Numbers of the XID errors that the driver has reported since the last look, of whatever process."""
    throttled: tuple[str, ...] = ()
    """Why it runs slower than it could, such as ``hw-thermal``; power management in everyday use is not listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The disk of the store, and what the next checkpoint will need of it."""

    where: str = ""
    free_bytes: int | None = None
    """For users without privileges."""
    free_inodes: int | None = None
    """None also where the filesystem has no fixed number of them."""
    next_bytes: int | None = None
    """Predicted size of the next checkpoint."""
    next_files: int | None = None
    """Predicted number of its files."""
    once_bytes: int = 0
    """On top of its size, and written by the next one only: those after it share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found out about the machine since the boundary before; None and empty: nothing new."""

    host: HostMemory | None = None
    cgroup: CgroupMemory | None = None
    gpu_memory: tuple[GpuMemory, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    disk: Disk | None = None


NO_MACHINE = Machine()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One boundary between two optimizer steps, as checks see it."""

    step: int
    """Completed optimizer steps."""
    seconds: float
    """By the monotonic clock: the wall clock may jump."""
    step_seconds: float | None = None
    """How long the step before this boundary took, without saving, evaluation or a restore if the loop can tell."""
    metrics: Mapping[str, object] = field(default_factory=dict)
    """What was logged for this step."""
    probes: tuple[Probed, ...] = ()
    """Samples that have become known since the boundary before."""
    machine: Machine = NO_MACHINE
    out_of_memory: str | None = None
    """What the device said when it had no memory left for this step; None: it had."""
    rank: int = 0

    @property
    def facts(self) -> frozenset[Fact]:
        """Which groups of facts have become known with it."""
        machine = self.machine
        there = {
            Fact.HOST: machine.host,
            Fact.CGROUP: machine.cgroup,
            Fact.GPU_MEMORY: machine.gpu_memory,
            Fact.GPU: machine.gpus,
            Fact.DISK: machine.disk,
        }
        return frozenset([*(fact for fact, found in there.items() if found), *(probe.what for probe in self.probes)])
