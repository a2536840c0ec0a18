"""Peak memory of a process and everything below it, what they share counted once."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil


def used(pid: int) -> int:
    """Bytes of physical memory of the process tree: anonymous pages, and shared ones whether mapped or only held."""
    anonymous = mapped = 0
    held: dict[tuple[int, int], int] = {}
    for process in _tree(pid):
        rollup = _rollup(process)
        anonymous += rollup.get("Pss_Anon", 0)
        mapped += rollup.get("Pss_Shmem", 0)
        held |= _held(process)
    return anonymous + max(mapped, sum(held.values()))


def _tree(pid: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        return [pid, *(one.pid for one in psutil.Process(pid).children(recursive=True))]
    return []


def _rollup(pid: int) -> dict[str, int]:
    """Proportional set sizes in bytes, where n processes that share a page count an n-th of it each."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        return {name: int(size.split()[0]) * 1024 for name, _, size in (line.partition(":") for line in lines)}
    return {}


def _held(pid: int) -> dict[tuple[int, int], int]:
    """Bytes of every memfd and file of /dev/shm that a process holds open, by identity."""
    found = {}
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(entry.readlink()).startswith(("/memfd:", "/dev/shm/")):
                    status = entry.stat()
                    found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found


class Sampler(threading.Thread):
    """Looks every few milliseconds; each look stops the process from mapping memory for a moment, so time nothing."""

    def __init__(self, pid: int, seconds: float = 0.02) -> None:
        super().__init__(daemon=True)
        self._pid, self._seconds, self._over = pid, seconds, threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._over.is_set():
            self.peak = max(self.peak, used(self._pid))
            time.sleep(self._seconds)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.peak
