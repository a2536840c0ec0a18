"""Stall, time to durable, loading and memory, of holdfast, its peers and the bare machine.

Every library runs in a process of its own, in turn, round after round, each time in another order.

    python benchmarks/saving.py --state gpt2 --rounds 2
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from adapters import adapter
from harness.driver import Failed, Worker, scratch
from harness.memory import Sampler, used
from harness.options import command, heading, parsed
from harness.report import machine, spread, table

RAW = ["raw", "raw-huge"]
REFERENCES = ["copy", "raw"]
OURS = ["holdfast", "holdfast-inline"]
PEERS = ["torch.save", "safetensors", "dcp-async", "torchsnapshot-async", "torch_checkpointing", "lm-resiliency"]
ALL = {
    "gpt2": [*REFERENCES, "raw-huge", *OURS, *PEERS, "dcp", "torchsnapshot", "lm-resiliency-memory"],
    "lora": [*REFERENCES, *OURS, *(name for name in PEERS if name != "torch.save")],
}
SMALL = {"state": ["gpt2"], "rounds": 1, "saves": 1, "loads": 1, "only": [*REFERENCES, "holdfast"]}
TITLES = {
    "gpt2": "GPT-2 small under AdamW, fp32",
    "lora": "A LoRA: a frozen base in bf16, 2.4 M trained values under AdamW in fp32",
}


@dataclass(slots=True)
class Measured:
    """All figures of one library; seconds and bytes."""

    call: list[float] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    saving: int | None = None
    loading: int | None = None
    torn: bool = False
    bytes: int = 0
    error: str = ""

    @property
    def last(self) -> float:
        return statistics.median(self.stall) if self.stall else float("inf")


def measure(name: str, folder: Path, options: Sequence[str], found: Measured, *, memory: bool) -> None:
    """One library, one round."""
    worker = Worker("saving", name, folder, *options, *(["--memory"] if memory else []))
    base, sampler = 0, None
    try:
        while (said := worker.hear())["at"] != "end":
            if said["at"] == "baseline":
                base, found.bytes = used(worker.pid), said["bytes"]
            elif said["at"] in ("save sampled", "load sampled"):
                sampler = Sampler(worker.pid)
                sampler.start()
            elif sampler:
                kind = "saving" if said["at"] == "saved" else "loading"
                setattr(found, kind, max(0, sampler.stop() - base))
                sampler = None
            note(found, said)
            worker.tell()
    except Failed as error:
        found.error = str(error)
        print(f"{name}: {error}\n{worker.errors()[-4000:]}", file=sys.stderr)
    finally:
        if sampler:
            sampler.stop()
        worker.end()


def note(found: Measured, said: dict) -> None:
    for kind in ("call", "stall", "durable", "cold", "warm"):
        if kind in said:
            getattr(found, kind).append(said[kind])
    found.torn |= not said.get("same", True)


def report(state: str, all_of: dict[str, Measured], args: argparse.Namespace) -> str:
    size = max(one.bytes for one in all_of.values())
    ways = {name: adapter(name) for name in all_of}
    parts = [
        heading(f"{TITLES[state]}: {size / 1e9:.2f} GB", args),
        f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads of torch. {args.rounds} rounds; "
        f"`{command()}`. Medians, in brackets the lowest and the highest.",
        "**Saving.** *Call* is when the library gives the loop back, *stall* when the optimizer may change the tensors "
        "again, *durable* when files and folders are through fsync, which is added where a library leaves it out. The "
        "third save of a process and later ones, each begun when the one before it was durable. *Memory* is the peak "
        "of the process and all that it started above what the training has by itself (anonymous and shared pages).",
        _saves(all_of, ways),
        "**Loading** into the tensors that exist; *cold* with the files out of the page cache, *warm* with all of them "
        "in it. holdfast verifies every byte, the others as they do by default: none.",
        _loads(all_of, ways),
        *_remarks(all_of, ways),
        "How each is configured:",
        "\n".join(f"- {way.label}: {way.how}" for way in ways.values() if way.how),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _saves(all_of: dict[str, Measured], ways: dict[str, type]) -> str:
    copy, raw = (_median(all_of, name, "stall" if name == "copy" else "durable") for name in ("copy", "raw"))
    rows = []
    for name, one in sorted(all_of.items(), key=lambda item: item[1].last):
        if one.stall and name not in RAW:
            durable = ways[name].durable
            middle = statistics.median(one.durable)
            rows.append(
                [
                    ways[name].label + (" [torn]" if one.torn else ""),
                    f"{statistics.median(one.call):.3f}",
                    spread(one.stall, 3),
                    f"{one.last / copy:.1f}x",
                    spread(one.durable) if durable else "never",
                    f"{middle / raw:.1f}x" if durable else "",
                    "" if one.saving is None else f"{one.saving / 1e9:.2f}",
                ]
            )
    for name in (name for name in RAW if name in all_of and all_of[name].durable):
        durable = all_of[name].durable
        rows.append([ways[name].label, "", "", "", spread(durable), f"{statistics.median(durable) / raw:.1f}x", ""])
    head = ["", "call s", "stall s", "copy_", "durable s", "raw", "memory GB"]
    return table(head, rows)


def _loads(all_of: dict[str, Measured], ways: dict[str, type]) -> str:
    raw = _median(all_of, "raw", "cold")
    rows = []
    for name, one in sorted(all_of.items(), key=lambda item: statistics.median(item[1].cold or [float("inf")])):
        if one.cold:
            memory = "" if one.loading is None or name in RAW else f"{one.loading / 1e9:.2f}"
            ratio = f"{statistics.median(one.cold) / raw:.1f}x"
            rows.append([ways[name].label, spread(one.cold), ratio, "" if name in RAW else spread(one.warm), memory])
    return table(["", "cold s", "raw", "warm s", "memory GB"], rows)


def _median(all_of: dict[str, Measured], name: str, kind: str) -> float:
    values = getattr(all_of[name], kind) if name in all_of else []
    return statistics.median(values) if values else float("nan")


def _remarks(all_of: dict[str, Measured], ways: dict[str, type]) -> list[str]:
    lines = [
        f"- {ways[name].label} [torn]: an optimizer step made as soon as it gave the loop back was found in the "
        "checkpoint: it had no copy of its own."
        for name, one in all_of.items()
        if one.torn
    ]
    lines += [f"- {ways[name].label} failed: {one.error}" for name, one in all_of.items() if one.error]
    return ["\n".join(lines)] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", choices=[*ALL], nargs="*", default=[*ALL])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--loads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of adapters")
    parser.add_argument("--folder", type=Path, help="where to write; the temporary folder of the system by default")
    args = parsed(parser, SMALL)
    order = random.Random(0)
    for state in args.state:
        names = list(args.only or ALL[state])
        found = {name: Measured() for name in names}
        options = ["--state", state, "--saves", str(args.saves), "--loads", str(args.loads)]
        options += ["--quick"] if args.quick else []
        with scratch(args.folder) as folder:
            for number in range(args.rounds):
                order.shuffle(names)
                for name in (name for name in names if not found[name].error):
                    place = folder / name
                    place.mkdir()
                    began = time.monotonic()
                    measure(name, place, options, found[name], memory=number == 0)
                    print(f"{state}, round {number + 1}, {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        print(report(state, found, args), flush=True)


if __name__ == "__main__":
    main()
