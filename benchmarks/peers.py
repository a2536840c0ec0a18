"""Save and load of a GPT-2-small AdamW state (1.5 GB fp32), beside the peers and beside the raw disk.

Everything is interleaved in one run and reported as medians with their spread; ratios are of medians.

    python benchmarks/peers.py --rounds 5
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from holdfast.packs.codec import Codec

BLOCK = 8 * 1024 * 1024


def gpt2_small(scale: int) -> dict[str, torch.Tensor]:
    """Parameters and both moments of GPT-2 small: 124 M values each; `scale` divides the width."""
    width, layers = 768 // scale, 12
    shapes = {"wte": (50257, width), "wpe": (1024, width)}
    for layer in range(layers):
        shapes |= {
            f"h.{layer}.qkv": (3 * width, width),
            f"h.{layer}.proj": (width, width),
            f"h.{layer}.fc": (4 * width, width),
            f"h.{layer}.out": (width, 4 * width),
            f"h.{layer}.ln_1": (width,),
            f"h.{layer}.ln_2": (width,),
        }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}


class Work:
    """The state and every way to save and load it."""

    def __init__(self, folder: Path, scale: int) -> None:
        self.folder = folder
        shapes = gpt2_small(scale)
        self.model = torch.nn.ParameterDict({name.replace(".", "_"): value for name, value in shapes.items()})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.bytes = sum(t.nbytes for t in self.flat().values())
        self.count = 0

    def flat(self) -> dict[str, torch.Tensor]:
        found = {f"model.{name}": value.detach() for name, value in self.model.items()}
        for name, parameter in self.model.items():
            state = self.optimizer.state[parameter]
            found |= {f"{kind}.{name}": state[kind] for kind in ("exp_avg", "exp_avg_sq")}
        return found

    def touch(self) -> None:
        """Every tensor changes between saves, or holdfast would have nothing to write."""
        for tensor in self.flat().values():
            tensor.view(-1)[:: BLOCK // 8].add_(1e-6)

    def fresh(self, name: str) -> Path:
        self.count += 1
        return self.folder / f"{name}-{self.count}"


def sync(path: Path) -> None:
    """fsync a file, or all files of a folder, and the folder: what durable means."""
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        fd = os.open(one, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    fd = os.open(path.parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def drop(path: Path) -> None:
    """Drop a file or folder from the page cache."""
    for one in path.rglob("*") if path.is_dir() else [path]:
        if one.is_file():
            fd = os.open(one, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


class Raw:
    """The same bytes, in one aligned piece of memory, with O_DIRECT and three threads: what the disk itself can do."""

    def __init__(self, work: Work, *, huge: bool) -> None:
        self.path = work.folder / f"raw-{huge}"
        self.starts = range(0, work.bytes, BLOCK)
        memory = mmap.mmap(-1, len(self.starts) * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge:
            memory.madvise(mmap.MADV_HUGEPAGE)
        at = 0
        for tensor in work.flat().values():
            memory[at : at + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            at += tensor.nbytes
        self.memory = memoryview(memory)

    def save(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        os.posix_fallocate(fd, 0, len(self.memory))
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda at: os.pwrite(fd, self.memory[at : at + BLOCK], at), self.starts))
        os.fsync(fd)
        os.close(fd)

    def load(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda at: os.preadv(fd, [self.memory[at : at + BLOCK]], at), self.starts))
        os.close(fd)


class Holdfast:
    """holdfast, through the layers that a Checkpointer uses: durable when `save` returns, verified when `load` does."""

    def __init__(self, work: Work) -> None:
        from holdfast.catalog.launches import begin_launch
        from holdfast.catalog.store import open_store
        from holdfast.saver import InlineSaver

        self.work = work
        self.store = open_store(work.fresh("holdfast"), create=True)
        self.run = self.store.create_run("bench")
        self.launch = begin_launch(self.run)
        self.saver = InlineSaver(self.launch, codec=Codec.RAW)
        self.step, self.last = 0, None

    def save(self) -> None:
        from holdfast.records import Kind
        from holdfast.saver import SaveRequest
        from holdfast.state import capture

        self.step += 1
        snapshot = capture({"model": self.work.model, "optimizer": self.work.optimizer}, {})
        request = SaveRequest(
            timeline=0,
            step=self.step,
            epoch=None,
            kind=Kind.MANUAL,
            reason="bench",
            parent=self.last.address if self.last else None,
        )
        self.last = self.saver.save(snapshot, request)

    def load(self) -> None:
        from holdfast.recovery.loading import load_objects

        load_objects(self.store, self.last, {"model": self.work.model, "optimizer": self.work.optimizer})

    def verify(self) -> None:
        from holdfast.ids import ObjectName
        from holdfast.packs.verify import verify_pack

        for name in self.last.packs:
            assert not verify_pack(self.store.storage, ObjectName(name))

    def paths(self) -> list[Path]:
        root = Path(self.store.url.removeprefix("file://"))
        return [root / name for name in self.last.packs]

    def forget(self) -> None:
        """The packs of old saves go, so that the disk does not fill."""
        root = Path(self.store.url.removeprefix("file://"))
        keep = set(self.paths())
        for path in (root / "data").rglob("*.pack"):
            if path not in keep:
                path.unlink()


def torch_save(work: Work, path: Path) -> None:
    torch.save({"model": work.model.state_dict(), "optimizer": work.optimizer.state_dict()}, path)
    sync(path)


def torch_load(work: Work, path: Path) -> None:
    state = torch.load(path, weights_only=True)
    work.model.load_state_dict(state["model"])
    work.optimizer.load_state_dict(state["optimizer"])


def safetensors_save(work: Work, path: Path) -> None:
    save_file(work.flat(), path)
    sync(path)


def safetensors_load(work: Work, path: Path) -> None:
    state = load_file(path)
    for name, tensor in work.flat().items():
        tensor.copy_(state[name])


def dcp_save(work: Work, path: Path) -> None:
    writer = dcp.FileSystemWriter(path, thread_count=2)
    dcp.save({"state": work.flat()}, storage_writer=writer, no_dist=True)
    sync(path)


def dcp_load(work: Work, path: Path) -> None:
    dcp.load({"state": work.flat()}, storage_reader=dcp.FileSystemReader(path), no_dist=True)


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


PEERS = {
    "torch.save": (torch_save, torch_load),
    "safetensors": (safetensors_save, safetensors_load),
    "DCP": (dcp_save, dcp_load),
}


def one_round(work: Work, raws: dict[str, Raw], ours: Holdfast, seconds: dict[str, list[float]]) -> None:
    def note(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    os.sync()
    for name, raw in raws.items():
        note(f"{name}: save", timed(raw.save))
        note(f"{name}: load cold", timed(raw.load))
        raw.path.unlink()

    work.touch()
    note("holdfast: save", timed(ours.save))
    for path in ours.paths():
        drop(path)
    note("holdfast: load cold", timed(ours.load))
    note("holdfast: verify", timed(ours.verify))
    for path in ours.paths():
        path.read_bytes()
    note("holdfast: load warm", timed(ours.load))
    ours.forget()

    for name, (save, load) in PEERS.items():
        path = work.fresh(name)
        note(f"{name}: save", timed(lambda save=save, path=path: save(work, path)))
        drop(path)
        note(f"{name}: load cold", timed(lambda load=load, path=path: load(work, path)))
        note(f"{name}: load warm", timed(lambda load=load, path=path: load(work, path)))
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def report(work: Work, seconds: dict[str, list[float]], rounds: int) -> str:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    lines = [
        f"## Save and load, {work.bytes / 1e9:.2f} GB",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}, "
        f"torch {torch.__version__}. "
        f"{rounds} interleaved rounds; `python benchmarks/peers.py --rounds {rounds}`. "
        "A save ends when the bytes are durable: fsync is added where a peer leaves it out. "
        "Only holdfast verifies what it loads.",
        "",
        "| what | median s | min | max | GB/s | against raw |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, values in sorted(seconds.items(), key=lambda item: (item[0].partition(": ")[2], median[item[0]])):
        kind = name.partition(": ")[2]
        base = median["raw direct: save" if kind == "save" else "raw direct: load cold"]
        lines.append(
            f"| {name} | {median[name]:.2f} | {min(values):.2f} | {max(values):.2f} "
            f"| {work.bytes / median[name] / 1e9:.2f} | {median[name] / base:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, help="divide the width of the model, for a quick look")
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        work = Work(folder, args.scale)
        raws = {"raw direct": Raw(work, huge=False), "raw direct, huge pages": Raw(work, huge=True)}
        ours = Holdfast(work)
        seconds: dict[str, list[float]] = {}
        one_round(work, raws, ours, {})
        for _ in range(args.rounds):
            one_round(work, raws, ours, seconds)
        print(report(work, seconds, args.rounds))
    finally:
        with suppress(OSError):
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
