"""Who stands behind a launch, a hold or a sweep, and whether that process is still there.

The answer is only a hint: it decides who is waited for, never who may publish.
That is decided by the race for the record's name.

Example:
    >>> liveness(this_process())
    <Liveness.ALIVE: 'alive'>
"""

from __future__ import annotations

import os
import socket
from enum import StrEnum
from functools import cache
from pathlib import Path

import psutil

from holdfast.records import Owner


class Liveness(StrEnum):
    """What can be known about a process from here."""

    ALIVE = "alive"
    DEAD = "dead"
    """Proven: its host has rebooted, or its pid is free or somebody else's."""
    UNKNOWN = "unknown"
    """On another host, or not visible from here."""


def this_process() -> Owner:
    """The owner that stands for the calling process; right in forked children, too."""
    pid = os.getpid()
    return Owner(host=_host(), boot=_boot(), pid=pid, started=_started(pid) or "unknown")


def liveness(owner: Owner) -> Liveness:
    """Whether ``owner`` still runs, as far as this host can tell. Never raises."""
    if owner.host != _host():
        return Liveness.UNKNOWN
    if owner.boot != _boot():
        return Liveness.DEAD
    return _same_boot(owner)


def _same_boot(owner: Owner) -> Liveness:
    started = _started(owner.pid)
    if started is None:
        # hidepid= hides the processes of other users from /proc, but not from kill(2).
        return Liveness.UNKNOWN if psutil.pid_exists(owner.pid) else Liveness.DEAD
    if "unknown" in (started, owner.started):
        return Liveness.UNKNOWN
    return Liveness.ALIVE if started == owner.started else Liveness.DEAD


@cache
def _host() -> str:
    # Containers share the kernel's boot id but not its process ids, so a
    # pid from another pid namespace must not be looked up in this one.
    return f"{socket.gethostname()}{_namespace()}"


def _namespace() -> str:
    try:
        return "/" + str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _started(pid: int) -> str | None:
    """Start time in kernel ticks; None: no such process; ``unknown``: it cannot be told; ``zombie``: ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _started_elsewhere(pid)
    except OSError:
        return "unknown"
    fields = stat.rpartition(")")[2].split()  # the name of a command may hold spaces and brackets
    return "zombie" if fields[0] in "ZX" and not _has_threads(pid) else fields[19]


def _has_threads(pid: int) -> bool:
    # After SIGKILL the leader is a zombie while another thread may still be inside a system call.
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def _started_elsewhere(pid: int) -> str | None:
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return "unknown"
