"""The stacks of another process: it writes them itself when a signal comes, from C, whatever it is doing."""

from __future__ import annotations

import os
import re
import signal
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

LONGEST = 60_000
"""Characters that are kept."""
_SECONDS = 5.0
"""How long the writing of stacks may take."""
_DEBUGGERS = ("/bdb.py", "/pdb.py", "/pydevd", "/debugpy/", "/ipdb/")
_COMPILERS = re.compile(
    r"/torch/_dynamo/(convert_frame|symbolic_convert)\.py"
    r'|/torch/_dynamo/output_graph\.py", line \d+ in _?call_user_compiler'
    r'|/torch/_dynamo/backends/common\.py", line \d+ in _wrapped_bw_compiler'
    r"|/torch/_functorch/_aot_autograd/(graph_compile|graph_capture|collect_metadata_analysis)\.py"
    r'|/torch/_functorch/_aot_autograd/runtime_wrappers\.py", line \d+ in get_or_compile'
    r"|/torch/_inductor/(graph|scheduler|async_compile)\.py"
    r'|/torch/_inductor/compile_fx\.py", line \d+ in (?!(run|wrapper)\b)'
    r'|/triton/compiler/compiler\.py", line \d+ in compile\b'
)
"""Where torch 2.13 and triton compile. Other places of theirs are on the stack while what was compiled *runs*, as
eval_frame.py is, or in a thread that waits for ever, as compile_worker is: a hang there is a hang."""
_WAITERS = ("/torch/distributed/",)
_BACKWARD = "in _engine_run_backward"
_OURS = Path(__file__).parents[1]
_NOT_THE_PROGRAM = (f'"{sysconfig.get_path("stdlib")}/', "/site-packages/", "/dist-packages/", f'"{_OURS}/', '"<')
"""Of files that a program is not made of."""


class Stacks(NamedTuple):
    """What a process was doing, as ``faulthandler`` writes it; source: CPython's documentation of that module."""

    text: str
    state: str
    """Of /proc/<pid>/status, for example "S (sleeping)"."""

    @property
    def innermost(self) -> str:
        """The innermost line of the thread that trains."""
        return next(iter(self._lines), "no Python code")

    @property
    def place(self) -> str:
        """That line, and the innermost one of the program itself, if that is another."""
        mine = next((line for line in self._lines if not any(folder in line for folder in _NOT_THE_PROGRAM)), None)
        return self.innermost if mine in (None, self.innermost) else f"{self.innermost}, called from {mine}"

    @property
    def _lines(self) -> list[str]:
        main = self.text.rpartition("hread 0x")[2]  # the oldest thread, written last
        return [line.strip() for line in main.splitlines() if line.strip().startswith("File ")]

    @property
    def excuse(self) -> str | None:
        """Why it makes no step, if that is no hang: a person steps through it, or a compiler of torch is at work."""
        if any(mark in self.text for mark in _DEBUGGERS):
            return "a person steps through it"
        return "a compiler is at work" if _COMPILERS.search(self.text) else None

    @property
    def waiting(self) -> bool:
        """Whether the thread that trains is inside of torch.distributed: then it is most likely another rank."""
        return any(mark in self.innermost for mark in _WAITERS)

    @property
    def backward(self) -> bool:
        """Whether it is in a backward pass, in the middle of which wrappers wait for other ranks, in C."""
        return _BACKWARD in self.innermost


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
    # Both processes share the place in the file, so it is back at its start for the trainer, too.
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    signal.pidfd_send_signal(pidfd, number)
    return Stacks(_written(descriptor), _status(pid).get("State", "unknown"))


def _written(descriptor: int) -> str:
    """What is written from now on, until nothing more comes: all of it, or its end, where the oldest thread is."""
    end, size, quiet = time.monotonic() + _SECONDS, 0, 0
    while time.monotonic() < end and quiet < 3:
        time.sleep(0.1)
        now = os.fstat(descriptor).st_size
        quiet = quiet + 1 if now == size > 0 else 0
        size = now
    return os.pread(descriptor, min(size, LONGEST), max(0, size - LONGEST)).decode(errors="replace")


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
