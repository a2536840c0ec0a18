"""Starts the ranks of a world as processes of their own, and waits for them, never longer than was said."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

KITS = Path(__file__).parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


@cache
def _nursery() -> subprocess.Popen[str]:
    """It ends when this process does: its input is over then."""
    command = [sys.executable, str(KITS / "nursery.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environ())
    atexit.register(process.communicate)
    return process


def _environ() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(KITS), os.environ.get("PYTHONPATH")]))
    return os.environ | ENVIRONMENT | {"PYTHONPATH": path}


def _asked(**order: object) -> Any:
    process = _nursery()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


_ports = itertools.count()


@dataclass
class World:
    """Ranks that run, or have run."""

    pids: list[int]
    logs: list[Path]
    codes: list[int] = field(default_factory=list)

    def wait(self, seconds: float) -> World:
        """Until all have ended; kills what is left after so long, which is a failure."""
        codes = _asked(pids=self.pids, seconds=seconds)
        if codes is None:
            self.kill()
            raise AssertionError(f"a rank did not end in {seconds:.0f} s\n{self.text}")
        self.codes = codes
        return self

    def kill(self) -> None:
        """For whoever has not waited; the pids of those that have ended are theirs until then."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _asked(pids=self.pids, seconds=10.0)

    def check(self) -> World:
        assert self.codes == [0] * len(self.codes), f"{self.codes}\n{self.text}"
        return self

    @property
    def text(self) -> str:
        return "\n".join(f"--- rank {rank}\n{log.read_text()[-6000:]}" for rank, log in enumerate(self.logs))


def free_port() -> int:
    """One that nobody else is given before it is used: below those that the kernel draws from, per worker of xdist."""
    first = 20_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12)
    while True:
        port = first + next(_ports) % 1_000
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def start(folder: Path, script: str, size: int, *arguments: object, **environ: str) -> World:
    """``script`` of the kits on so many ranks; with one it is a plain process."""
    folder.mkdir(parents=True, exist_ok=True)
    port, logs = str(free_port()), [folder / f"rank-{rank}.log" for rank in range(size)]
    place = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pids = []
    for rank, log in enumerate(logs):
        log.touch()
        ranks = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        order = {"script": str(KITS / script), "arguments": [str(one) for one in arguments], "folder": str(folder)}
        pids.append(_asked(**order, environ=_environ() | ranks | environ, log=str(log)))
    return World(pids, logs)


def run(folder: Path, script: str, size: int, *arguments: object, seconds: float = 300, **environ: str) -> World:
    """As `start`, to the end, which has to be a good one."""
    return start(folder, script, size, *arguments, **environ).wait(seconds).check()
