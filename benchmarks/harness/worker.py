"""One library in a process of its own. It says where it is as lines of JSON, and waits for a line where told to.

python -m harness.worker saving NAME STATE FOLDER --saves 2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from adapters import adapter
from adapters.base import Adapter

from harness.files import drop, warm
from harness.states import STATES, Job, small_gpt

WARM_UPS = 2


class Line:
    """The pipe to the driver; what libraries print goes to stderr instead."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        self._out.write(json.dumps(facts) + "\n")

    def ask(self, **facts: Any) -> str:
        self.say(**facts)
        return sys.stdin.readline().strip()


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def settle() -> None:
    """What was asked of a device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fingerprint(job: Job) -> list[int]:
    """A sum over the bits of every tensor."""
    sums = []
    for tensor in job.flat().values():
        flat = tensor.contiguous().reshape(-1)
        sums.append(int((flat.view(torch.int32) if flat.element_size() == 4 else flat.view(torch.int16)).sum()))
    return sums


def one_save(one: Adapter) -> dict[str, float]:
    """Seconds until the call is back, until the optimizer may step, and until the checkpoint is durable."""
    one.durable_at()
    one.forget()
    one.job.touch()
    os.sync()
    settle()
    began = time.perf_counter()
    one.after_step()
    back = time.perf_counter()
    one.before_step()
    settle()
    free = time.perf_counter()
    return {"call": back - began, "stall": free - began, "durable": one.durable_at() - began}


def private_save(one: Adapter) -> None:
    """Saves, and lets the optimizer step as soon as it may."""
    one.after_step()
    one.before_step()
    one.job.touch()
    one.durable_at()


def one_load(one: Adapter, prepare: Callable[[list[Path]], None]) -> float:
    for tensor in one.job.flat().values():
        tensor.zero_()
    one.unload()
    prepare(one.files())
    settle()
    return seconds(lambda: (one.load(), settle()))


def saving(args: argparse.Namespace, line: Line) -> None:
    job = STATES[args.state](args.folder, quick=args.quick)
    line.ask(at="baseline", bytes=job.bytes)
    one = adapter(args.name)(job)
    one.prepare()
    for _ in range(WARM_UPS):
        one_save(one)
    for _ in range(args.saves):
        line.ask(at="save", **one_save(one))
    one.durable_at()
    one.forget()
    job.touch()
    expected = fingerprint(job)
    if args.memory:
        line.ask(at="save sampled")
    private_save(one)
    line.ask(at="saved")
    one.stop()
    if type(one).load is not Adapter.load:
        loading(one, expected, args, line)
    one.close()


def loading(one: Adapter, expected: list[int], args: argparse.Namespace, line: Line) -> None:
    for _ in range(args.loads):
        line.ask(at="load", cold=one_load(one, drop))
        line.ask(at="load", warm=one_load(one, warm))
    if one.checked:
        line.ask(at="load", same=fingerprint(one.job) == expected)
    if args.memory:
        line.ask(at="load sampled")
        one_load(one, warm)
        line.ask(at="loaded")


def training(args: argparse.Namespace, line: Line) -> None:
    job, steps = small_gpt(args.folder, every=args.every, width=args.width, batch=args.batch)
    one = adapter(args.name)(job)
    one.prepare()

    def window(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            next(steps)
            one.before_step()
            next(steps)
            one.after_step()
        one.before_step()
        one.wait()
        settle()
        return time.perf_counter() - began

    window(args.every + args.every // 2)  # from here on saves fall into the middle of what is timed
    command = line.ask(at="ready", bytes=job.bytes)
    while command:
        seconds = window(int(command))
        one.durable_at()
        one.forget()
        os.sync()
        command = line.ask(at="window", seconds=seconds)
    one.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["saving", "training"])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--state", default="gpt2")
    parser.add_argument("--saves", type=int, default=2)
    parser.add_argument("--loads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="save and load once more, while the driver looks")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_default_device(args.device)
    line = Line()
    try:
        {"saving": saving, "training": training}[args.what](args, line)
        line.say(at="end")
    except BaseException as error:
        line.say(at="failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        sys.stderr.flush()


if __name__ == "__main__":
    main()
