"""Starts the ranks of a world as processes of their own, and waits for them, never longer than was said."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

KITS = Path(__file__).parent


@dataclass
class World:
    """Ranks that run, or have run."""

    processes: list[subprocess.Popen]
    logs: list[Path]
    codes: list[int | None] = field(default_factory=list)

    def wait(self, seconds: float) -> World:
        """Until all have ended; kills what is left after so long, which is a failure."""
        end = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"a rank did not end in {seconds:.0f} s\n{self.text}") from None
        self.codes = [process.returncode for process in self.processes]
        return self

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()

    def check(self) -> World:
        assert self.codes == [0] * len(self.codes), f"{self.codes}\n{self.text}"
        return self

    @property
    def text(self) -> str:
        return "\n".join(f"--- rank {rank}\n{log.read_text()[-6000:]}" for rank, log in enumerate(self.logs))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(folder: Path, script: str, size: int, *arguments: object, **environ: str) -> World:
    """``script`` of the kits on so many ranks; with one it is a plain process."""
    folder.mkdir(parents=True, exist_ok=True)
    port, logs = str(free_port()), [folder / f"rank-{rank}.log" for rank in range(size)]
    processes = []
    for rank, log in enumerate(logs):
        ranks = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = (
            os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, [str(KITS), os.environ.get("PYTHONPATH")])),
            }
            | (ranks if size > 1 else {})
            | environ
        )
        with log.open("a") as output:
            command = [sys.executable, str(KITS / script), *map(str, arguments)]
            processes.append(subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, cwd=folder))
    return World(processes, logs)


def run(folder: Path, script: str, size: int, *arguments: object, seconds: float = 120, **environ: str) -> World:
    """As `start`, to the end, which has to be a good one."""
    return start(folder, script, size, *arguments, **environ).wait(seconds).check()
