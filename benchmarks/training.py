"""How much slower a real training loop is when it saves every 10 steps.

Each library has a trainer of its own, all alive at once, and they take turns: a window of steps each, round after
round, in another order each time. Each window is compared with the one without saving of the same round.

    python benchmarks/training.py --rounds 10
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from pathlib import Path

import torch
from adapters import adapter
from harness.driver import Failed, Worker, scratch
from harness.options import command, heading, parsed
from harness.report import interval, machine, spread, table

PEERS = ["torch.save", "safetensors", "dcp-async", "torchsnapshot-async", "torch_checkpointing", "lm-resiliency"]
ALL = ["none", "holdfast", "holdfast-inline", *PEERS]
SMALL = {"rounds": 2, "steps": 4, "every": 2, "width": 64, "batch": 4, "only": ["holdfast"]}


def begin(names: list[str], folder: Path, options: list[str], errors: dict[str, str]) -> tuple[dict[str, Worker], int]:
    """Every trainer, ready; and the bytes of what it saves."""
    workers, size = {}, 0
    for name in names:
        (folder / name).mkdir()
        workers[name] = Worker("training", name, folder / name, *options)
        try:
            size = workers[name].hear()["bytes"]
        except Failed as error:
            fail(workers, name, error, errors)
    return workers, size


def fail(workers: dict[str, Worker], name: str, error: Failed, errors: dict[str, str]) -> None:
    errors[name] = str(error)
    worker = workers.pop(name)
    print(f"{name}: {error}\n{worker.errors()[-4000:]}", file=sys.stderr)
    worker.end()


def measure(workers: dict[str, Worker], rounds: int, steps: int, errors: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of every window, by name."""
    found: dict[str, list[float]] = {name: [] for name in workers}
    order, names = random.Random(0), list(workers)
    for _ in range(rounds):
        order.shuffle(names)
        for name in (one for one in names if one in workers):
            try:
                workers[name].tell(str(steps))
                found[name].append(workers[name].hear()["seconds"])
            except Failed as error:
                fail(workers, name, error, errors)
    return found


def report(found: dict[str, list[float]], errors: dict[str, str], size: int, args: argparse.Namespace) -> str:
    ways = {name: adapter(name) for name in found}
    base, saves = found["none"], args.steps // args.every
    rows = []
    for name in sorted(found, key=lambda one: statistics.median(found[one] or [float("inf")])):
        if found[name] and name not in errors:
            slower = [100 * (one / other - 1) for one, other in zip(found[name], base, strict=True)]
            mean, half = interval(slower)
            cost = [1000 * (one - other) / saves for one, other in zip(found[name], base, strict=True)]
            row = [ways[name].label, spread(found[name]), f"{mean:+.1f} % ± {half:.1f}", spread(cost, 0)]
            rows.append(row if name != "none" else [*row[:2], "", ""])
    step = statistics.median(base) / args.steps
    lines = [
        heading(f"A training loop that saves every {args.every} steps", args),
        f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads of torch; "
        f"`{command()}`. A GPT learns text on {args.device}: {step:.2f} s a step, "
        f"{size / 1e6:.0f} MB of parameters and AdamW state, saved every {args.every} steps. Each library trains "
        f"{args.steps} steps at a time ({saves} saves), in turn with the others, {args.rounds} rounds; a window ends "
        "when its last save is done, half an interval after it began. *Slower* is against the window without saving "
        "of the same round: mean and 95 % confidence interval of the mean. Loop and background share "
        f"{os.cpu_count()} cores. No fsync is added where a library leaves it out.",
        table(["", f"s per {args.steps} steps", "slower", "ms per save"], rows),
        "\n".join(f"- {adapter(name).label} failed: {error}" for name, error in errors.items()),
    ]
    return "\n\n".join(line.strip() for line in lines if line) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="names of adapters")
    parser.add_argument("--folder", type=Path)
    args = parsed(parser, SMALL)
    args.device = "the CPU"
    names, errors = list(dict.fromkeys(["none", *(args.only or ALL)])), {}
    options = ["--every", str(args.every), "--width", str(args.width), "--batch", str(args.batch)]
    with scratch(args.folder) as folder:
        workers, size = begin(names, folder, options, errors)
        try:
            found = measure(workers, args.rounds, args.steps, errors)
        finally:
            for worker in workers.values():
                worker.end()
    print(report(found, errors, size, args), flush=True)


if __name__ == "__main__":
    main()
