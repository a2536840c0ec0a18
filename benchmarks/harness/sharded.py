"""One rank of a world in which several libraries save and load the same state in turn. The slowest rank counts.

python -m harness.sharded save FOLDER --names holdfast dcp --rounds 5, started by `harness.ranks`.
"""

from __future__ import annotations

import argparse
import cProfile
import faulthandler
import json
import os
import pstats
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from adapters.base import Adapter
from adapters.sharded import SHARDED

from harness.files import drop, warm
from harness.phases import Phases
from harness.ranks import PATIENCE
from harness.sharded_states import ShardedJob, folders, many, transformer
from harness.worker import seconds

Figures = dict[str, dict[str, list[float]]]
"""By library and by kind, of the slowest rank each time."""


def first() -> bool:
    return dist.get_rank() == 0


def slowest(mine: dict[str, float]) -> dict[str, float]:
    """The largest of each over all ranks."""
    found = torch.tensor(list(mine.values()), dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return dict(zip(mine, found.tolist(), strict=True))


def note(found: Figures, name: str, mine: dict[str, float], *, counts: bool = True) -> None:
    for kind, value in slowest(mine).items():
        if counts:
            found.setdefault(name, {}).setdefault(kind, []).append(value)


def ways_of(args: argparse.Namespace, job: ShardedJob) -> dict[str, Adapter]:
    """The libraries, each with a folder of its own."""
    places = zip(args.names, folders(args.folder, args.names), strict=True)
    return {
        name: SHARDED[name](ShardedJob(model=job.model, optimizer=job.optimizer, folder=place))
        for name, place in places
    }


def in_turn(ways: dict[str, Adapter], rounds: int) -> list[tuple[int, str]]:
    """Every library in every round, each round in another order, the same on all ranks."""
    order, found = random.Random(0), []
    for number in range(rounds):
        names = list(ways)
        order.shuffle(names)
        found += [(number, name) for name in names]
    return found


def one_save(one: Adapter) -> dict[str, float]:
    """As in `harness.worker`, on all ranks at once."""
    if first():
        os.sync()
    dist.barrier()
    began = time.perf_counter()
    one.after_step()
    one.before_step()
    free = time.perf_counter()
    took = {"stall": free - began, "durable": one.durable_at() - began}
    one.forget()
    return took


def one_load(one: Adapter, prepare: Callable[[list[Path]], None]) -> float:
    for tensor in one.job.flat().values():
        tensor.zero_()
    one.unload()
    dist.barrier()
    if first():
        prepare(one.files())
    dist.barrier()
    return seconds(one.load)


def save(args: argparse.Namespace) -> dict[str, Any]:
    """Saves in turn, then one more of one state by all, then loads of it."""
    job = transformer(args.folder, args.megabytes)
    ways, found = ways_of(args, job), Figures()
    for one in ways.values():
        one.prepare()
    for number, name in in_turn(ways, args.warm_ups + args.rounds):
        job.touch()
        note(found, name, one_save(ways[name]), counts=number >= args.warm_ups)
    job.touch()
    for one in ways.values():
        one_save(one)
    expected = job.sums()
    for one in ways.values():
        one.stop()
    loads(args, {name: one for name, one in ways.items() if name != "copy"}, job, expected, found)
    for name in args.names if args.profile else ():
        if name != "copy":
            ways[name].unload()
            profiled(f"{name}, load", ways[name].load)
    for one in ways.values():
        one.close()
    return {"figures": found, "bytes": job.whole_bytes, "tensors": len(job.flat()), "expected": expected}


def loads(args: argparse.Namespace, ways: dict[str, Any], job: ShardedJob, expected: list[int], found: Figures) -> None:
    for number, name in in_turn(ways, args.warm_ups + args.rounds):
        for kind, prepare in (("cold", drop), ("warm", warm)):
            note(found, name, {kind: one_load(ways[name], prepare)}, counts=number >= args.warm_ups)
            assert job.sums() == expected, f"{name} has loaded something else than was saved"


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Loads what another world has saved."""
    job, found = transformer(args.folder, args.megabytes), Figures()
    expected = json.loads((args.folder / "save.json").read_text())["expected"]
    ways: dict[str, Any] = {name: one for name, one in ways_of(args, job).items() if SHARDED[name].moves}
    for one in ways.values():
        one.find()
    loads(args, ways, job, expected, found)
    for one in ways.values():
        one.close()
    return {"figures": found}


def unchanged(args: argparse.Namespace) -> dict[str, Any]:
    """Saves of many tensors of which not one byte changes; where the time of holdfast goes is asked separately."""
    job = many(args.folder, args.tensors, args.how)
    ways, found = ways_of(args, job), Figures()
    for one in ways.values():
        one.prepare()
    for number, name in in_turn(ways, args.warm_ups + args.rounds):
        note(found, name, one_save(ways[name]), counts=number >= args.warm_ups)
    phases = Phases()
    if ours := ways.get("holdfast"):
        for _ in range(args.rounds):
            with phases.measured():
                one_save(ours)
    if args.profile:
        for name, one in ways.items():
            profiled(f"{name}, save", one.after_step)
            one.durable_at()
            one.forget()
    for one in ways.values():
        one.stop()
        one.close()
    return {"figures": found, "bytes": job.whole_bytes, "phases": phases.medians(), "tensors": len(job.flat())}


def profiled(title: str, action: Callable[[], object]) -> None:
    """Where the thread that trains is, into the log of rank 0."""
    profile = cProfile.Profile()
    profile.runcall(action)
    if first():
        print(title)
        for order, lines in (("tottime", 20), ("cumulative", 60)):
            pstats.Stats(profile).sort_stats(order).print_stats(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["save", "load", "unchanged"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs="+", default=list(SHARDED))
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--tensors", type=int, default=10_000)
    parser.add_argument("--how", default="fsdp2", choices=["one", "ddp", "fsdp2"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(PATIENCE - 10, exit=True)
    dist.init_process_group("gloo")
    found = {"save": save, "load": load, "unchanged": unchanged}[args.role](args)
    if first():
        (args.folder / f"{args.role}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
