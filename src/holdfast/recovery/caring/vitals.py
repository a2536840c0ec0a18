"""Facts about the machine for the health checks: memory, cgroups, the store's disk, devices.

Nothing here makes the training wait. Files and the driver are read in a thread
of their own, for a mount that has gone away or a driver in trouble answers
late or never; what was found is handed over at a later boundary. Whatever
cannot be read is not known, and no error: these are facts about a training,
never a reason for it to fail.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from holdfast.health.observation import CgroupMemory, Disk, Fact, Gpu, GpuMemory, HostMemory, Machine
from holdfast.recovery.caring.needs import NOT_KNOWN, Needs
from holdfast.recovery.caring.nvml import Nvml
from holdfast.saver.cgroups import Cgroup, cgroups, text
from holdfast.saver.memory_limits import cgroup_use

logger = logging.getLogger(__name__)

SHORTEST = 1.0
"""Seconds between two readings of one fact, however often it is wanted."""
_NO_LIMIT = 1 << 60
"""Bytes: what version 1 of cgroups says where there is no limit is more."""
_STUCK = 60.0
"""Seconds after which a reading that has not come back is said to hang."""

_cuda: Any = torch.cuda
"""Without its types, for half of it has none."""


@dataclass(slots=True)
class Vitals:
    """Reads facts at a bounded rate, in the background. Not thread-safe; used by the thread that trains.

    Args:
        folder: where the store lies; None: it is no folder, and nothing is known of its disk.
        root: where ``proc`` and ``sys`` lie.
        nvml: what asks the driver; by default the package nvidia-ml-py, if it is there.
    """

    folder: Path | None
    root: Path = Path("/")
    nvml: Nvml = field(default_factory=Nvml)
    _read: dict[Fact, float] = field(default_factory=dict)
    _found: dict[Fact, Any] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _device: tuple[int, str] | None = None
    _began: float = 0.0
    _said: bool = False

    def gather(self, wanted: frozenset[Fact], seconds: float, *, needs: Needs = NOT_KNOWN) -> Machine:
        """What has become known since the last call; begins to read what is wanted and not just been read.

        Args:
            wanted: what `Watch.wants` gave; samples of tensors are not for here.
            seconds: by the monotonic clock.
            needs: what the next checkpoint will need.
        """
        known = self._taken()
        if Fact.GPU_MEMORY in wanted and self._is_time(Fact.GPU_MEMORY, seconds):
            # Here and not beside: what torch keeps in reserve is only known in step with the training.
            known[Fact.GPU_MEMORY] = gpu_memory()
        asked = [fact for fact in self._readers() if fact in wanted and self._is_time(fact, seconds, mark=False)]
        if asked:
            self._begin(asked, seconds)
        machine = _machine(known)
        if machine.disk is None:
            return machine
        known_disk = replace(machine.disk, next_bytes=needs.bytes, next_files=needs.files, once_bytes=needs.once)
        return replace(machine, disk=known_disk)

    def first(
        self, wanted: frozenset[Fact], seconds: float, *, timeout: float = 5.0, needs: Needs = NOT_KNOWN
    ) -> Machine:
        """As `gather`, but waits for what is wanted, up to ``timeout`` seconds: for the look before the first step."""
        early = self.gather(wanted, seconds)
        if self._thread is not None:
            self._thread.join(timeout)
        return replace(self.gather(frozenset(), seconds, needs=needs), gpu_memory=early.gpu_memory)

    def _is_time(self, fact: Fact, seconds: float, *, mark: bool = True) -> bool:
        last = self._read.get(fact)
        if last is not None and 0 <= seconds - last < SHORTEST:
            return False
        if mark:
            self._read[fact] = seconds
        return True

    def _begin(self, asked: list[Fact], seconds: float) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._complain(seconds)
            return
        self._read.update(dict.fromkeys(asked, seconds))
        self._began, self._said = seconds, False
        self._device = device_in_use()  # of the thread that trains; it would be the first one in any other
        readers = self._readers()
        work = [(fact, readers[fact]) for fact in asked]
        self._thread = threading.Thread(target=_work, args=(work, self._found), name="holdfast-vitals", daemon=True)
        self._thread.start()

    def _complain(self, seconds: float) -> None:
        if not self._said and seconds - self._began > _STUCK:
            self._said = True
            logger.warning("reading memory, disk and GPUs has not come back for %.0f s", seconds - self._began)

    def _taken(self) -> dict[Fact, Any]:
        # One by one: the thread may be adding others.
        return {fact: self._found.pop(fact) for fact in list(self._found)}

    def _readers(self) -> Mapping[Fact, Callable[[], Any]]:
        return {
            Fact.HOST: lambda: host_memory(self.root),
            Fact.CGROUP: lambda: cgroup_memory(self.root),
            Fact.DISK: lambda: disk(self.folder),
            Fact.GPU: lambda: gpus(self.nvml, self._device),
        }


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Of this process and its machine."""
    status, machine = text(root / "proc" / "self" / "status"), text(root / "proc" / "meminfo")
    return HostMemory(
        rss=_kilobytes(status, "VmRSS"),
        available=_kilobytes(machine, "MemAvailable"),
        total=_kilobytes(machine, "MemTotal"),
    )


def cgroup_memory(root: Path = Path("/")) -> CgroupMemory | None:
    """The limit that is nearest to being reached; None: there is none."""
    found = [limit for one in cgroups(root) for folder in one.folders if (limit := _cgroup(folder, one)) is not None]
    return max(found, key=lambda limit: limit.share, default=None)


def disk(folder: Path | None) -> Disk | None:
    """Of a store's folder, or of the nearest one above it that is there; quotas cannot be seen."""
    if folder is None:
        return None
    there = next((one for one in (folder, *folder.parents) if one.exists()), None)
    if there is None:
        return None
    found = os.statvfs(there)
    # Filesystems that make inodes as they are needed say that they have none.
    inodes = found.f_favail if found.f_files else None
    return Disk(where=str(folder), free_bytes=found.f_bavail * found.f_frsize, free_inodes=inodes)


def gpu_memory() -> tuple[GpuMemory, ...]:
    """Of the device that is trained on; nothing where CUDA is not in use, or a graph is being recorded.

    A few microseconds, and no synchronisation: the driver is asked for what is free, torch for what it has in reserve.
    """
    if not _cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        return ()
    try:
        device = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(device)
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    except RuntimeError as error:
        logger.debug("the memory of the device is not known: %s", error)
        return ()
    return (GpuMemory(device=device, used=max(0, total - free - reserve), total=total),)


def gpus(nvml: Nvml, device: tuple[int, str] | None) -> tuple[Gpu, ...]:
    """What the driver says of a device that `device_in_use` gave."""
    found = None if device is None else nvml.read(*device)
    return () if found is None else (found,)


def device_in_use() -> tuple[int, str] | None:
    """The device that this thread trains on, with its UUID; None where CUDA is not in use."""
    if not _cuda.is_initialized():
        return None
    device = torch.cuda.current_device()
    uuid = getattr(_cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else (device, str(uuid))


def _cgroup(folder: Path, cgroup: Cgroup) -> CgroupMemory | None:
    use = cgroup_use(folder, cgroup)
    if use is None or use.most >= _NO_LIMIT:
        return None
    return CgroupMemory(used=use.needed, limit=use.most, where=str(use.file))


def _kilobytes(table: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB$", table, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _work(readers: list[tuple[Fact, Callable[[], Any]]], found: dict[Fact, Any]) -> None:
    for fact, read in readers:
        try:
            found[fact] = read()
        except Exception as error:
            logger.debug("the %s is not known: %s", fact, error)


def _machine(known: Mapping[Fact, Any]) -> Machine:
    return Machine(
        host=known.get(Fact.HOST),
        cgroup=known.get(Fact.CGROUP),
        gpu_memory=known.get(Fact.GPU_MEMORY, ()),
        gpus=known.get(Fact.GPU, ()),
        disk=known.get(Fact.DISK),
    )
