"""Peak memory of a process and everything below it: PSS, so that shared memory counts once."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil


def used(pid: int) -> int:
    """Bytes of physical memory of the process tree at this moment, files that are only mapped for reading left out."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += _of(process.pid)
    return total


def _of(pid: int) -> int:
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return sum(
            int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
        )
    return 0


class Sampler(threading.Thread):
    """Looks every few milliseconds; each look stops the process from mapping memory for a moment, so time nothing."""

    def __init__(self, pid: int, seconds: float = 0.01) -> None:
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
