"""Who stands behind a launch, a hold or a sweep, and whether that process is still there.

The answer is only a hint: it decides who is waited for, never who may publish.
That is decided by the race for the record's name.

Example:
    >>> liveness(this_process())
    <Liveness.ALIVE: 'alive'>
"""

from __future__ import annotations

import os
import re
import socket
from enum import StrEnum
from functools import cache
from pathlib import Path

import psutil

from holdfast.records import Owner

_FIRST_NAMESPACE = "/4026531836"
"""The pid namespace that a machine boots with has the same number on every Linux (PROC_PID_INIT_INO)."""


class Liveness(StrEnum):
    """What can be known about a process from here."""

    ALIVE = "alive"
    DEAD = "dead"
    """Proven: this machine has rebooted since, or its pid is free or somebody else's."""
    REBOOTED = "rebooted"
    """Its host has this one's name and another boot id: rebooted, or another machine of the same name.

    Enough to give up on a save, whose record name is raced for; never to delete what it relies on.
    """
    UNKNOWN = "unknown"
    """On another host, or not visible from here."""


def this_process() -> Owner:
    """The owner that stands for the calling process; right in forked children, too."""
    return process_named(os.getpid())


def process_named(pid: int) -> Owner:
    """The owner that stands for a process of this machine."""
    return Owner(host=_host(), boot=_boot(), pid=pid, started=_started(pid) or "unknown")


def liveness(owner: Owner) -> Liveness:
    """Whether ``owner`` still runs, as far as this host can tell. Never raises."""
    if owner.host != _host():
        return Liveness.UNKNOWN
    if owner.boot != _boot():
        return Liveness.DEAD if _machine() else Liveness.REBOOTED
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
    machine = _machine()
    return f"{socket.gethostname()}{_namespace()}{f'/{machine}' if machine else ''}"


def _namespace() -> str:
    try:
        return "/" + str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


@cache
def _machine() -> str:
    """The machine's own id; empty where it is not known, or may be that of an image that many machines run."""
    if _namespace() != _FIRST_NAMESPACE or _is_from_image():
        return ""
    try:
        found = Path("/etc/machine-id").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return found if re.fullmatch(r"[0-9a-f]{32}", found) and set(found) != {"0"} else ""


def _is_from_image() -> bool:
    """Whether the root filesystem is a layer over an image, as in containers, which share its files."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines()]
    except OSError:
        return True
    return any(fields[1:3] == ["/", "overlay"] for fields in mounts)


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
