"""Several ranks: saving and loading what they hold together, thousands of tensors, and the parts of thousands of ranks.

*Sharded*: processes over gloo hold one model and its optimizer under FSDP2. All libraries live in the same ranks and
save in turn, round after round, each round in another order; every time is that of the slowest rank. *Unchanged*: what
the thread that trains spends where the bytes are few and the tensors many. *Parts*: what the saver of rank 0 does with
the parts of ranks that are simulated, up to thousands, in a process for each number.

    python benchmarks/sharding.py --part sharded --megabytes 100
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from adapters.sharded import SHARDED
from harness import ranks
from harness.driver import BENCHMARKS, Failed, scratch
from harness.options import command, heading, parsed
from harness.report import machine, spread, table

BASE = "dcp"
"""What others are compared with."""
UNCHANGED = {"one": ("one process", 1), "fsdp2": ("2 ranks, FSDP2", 2), "ddp": ("2 ranks, DDP", 2)}
"""How tensors are held: in words, and by how many ranks."""
UNCHANGED_NAMES = ("holdfast", "dcp", "dcp-async", "per-rank")
UNCHANGED_ROUNDS = 3
"""DCP takes seconds for each."""
FAIL_SECONDS = 600
"""After which the simulation of one number of ranks is given up."""


def label(name: str) -> str:
    return str(SHARDED[name].label)


def ratio(figures: dict[str, Any], name: str, kind: str, other: str = "") -> str:
    """Of medians, to dcp.save."""
    base = figures.get(BASE, {}).get(other or kind)
    return f"{statistics.median(figures[name][kind]) / statistics.median(base):.2f}x" if base else "-"


def ranked(figures: dict[str, Any], kind: str) -> list[str]:
    """The libraries that have such a figure, the fastest first."""
    return sorted((n for n in figures if figures[n].get(kind)), key=lambda n: statistics.median(figures[n][kind]))


# Sharded


def sharded(folder: Path, args: argparse.Namespace) -> str:
    """Both worlds save and load their own, then each loads what the other one has saved; in the small form one does."""
    options = ["--megabytes", args.megabytes, "--rounds", args.rounds, "--warm-ups", args.warm_ups]
    options += ["--names", *(args.only or SHARDED), *(["--profile"] if args.profile else [])]
    first, second = args.worlds
    sources = args.worlds[: 1 if args.quick else 2]
    saved = {size: worked("save", folder, size, options, source=size) for size in sources}
    pairs = [(a, b) for a in sources for b in args.worlds if a != b]
    moved = {(a, b): worked("load", folder, b, options, source=a) for a, b in pairs}
    found = next(iter(saved.values()))
    parts = [
        heading(f"Sharded over {first} and {second} ranks: {found['bytes'] / 1e6:.0f} MB", args),
        f"{machine()}, torch {torch.__version__}; `{command()}`. A transformer in fp32 and both moments "
        f"of AdamW under FSDP2, {found['tensors']} tensors, processes of one machine over gloo. {args.rounds} rounds "
        f"after {args.warm_ups} that do not count; medians, in brackets the lowest and the highest, of the slowest "
        "rank each time. *Stall* is until all ranks may change their tensors again, *durable* until what was saved is "
        "through fsync, with its record or metadata.",
        *(saves(size, one["figures"]) for size, one in saved.items()),
        "**Loading** into the tensors that exist; *cold* with the files out of the page cache, *warm* with all of them "
        "in it. holdfast opens the run as after a restart, and verifies every byte; the others verify none.",
        *(loads(f"Saved and loaded by {size} ranks", one["figures"]) for size, one in saved.items()),
        *(loads(f"Saved by {a} ranks, loaded by {b}", one["figures"]) for (a, b), one in moved.items()),
        "How each is configured:",
        "\n".join(f"- {SHARDED[n].label}: {SHARDED[n].how}" for n in args.only or SHARDED if SHARDED[n].how),
    ]
    return "\n\n".join(one.strip() for one in parts) + "\n"


def worked(role: str, folder: Path, size: int, options: Sequence[object], *, source: int) -> dict[str, Any]:
    began = time.monotonic()
    found = ranks.run(role, folder / f"of-{source}", size, *options)
    print(f"{role} by {size} of what {source} save: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if "--profile" in options:
        print((folder / f"of-{source}" / f"{role}-0.log").read_text(), file=sys.stderr)
    return found


def saves(size: int, figures: dict[str, Any]) -> str:
    rows = []
    for name in ranked(figures, "durable"):
        durable = name != "copy"
        row = [label(name), spread(figures[name]["stall"], 3), ratio(figures, name, "stall")]
        row += [spread(figures[name]["durable"]), ratio(figures, name, "durable")] if durable else ["never", ""]
        rows.append(row)
    return f"**Saving by {size} ranks.**\n\n" + table(["", "stall s", "dcp.save", "durable s", "dcp.save"], rows)


def loads(title: str, figures: dict[str, Any]) -> str:
    rows = [
        [
            label(name),
            spread(figures[name]["cold"]),
            ratio(figures, name, "cold"),
            spread(figures[name]["warm"]),
            ratio(figures, name, "warm"),
        ]
        for name in ranked(figures, "cold")
    ]
    return f"{title}:\n\n" + table(["", "cold s", "dcp.load", "warm s", "dcp.load"], rows)


# Unchanged


def unchanged(folder: Path, args: argparse.Namespace) -> str:
    """Each way to hold the tensors in a world of its own."""
    found: dict[str, Any] = {}
    for how in args.how:
        title, size = UNCHANGED[how]
        options = ["--tensors", args.tensors, "--how", how, "--rounds", UNCHANGED_ROUNDS, "--names", *UNCHANGED_NAMES]
        options += ["--profile"] if args.profile else []
        found[title] = ranks.run("unchanged", folder / how, size, *options)
        if args.profile:
            print((folder / how / "unchanged-0.log").read_text(), file=sys.stderr)
    parts = [
        heading(f"Saving {args.tensors:,} tensors of which no byte has changed", args),
        f"{machine()}, torch {torch.__version__}; `{command()}`. Tensors of 4 to 8 KiB, a third of "
        "them weights, the others the moments of AdamW, and beside them a counter for each weight. What the training "
        f"thread waits for, of the slowest rank; {UNCHANGED_ROUNDS} rounds after a warm-up. holdfast writes no tensor "
        "again, the others all of them.",
        *(unchanged_table(title, one["figures"]) for title, one in found.items()),
        "Where holdfast waits, in ms, medians of rank 0:",
        phases(found),
    ]
    return "\n\n".join(one.strip() for one in parts) + "\n"


def unchanged_table(title: str, figures: dict[str, Any]) -> str:
    rows = [
        [
            label(name),
            spread([1000 * one for one in figures[name]["stall"]], 0),
            ratio(figures, name, "stall"),
            spread([1000 * one for one in figures[name]["durable"]], 0),
        ]
        for name in ranked(figures, "stall")
    ]
    return f"{title}:\n\n" + table(["", "stall ms", "dcp.save", "durable ms"], rows)


def phases(found: dict[str, Any]) -> str:
    names = list(next(iter(found.values()))["phases"])
    rows = [[title, *(f"{1000 * one['phases'][name]:.1f}" for name in names)] for title, one in found.items()]
    return table(["", *names], rows)


# Parts


def parts(folder: Path, args: argparse.Namespace) -> str:
    """Each number of ranks in a process of its own."""
    found = {number: simulated(folder / str(number), number, args.part_tensors) for number in args.parts}
    head = ["ranks", "gather s", "first merge s", "again s", "write s", "publish s", "whole commit s", "again s"]
    rows = [
        [
            f"{number:,}",
            *(f"{one['first'][kind]:.2f}" for kind in ("gather", "merge")),
            f"{one['again']['merge']:.2f}",
            *(f"{one['first'][kind]:.2f}" for kind in ("write", "publish", "commit")),
            f"{one['again']['commit']:.2f}",
        ]
        for number, one in found.items()
    ]
    sizes = [
        [
            f"{number:,}",
            f"{one['manifest'] / 1e6:.1f}",
            f"{one['skeleton'] / 1e6:.2f}",
            f"{one['share'] / 1e6:.2f}",
            f"{1000 * one['open']:.0f}",
            f"{one['peak'] / 1e6:.0f}",
            f"{(one['peak'] - one['before']) / 1e6:.0f}",
        ]
        for number, one in found.items()
    ]
    lines = [
        heading("Merging the parts of thousands of ranks", args),
        f"{machine()}; `{command()}`. The parts of simulated ranks, {args.part_tensors:,} tensors each, "
        "with the shapes of a model of 70 B parameters under FSDP, in a store on the local disk, without fsync. "
        "*Gather* reads and verifies all parts, *merge* puts them together and checks that all is covered once, "
        "*write* encodes skeleton and manifest and writes them, *publish* looks at every pack and writes the record; "
        "*again* is the next save of the same structure.",
        table(head, rows),
        "*Share* is what one rank reads of the manifest before it loads: head, skeleton, values, its own page and its "
        "pages of digests. *Peak* is of the whole process, Python and torch included; *above* what it had before.",
        table(["ranks", "manifest MB", "skeleton MB", "share MB", "share ms", "peak MB", "above MB"], sizes),
    ]
    return "\n\n".join(line.strip() for line in lines) + "\n"


def simulated(folder: Path, number: int, tensors: int) -> dict[str, Any]:
    words = [sys.executable, "-W", "ignore", "-m", "harness.parts", str(number), str(tensors), str(folder)]
    began = time.monotonic()
    done = subprocess.run(words, cwd=BENCHMARKS, stdout=subprocess.PIPE, text=True, timeout=FAIL_SECONDS, check=False)
    print(f"{number} parts: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if done.returncode:
        raise Failed(f"{number} parts: ended with {done.returncode}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


PARTS = {"sharded": sharded, "unchanged": unchanged, "parts": parts}
SMALL = {
    "megabytes": 4,
    "worlds": [2, 1],
    "rounds": 1,
    "warm_ups": 0,
    "only": ["copy", "holdfast"],
    "tensors": 30,
    "how": ["one"],
    "parts": [4],
    "part_tensors": 20,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=[*PARTS], action="append")
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--worlds", type=int, nargs=2, default=[2, 4], help="two numbers of ranks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1, help="rounds that do not count")
    parser.add_argument("--only", nargs="*", help="names of libraries")
    parser.add_argument("--tensors", type=int, default=10_000)
    parser.add_argument("--how", choices=[*UNCHANGED], nargs="*", default=[*UNCHANGED])
    parser.add_argument("--parts", type=int, nargs="*", default=[64, 512, 4096])
    parser.add_argument("--part-tensors", type=int, default=2000)
    parser.add_argument("--profile", action="store_true", help="where the thread that trains is, on stderr")
    parser.add_argument("--folder", type=Path, help="where to write; the temporary folder of the system by default")
    args = parsed(parser, SMALL)
    if len(set(args.worlds)) < 2:  # the second one would go on with the training of the first
        parser.error("--worlds: two different numbers of ranks, for each loads what the other has saved")
    os.environ["PYTHONWARNINGS"] = "ignore"
    for part in args.part or PARTS:
        with scratch(args.folder) as folder:
            print(PARTS[part](folder, args), flush=True)


if __name__ == "__main__":
    main()
