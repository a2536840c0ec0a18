"""Where in a step a signal comes: in the forward and the backward pass, in the optimizer, while a save is made."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.recovery.saving.boundary_saves import BoundarySaves

PLACES = ("forward", "backward", "optimizer", "evaluation", "loading", "saving")


def sender(number: int, *, group: bool) -> Callable[[], None]:
    """Sends a signal, once, to this process or to its whole group, as schedulers do."""
    sent = []

    def send() -> None:
        if not sent:
            sent.append(time.monotonic())
            os.killpg(os.getpgrp(), number) if group else os.kill(os.getpid(), number)

    return send


@contextmanager
def struck(place: str, model: nn.Module, send: Callable[[], None]) -> Iterator[None]:
    """Within, the next pass through ``place`` sends: for one step. Other places are the caller's own to send at."""
    handles = []
    if place == "forward":
        inner = next(part for part in model.modules() if isinstance(part, nn.ReLU))
        handles.append(inner.register_forward_hook(lambda *_: send()))
    elif place == "backward":
        first = next(iter(model.parameters()))
        handles.append(first.register_hook(lambda _: send()))
    elif place == "optimizer":
        handles.append(register_optimizer_step_pre_hook(lambda *_: send()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def strike_in_save(count: int, send: Callable[[], None]) -> None:
    """In this process, the save with this number, from 1, sends while it is being captured."""
    snapshot, seen = BoundarySaves.snapshot, [0]

    def counted(self: BoundarySaves) -> object:
        found = snapshot(self)
        seen[0] += 1
        if seen[0] == count:
            send()
        return found

    BoundarySaves.snapshot = counted  # in a forked child, which ends with it


def ended_within(pid: int, seconds: float) -> int:
    """The exit code of a child; one that hangs is killed, with its group, and the test fails."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"process {pid} did not end within {seconds:.0f} s")
        time.sleep(0.005)


def settled() -> None:
    """What a forked child has to do before it trains."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
