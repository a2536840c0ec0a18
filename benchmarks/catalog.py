"""How long a store with many checkpoints takes to be listed, read and saved into.

The stores are made of the very objects that training makes (record, verified mark, manifest, pack), but without
fsync, so that building ten thousand takes seconds. What is measured goes through the public functions and the real
command line, and the saves are durable.

python benchmarks/catalog.py
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from harness.driver import scratch
from harness.options import command, heading, parsed
from harness.report import machine, spread, table

import holdfast
from holdfast.catalog import layout
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.manifests import read_manifest, write_manifest
from holdfast.catalog.owners import this_process
from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store, open_store
from holdfast.ids import Digest, Order, RecordAddress, RecordId, nonce
from holdfast.packs.codec import Codec
from holdfast.policy import latest
from holdfast.records import Kind, LaunchInfo, Mark, MarkKind, Record, RunInfo, Sizes, StartInfo, Target, Timing
from holdfast.seals import seal
from holdfast.trees import Lifetime, Skeleton, TensorSpec

CREATED = "2026-01-01T00:00:00Z"
OWNER = this_process()


def put(root: Path, name: str, content: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else seal(name, content))


def record_of(store: Store, run: int, step: int, parent: Record | None, pack: str, manifest: Digest) -> Record:
    order = Order(1, 0, step)
    return Record(
        id=str(RecordId.derive(store.info.id, holdfast.ids.RunNumber(run), order)),
        run=run,
        **order._asdict(),
        epoch=step // 1000,
        parent=None if parent is None else Target.of(parent.address),
        created=CREATED,
        kind=Kind.REGULAR,
        reason="every(steps=500)",
        metrics={"loss": 1.0 / step, "val_loss": 1.1 / step},
        manifest=str(manifest),
        packs=[pack],
        tensors=148,
        bytes=Sizes(logical=1_493_000_000, new=1_493_000_000, stored=1_493_000_000),
        timing=Timing(stall=0.1, staging=0.1, hashing=0.4, writing=0.9),
        codec="raw",
        owner=OWNER,
        attempt=nonce(),
    )


def fill(store: Store, run: int, records: int) -> None:
    """A run with ``records`` checkpoints that all reach one pack each and one manifest each."""
    root = Path(store.url)
    put(root, f"catalog/runs/{run:03d}/run.json", RunInfo(number=run, name="bench", created=CREATED, attempt=nonce()))
    launch = LaunchInfo(
        run=run, number=1, created=CREATED, owner=OWNER, policies={"keep": "latest(3)"}, attempt=nonce()
    )
    put(root, layout.launch(holdfast.ids.RunNumber(run), 1), launch)
    start = StartInfo(run=run, launch=1, timeline=0, created=CREATED, resumed_from=None, why="fresh", attempt=nonce())
    put(root, layout.start(holdfast.ids.RunNumber(run), 1, 0), start)
    parent: Record | None = None
    with unsynced():
        target = store.run(run)
        spec = Skeleton((TensorSpec("model/weight", "float32", (1024,), Lifetime.PARAMETER),))
        for step in range(1, records + 1):
            manifest = write_manifest(target, spec, json.dumps({"step": step}).encode(), b"", [Digest(bytes(32))])
            parent = record_of(store, run, step, parent, f"data/runs/{run:03d}/{nonce()}.pack", manifest)
            mark = Mark(
                kind=MarkKind.VERIFIED,
                target=Target.of(parent.address),
                created=CREATED,
                by="saver",
                attempt=nonce(),
            )
            put(root, parent.name, parent)
            put(root, layout.mark(parent.address, mark.kind, mark.attempt), mark)


@contextmanager
def unsynced() -> Iterator[None]:
    """Without fsync, for building; measured saves are durable."""
    real, os.fsync = os.fsync, lambda _: None
    try:
        yield
    finally:
        os.fsync = real


def store_of(folder: Path, name: str, runs: int, records: int) -> Store:
    store = open_store(folder / name, create=True)
    for run in range(1, runs + 1):
        fill(store, run, records)
    return store


def timed(action: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def cli(store: Store, *words: str) -> None:
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", *words, "--store", store.url]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def listed(store: Store, expected: int) -> None:
    opened = holdfast.open(store.url)
    assert sum(len(opened.run(info.number).records()) for info in opened.runs()) == expected


def manifest_of(store: Store, tensors: int) -> tuple[Run, Digest]:
    run = store.create_run("manifest")
    specs = [
        TensorSpec(f"model/layers/{n}/attention/weight", "bfloat16", (64, 64), Lifetime.PARAMETER)
        for n in range(tensors)
    ]
    digests = [Digest(n.to_bytes(32, "little")) for n in range(tensors)]
    with unsynced():
        return run, write_manifest(run, Skeleton(tuple(specs)), b"{}", b"", digests)


class Training:
    """Saves into one run as a Checkpointer with ``keep=latest(n)`` does: save, read back, retention."""

    def __init__(self, store: Store, run: int, keep: int) -> None:
        from holdfast.saver import Saving
        from holdfast.saver.following import Following

        opened = holdfast.open(store.url).run(run)
        launch = begin_launch(opened, policies={"keep": f"latest({keep})"})
        head = max(opened.records(), key=lambda one: one.step, default=None)
        launch.record_start(0, head.address if head else None, "bench")
        self.after = Following(run=opened, keep=latest(keep))
        self.saver = Saving(launch=launch, codec=Codec.RAW)
        self.parent: RecordAddress | None = head.address if head else None
        self.step = 10_000_000

    def save(self) -> tuple[float, float]:
        from holdfast.recovery.handover.inline import LiveContent, shape_of
        from holdfast.saver import SaveRequest
        from holdfast.state import capture

        self.step += 1
        state = capture({}, {"step": self.step, "weight": np.full(4096, self.step, "float32")})
        request = SaveRequest(
            timeline=0,
            step=self.step,
            epoch=None,
            kind=Kind.REGULAR,
            reason="bench",
            parent=None if self.parent is None else Target.of(self.parent),
            attempt=nonce(),
            began=time.monotonic(),
        )
        began = time.perf_counter()
        record = self.saver.save(request, shape_of(state), LiveContent(state))
        saved = time.perf_counter()
        self.after.follow(record, self.saver.packs_of(record))
        self.parent = record.address
        return saved - began, time.perf_counter() - saved


def saves_of(rounds: int) -> int:
    """Each takes milliseconds only."""
    return max(rounds, 5)


def measure_saves(
    note: Callable[[str, float], None], what: str, store: Store, run: int, keep: int, rounds: int
) -> None:
    training = Training(store, run, keep)
    note(f"{what}: first save of a process and what follows", sum(training.save()))
    for _ in range(3 if keep == 3 else 0):
        training.save()  # from here on every save lets an old one go
    for _ in range(saves_of(rounds)):
        save, after = training.save()
        note(f"{what}: later save", save)
        note(f"{what}: what follows", after)


def measure(folder: Path, records: int, tensors: int, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    side = max(1, round(records**0.5))
    one = store_of(folder, "one", 1, records)
    many = store_of(folder, "many", side, records // side)
    run, digest = manifest_of(open_store(folder / "tensors", create=True), tensors)
    for _ in range(rounds):
        note(f"list {records:,} records of one run", timed(lambda: listed(one, records)))
        note(f"list {side} runs x {records // side} records", timed(lambda: listed(many, side * (records // side))))
        note(f"`holdfast ls`, {records:,} records", timed(lambda: cli(one, "ls")))
        note(f"`holdfast runs`, {side} runs x {records // side}", timed(lambda: cli(many, "runs")))
        note("`holdfast --help`", timed(cli_help))
        note(f"read a manifest of {tensors:,} tensors", timed(lambda: read_manifest(run, digest)))
    small = store_of(folder, "small", 1, records // 10)
    few = store_of(folder, "few", max(1, side // 10), records // side)
    for what, store in (
        (f"{records // 10:,} records in {max(1, side // 10)} other runs", few),
        (f"{records:,} records in {side} other runs", many),
    ):
        new = store.create_run("training").number
        measure_saves(note, what, store, new, 3, rounds)
    for kept, store in ((records // 10, small), (records, one)):
        what = f"{kept:,} records in the run"
        measure_saves(note, what, store, 1, kept, rounds)
    return seconds


def cli_help() -> None:
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", "--help"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def report(seconds: dict[str, list[float]], args: argparse.Namespace) -> str:
    lines = [
        heading("The catalog", args),
        f"{machine()}; `{command()}`. Milliseconds, medians (lowest-highest) of {args.rounds} rounds, and of "
        f"{saves_of(args.rounds)} saves behind the first one of a process, which there is once. Every record has a "
        "verified mark and a manifest; the files are in the page cache. Saves are durable; what follows is read-back "
        "and retention, which lets one checkpoint go each time: by `latest(3)` beside other runs, by `latest(all that "
        "is there)` where the records are in the run itself.",
        table(["", "ms"], [[name, spread([1000 * one for one in values], 0)] for name, values in seconds.items()]),
    ]
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    args = parsed(parser, {"records": 100, "tensors": 1000, "rounds": 1})
    with scratch(args.folder) as folder:
        print(report(measure(folder, args.records, args.tensors, args.rounds), args), flush=True)


if __name__ == "__main__":
    main()
