"""Ranks are forked from a process that has imported torch: ``python nursery.py``, with orders as lines of its input.

To import it takes each of them longer than most of what they do. Nothing else was done before the fork, so that a child
is as a process of its own, to the end: it leaves as the interpreter does.

Orders: ``{"script", "arguments", "environ", "folder", "log"}`` begins one and is answered by its pid;
``{"pids", "seconds"}`` waits and is answered by the exit codes, or by null if they did not all end in time.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor.parallel  # noqa: F401

import holdfast.checkpointer  # noqa: F401

CODES: dict[int, int] = {}
"""Of children that have ended."""


def serve() -> dict[str, Any] | None:
    """Carries out orders; gives one to whoever is to become it, and None at the end."""
    for line in sys.stdin:
        order = json.loads(line)
        if "script" not in order:
            answer: object = wait(order["pids"], order["seconds"])
        elif not (answer := os.fork()):
            return order
        print(json.dumps(answer), flush=True)
    return None


def wait(pids: list[int], seconds: float) -> list[int] | None:
    end = time.monotonic() + seconds
    while missing := [pid for pid in pids if pid not in CODES]:
        for pid in missing:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                CODES[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)
    return [CODES[pid] for pid in pids]


def become(order: dict[str, Any]) -> None:
    """As if the script had been started."""
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["folder"])
    sys.argv = [order["script"], *order["arguments"]]
    runpy.run_path(order["script"], run_name="__main__")


if __name__ == "__main__":
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "what has threads must not be forked"
    mine = serve()
    if mine is not None:
        become(mine)
