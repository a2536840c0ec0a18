"""The stacks of another process: it writes them itself when a signal comes, from C, whatever it is doing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

LONGEST = 60_000
"""Characters that are kept."""
_SECONDS = 5.0
"""How long the writing of stacks may take."""
_DEBUGGERS = ("/bdb.py", "/pdb.py", "/pydevd", "/debugpy/", "/ipdb/")
_COMPILERS = ("/torch/_dynamo/", "/torch/_inductor/", "/triton/compiler/")
_WAITERS = ("/torch/distributed/",)


class Stacks(NamedTuple):
    """What a process was doing, as ``faulthandler`` writes it; source: CPython's documentation of that module."""

    text: str
    state: str
    """Of /proc/<pid>/status, for example "S (sleeping)"."""

    @property
    def innermost(self) -> str:
        """The innermost line of the thread that trains."""
        main = self.text.rpartition("hread 0x")[2]  # the oldest thread, written last
        lines = [line.strip() for line in main.splitlines() if line.strip().startswith("File ")]
        return lines[0] if lines else "no Python code"

    @property
    def debugged(self) -> bool:
        """Whether a person steps through it."""
        return any(mark in self.text for mark in _DEBUGGERS)

    @property
    def compiling(self) -> bool:
        """Whether a compiler of torch is at work."""
        return any(mark in self.text for mark in _COMPILERS)

    @property
    def waiting(self) -> bool:
        """Whether the thread that trains is inside of torch.distributed: then it is most likely another rank."""
        return any(mark in self.innermost for mark in _WAITERS)


def held(pid: int) -> str | None:
    """Why a process that makes no step cannot be blamed for it: it is stopped, or under a debugger; else None."""
    status = _status(pid)
    if status.get("TracerPid", "0") != "0":
        return "it is being traced"
    return "it is stopped" if status.get("State", "")[:1] in ("T", "t") else None


def dump(pid: int, pidfd: int, number: int, descriptor: int) -> Stacks:
    """Has a process write its stacks, and reads them; nothing of them if it does not answer.

    Args:
        pid: of the process.
        pidfd: of it.
        number: the signal upon which it does.
        descriptor: the file to which it does.
    """
    before = os.fstat(descriptor).st_size
    signal.pidfd_send_signal(pidfd, number)
    return Stacks(_written(descriptor, before), _status(pid).get("State", "unknown"))


def _written(descriptor: int, before: int) -> str:
    """What is written from now on, until nothing more comes."""
    end, size, quiet = time.monotonic() + _SECONDS, before, 0
    while time.monotonic() < end and quiet < 3:
        time.sleep(0.1)
        now = os.fstat(descriptor).st_size
        quiet = quiet + 1 if now == size > before else 0
        size = now
    return os.pread(descriptor, min(size - before, LONGEST), before).decode(errors="replace")


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
