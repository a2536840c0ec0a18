"""Starts the ranks of one world as processes of their own, waits for them, and reads what the first of them found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.driver import BENCHMARKS, Failed

PATIENCE = 240.0
"""Seconds after which a world is given up."""


def run(role: str, folder: Path, size: int, *options: object) -> dict[str, Any]:
    """``harness.sharded`` on so many ranks, to the end.

    Raises:
        Failed: a rank has failed, or takes too long; what it said is on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, logs = folder / f"{role}.json", [folder / f"{role}-{rank}.log" for rank in range(size)]
    found.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "harness.sharded", role, str(folder), *map(str, options)]
    ranks = _started(command, logs)
    try:
        _await(ranks)
    except Failed:
        texts = (f"--- rank {rank}\n{log.read_text()[-4000:]}" for rank, log in enumerate(logs))
        print("\n".join(texts), file=sys.stderr)
        raise
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    said: dict[str, Any] = json.loads(found.read_text())
    return said


def _started(command: list[str], logs: list[Path]) -> list[subprocess.Popen[bytes]]:
    world = {"WORLD_SIZE": str(len(logs)), "LOCAL_WORLD_SIZE": str(len(logs)), "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(logs)))}
    ranks = []
    for rank, log in enumerate(logs):
        env = os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("w") as output:
            ranks.append(subprocess.Popen(command, env=env, cwd=BENCHMARKS, stdout=output, stderr=output))
    return ranks


def _await(ranks: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + PATIENCE
    while any(process.poll() is None for process in ranks):
        if failed := [rank for rank, process in enumerate(ranks) if process.poll()]:
            raise Failed(f"rank {failed[0]} ended with {ranks[failed[0]].poll()}")
        if time.monotonic() >= until:
            raise Failed(f"not through after {PATIENCE:.0f} s")
        time.sleep(0.05)
    if any(process.poll() for process in ranks):
        raise Failed("a rank has failed")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
