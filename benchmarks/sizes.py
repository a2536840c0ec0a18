"""Bytes on disk after 20 checkpoints of a model that trains, and of a LoRA, with every codec, beside safetensors.

python benchmarks/sizes.py
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import zstandard
from harness.driver import scratch
from harness.files import on_disk
from harness.options import command, heading, parsed
from harness.report import machine, table
from harness.states import Job, lora, small_gpt
from safetensors.torch import save_file

import holdfast
from holdfast import every, latest
from holdfast.errors import HoldfastError

CODECS = ["raw", "zstd", "openzl", "auto"]
KEPT, EVERYTHING = 3, 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A state, and how it changes from one checkpoint to the next."""

    make: Callable[[Path], tuple[Job, Iterator[None]]]
    checkpoints: int
    steps: int
    """Of the optimizer, from one checkpoint to the next."""


def gpt(folder: Path, *, quick: bool) -> tuple[Job, Iterator[None]]:
    job, halves = small_gpt(folder, every=1, width=64 if quick else 256, batch=8)
    return job, (next(halves) for _ in halves)


def adapters(folder: Path, *, quick: bool) -> tuple[Job, Iterator[None]]:
    job = lora(folder, quick=quick)
    return job, (job.touch() for _ in iter(int, 1))


def with_holdfast(case: Case, folder: Path, codec: str, keep: int) -> int:
    """Bytes of the whole store, catalog included."""
    job, training = case.make(folder)
    state = {"model": job.model, "optimizer": job.optimizer}
    policies = {"save": every(steps=case.steps), "keep": latest(keep)}
    with holdfast.Checkpointer(folder / "store", run="bench", state=state, codec=codec, **policies) as ckpt:
        for _ in ckpt.steps(case.checkpoints * case.steps):
            next(training)
    return on_disk(folder / "store")


def with_safetensors(case: Case, folder: Path) -> dict[str, list[int]]:
    """Bytes of every checkpoint, by way; each file is counted and deleted."""
    found: dict[str, list[int]] = {"safetensors": [], "safetensors, zstd -3": [], "safetensors, trained part": []}
    job, training = case.make(folder)
    frozen = len(job.trained()) < len(job.flat())
    for _ in range(case.checkpoints):
        for _ in range(case.steps):
            next(training)
        found["safetensors"].append(_written(job.flat(), folder))
        if frozen:
            found["safetensors, trained part"].append(_written(job.trained(), folder))
        else:
            found["safetensors, zstd -3"].append(_written(job.flat(), folder, zstandard.ZstdCompressor(3, threads=2)))
    return {way: sizes for way, sizes in found.items() if sizes}


def _written(tensors: dict[str, torch.Tensor], folder: Path, compressor: zstandard.ZstdCompressor | None = None) -> int:
    path, other = folder / "one.safetensors", folder / "one.zst"
    save_file(tensors, path)
    if compressor:
        with path.open("rb") as source, other.open("wb") as target:
            compressor.copy_stream(source, target)
        path.unlink()
        path = other
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # blocks are given when it is written
    size = on_disk(path)
    path.unlink()
    return size


def measure(case: Case, codecs: list[str], folder: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Bytes with everything kept and with the newest three, by way; and what failed."""
    found, errors = {}, {}
    for way, sizes in with_safetensors(case, folder).items():
        found[way] = (sum(sizes), sum(sizes[-KEPT:]))
    for codec in codecs:
        name = f"holdfast, {codec}"
        try:
            both = []
            for keep in (EVERYTHING, KEPT):
                with scratch(folder) as place:
                    both.append(with_holdfast(case, place, codec, keep))
            found[name] = (both[0], both[1])
        except (HoldfastError, TypeError, ValueError) as error:
            errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found, errors


def report(title: str, case: Case, found: dict[str, tuple[int, int]], errors: dict[str, str]) -> str:
    everything, newest = found["safetensors"]
    rows = [
        [way, f"{one[0] / 1e6:.0f}", f"{one[0] / everything:.2f}", f"{one[1] / 1e6:.0f}", f"{one[1] / newest:.2f}"]
        for way, one in sorted(found.items(), key=lambda item: item[1])
    ]
    head = ["", f"all {case.checkpoints}, MB", "of safetensors", f"latest({KEPT}), MB", "of safetensors"]
    failed = "\n".join(f"- {name} failed: {error}" for name, error in errors.items())
    return "\n\n".join(part.strip() for part in (title, table(head, rows), failed) if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="of the GPT, from one checkpoint to the next")
    parser.add_argument("--codecs", choices=CODECS, nargs="*", default=CODECS)
    parser.add_argument("--folder", type=Path)
    args = parsed(parser, {"checkpoints": KEPT + 1, "steps": 1, "codecs": ["zstd"]})
    torch.set_num_threads(1)  # nothing is timed, and small steps go faster so beside other work
    cases = {
        f"A GPT of 4.8 M parameters that learns text, fp32 under AdamW, {args.steps} steps from one checkpoint to the "
        "next:": Case(make=partial(gpt, quick=args.quick), checkpoints=args.checkpoints, steps=args.steps),
        "The LoRA of above, its base of 1.06 GB in bf16; *trained part* is what is saved where the base is kept "
        "elsewhere by hand:": Case(make=partial(adapters, quick=args.quick), checkpoints=args.checkpoints, steps=1),
    }
    parts = [
        heading("Bytes on disk", args),
        f"{machine()}, torch {torch.__version__}; `{command()}`. Blocks that the file system has given, the catalog "
        f"included, after {args.checkpoints} checkpoints. torch.save, DCP, torchsnapshot, torch_checkpointing and "
        "lm-resiliency write as many bytes as safetensors does, each time.",
    ]
    with scratch(args.folder) as folder:
        parts += [report(title, case, *measure(case, args.codecs, folder)) for title, case in cases.items()]
    print("\n\n".join(parts) + "\n", flush=True)


if __name__ == "__main__":
    main()
