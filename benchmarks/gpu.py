"""On a GPU: how fast a state is staged against what the bus can do, and what saving costs a training loop there.

python benchmarks/gpu.py
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

import saving
import torch
import training
from adapters import adapter
from harness.driver import scratch
from harness.options import command, heading, parsed
from harness.report import machine, spread, table

PINNED = 1 << 30
STAGES = 2
STATE = ["copy", "holdfast", "torch.save", "dcp-async", "torch_checkpointing", "lm-resiliency-memory"]
LOOP = ["none", "holdfast", "torch.save", "dcp-async", "torch_checkpointing", "lm-resiliency"]
SMALL = {**training.SMALL, "only": ["copy", "holdfast", "torch.save"]}


def bus(rounds: int = 10) -> list[float]:
    """GB/s of one copy of 1 GiB from the device into pinned memory: what the bus can do."""
    source = torch.ones(PINNED, dtype=torch.uint8, device="cuda")
    target = torch.empty(PINNED, dtype=torch.uint8, pin_memory=True)
    rates = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        rates.append(PINNED / (time.perf_counter() - began) / 1e9)
    return rates[1:]


def stage(folder: Path, names: list[str], options: list[str]) -> dict[str, saving.Measured]:
    order = random.Random(0)
    found = {name: saving.Measured() for name in names}
    for number in range(STAGES):
        order.shuffle(names)
        for name in (one for one in names if not found[one].error):
            (folder / name).mkdir()
            options_ = ["--device", "cuda", "--loads", "1", *options]
            saving.measure(name, folder / name, options_, found[name], memory=number == 0)
    return found


def stages(found: dict[str, saving.Measured], limit: list[float]) -> str:
    rows = []
    for name, one in sorted(found.items(), key=lambda item: item[1].last):
        if one.stall:
            rates = [one.bytes / value / 1e9 for value in one.stall]
            part = statistics.median(rates) / statistics.median(limit)
            label = adapter(name).label + (" [torn]" if one.torn else "")
            rows.append([label, f"{statistics.median(one.call):.3f}", spread(one.stall, 3), spread(rates, 1)])
            rows[-1] += [f"{100 * part:.0f} %", spread(one.durable) if adapter(name).durable else "never"]
    rows.append(["one cudaMemcpy of 1 GiB", "", "", spread(limit, 1), "100 %", ""])
    failed = "\n".join(f"- {adapter(name).label} failed: {one.error}" for name, one in found.items() if one.error)
    head = ["", "call s", "until staged s", "GB/s", "of the bus", "durable s"]
    return "\n\n".join(part.strip() for part in (table(head, rows), failed) if part) + "\n"


def chosen(names: list[str], args: argparse.Namespace) -> list[str]:
    return [name for name in names if name in args.only or name == "none"]


def loop(folder: Path, args: argparse.Namespace) -> str:
    errors: dict[str, str] = {}
    sizes = ["--every", str(args.every), "--width", str(args.width), "--batch", str(args.batch)]
    workers, size = training.begin(chosen(LOOP, args), folder, ["--device", "cuda", *sizes], errors)
    try:
        found = training.measure(workers, args.rounds, args.steps, errors)
    finally:
        for worker in workers.values():
            worker.end()
    return training.report(found, errors, size, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", nargs="*", default=[*STATE, *LOOP], help="names of adapters")
    parser.add_argument("--folder", type=Path)
    args = parsed(parser, SMALL)
    args.device = "the GPU"
    print(heading("On a GPU", args) + "\n")
    if not torch.cuda.is_available():
        print("No CUDA device here; not measured.\n")
        return
    name, limit = torch.cuda.get_device_name(), bus()
    print(f"{machine()}, {name}, torch {torch.__version__}; `{command()}`.\n")
    print("GPT-2 small under AdamW from the device into pinned host memory:\n")
    with scratch(args.folder) as folder:
        options = ["--quick"] if args.quick else []
        print(stages(stage(folder, chosen(STATE, args), options), limit), flush=True)
    with scratch(args.folder) as folder:
        print(loop(folder, args), flush=True)


if __name__ == "__main__":
    main()
