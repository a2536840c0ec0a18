"""Starts workers, listens to them, and ends everything that they started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

BENCHMARKS = Path(__file__).parents[1]
PATIENCE = 300.0
"""Seconds without a word after which a worker is given up."""


class Failed(Exception):
    """A library did not do what was asked; the message is one line."""


class Worker:
    """One library in a process and a session of its own."""

    def __init__(self, what: str, name: str, folder: Path, *options: str) -> None:
        self.name, self.folder = name, folder
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed by end()
        command = [sys.executable, "-W", "ignore", "-m", "harness.worker", what, name, str(folder), *options]
        self._process = subprocess.Popen(
            command,
            cwd=BENCHMARKS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> dict[str, Any]:
        """The next line.

        Raises:
            Failed: the library has failed, or the process has died or is silent.
        """
        timer = threading.Timer(PATIENCE, self._kill)
        timer.start()
        assert self._process.stdout
        line = self._process.stdout.readline()
        silent = not timer.is_alive()
        timer.cancel()
        if not line:
            raise Failed(f"silent for {PATIENCE:.0f} s" if silent else "died without a word")
        said: dict[str, Any] = json.loads(line)
        if said["at"] == "failed":
            raise Failed(self._short(said["error"]))
        return said

    def tell(self, word: str = "go") -> None:
        assert self._process.stdin
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Ends it, with every daemon that it left behind, and deletes what it wrote."""
        started = below(self.pid)
        with suppress(OSError):
            self.tell("")
        self._ended(20)
        self._kill()  # before it is waited for: until then its number, and that of its group, is nobody else's
        self._process.wait()
        for process in psutil.wait_procs(started, timeout=20)[1]:  # daemons with a session of their own
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def _ended(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.01)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _short(self, error: str) -> str:
        """One line, without the paths of this machine."""
        text = " ".join(error.replace(str(self.folder), "FOLDER").split())
        return text if len(text) <= 160 else text[:157] + "..."


def below(pid: int) -> list[psutil.Process]:
    """Everything that a process has started and that still runs."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """A folder on the disk that is measured; gone afterwards, on SIGTERM too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
