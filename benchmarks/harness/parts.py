"""What the saver of rank 0 does with the parts of thousands of ranks: as in a real save, but the ranks are simulated.

python -m harness.parts RANKS TENSORS FOLDER, in a process of its own, so that its peak memory is told. The shapes are
those of a model of 70 B parameters in bf16, spread by rows (FSDP). Each rank's part lies in the store with a pack of
one byte; files are not through fsync, for a rank would wait for that by itself. Two saves are committed: of the first
one everything is merged, of the second one the structure is known.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from holdfast.boxes import Box, cut_count
from holdfast.catalog import layout
from holdfast.catalog.launches import Launch, begin_launch
from holdfast.catalog.manifests import OpenManifest
from holdfast.catalog.parts import Part, Parts
from holdfast.catalog.runs import Run
from holdfast.catalog.saves import SaveAttempt, begin_save
from holdfast.catalog.store import Store, open_store
from holdfast.ids import Digest, Order, RecordAddress, RecordId, nonce
from holdfast.records import Kind, Sizes, Timing
from holdfast.saver import SaveRequest, Shape
from holdfast.saver.merging import Merging, without_boxes
from holdfast.saver.publishing import Made
from holdfast.saver.together import Together
from holdfast.state import capture
from holdfast.storage.tracing import TracingStorage
from holdfast.trees import Lifetime, Manifest, Skeleton, Spread, TensorSpec

SHAPES = ((8192, 8192), (8192, 1024), (28672, 8192), (8192, 28672), (8192,))
PHASES: dict[str, list[tuple[Any, str]]] = {
    "gather": [(Together, "_gather")],
    "merge": [(Merging, "merge")],
    "write": [(SaveAttempt, "write_manifest")],
    "publish": [(SaveAttempt, "publish")],
    "clear": [(Parts, "remove")],
}


def box_of(shape: tuple[int, ...], rank: int, world: int) -> Box | None:
    """What FSDP gives a rank: as many rows as every other one, the last ones fewer or none."""
    rows = -(-shape[0] // world)
    first = min(rank * rows, shape[0])
    count = min(rows, shape[0] - first)
    return Box((first, *[0] * (len(shape) - 1)), (count, *shape[1:])) if count else None


def specs_of(rank: int, world: int, tensors: int) -> tuple[TensorSpec, ...]:
    found = []
    for number in range(tensors):
        box = box_of(shape := SHAPES[number % len(SHAPES)], rank, world)
        spread = Spread((box,), (0,)) if box else Spread((), ())
        name = f"model/layers.{number // 10}.block.{number % 10}.weight"
        found.append(TensorSpec(name, "bfloat16", shape, Lifetime.PARAMETER, spread=spread))
    return tuple(found)


def part_of(rank: int, world: int, tensors: int, common: Part, pack: str) -> Part:
    """The part of one rank, put together from few boxes: thousands of ranks would take minutes otherwise."""
    boxes = [box_of(shape, rank, world) for shape in SHAPES]
    packed = [array("q", [*box.offsets, *box.sizes]).tobytes() if box else b"" for box in boxes]
    segments = [cut_count(box, 2) if box else 0 for box in boxes]
    places = [number % len(SHAPES) for number in range(tensors)]
    return Part(
        rank=rank,
        world=world,
        tensors=common.tensors,
        values=common.values,
        counts=array("H", [boxes[place] is not None for place in places]).tobytes(),
        boxes=b"".join(packed[place] for place in places),
        digests=os.urandom(32 * sum(segments[place] for place in places)),
        inline=b"",
        own=common.own,
        packs=[(pack, 1)],
    )


class Simulated:
    """A run that so many ranks save into."""

    def __init__(self, folder: Path, world: int, tensors: int) -> None:
        self.world, self.tensors = world, tensors
        self.store: Store = open_store(folder, create=True)
        self.run: Run = self.store.create_run("bench")
        self.launch: Launch = begin_launch(self.run)
        self.launch.record_start(0, None, "bench")
        state = capture({}, {})
        self.structure = without_boxes(Skeleton(specs_of(0, world, tensors))).encode()
        self.values = state.values_bytes
        digests = (bytes(Digest.of(one)) for one in (self.structure, self.values))
        names: dict[str, bytes] = dict(zip(("tensors", "values"), digests, strict=True))
        empty = {"counts": b"", "boxes": b"", "digests": b"", "inline": b""}
        self.common = Part(rank=0, world=world, own=state.own, **names, **empty)
        self.packs = [str(f"data/runs/001/{nonce()}.pack") for _ in range(world)]
        for pack in self.packs:
            path = folder / pack
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b".")

    def hand_in(self, step: int, attempt: str) -> float:
        """Puts the parts of all ranks but the first; seconds for each."""
        order = Order(self.launch.number, 0, step)
        id_ = RecordId.derive(self.store.info.id, self.run.number, order)
        parts = Parts(self.store.storage, RecordAddress(self.run.number, order, id_), attempt)
        took = 0.0
        for rank in range(1, self.world):
            part = part_of(rank, self.world, self.tensors, self.common, self.packs[rank])
            began = time.perf_counter()
            parts.put(part, [self.structure, self.values])
            took += time.perf_counter() - began
        return took / (self.world - 1)

    def made(self, step: int, attempt: str) -> Made:
        """What rank 0 has written itself."""
        request = SaveRequest(
            timeline=0,
            step=step,
            epoch=None,
            parent=None,
            kind=Kind.REGULAR,
            reason="bench",
            world=self.world,
            attempt=attempt,
            began=time.monotonic(),
        )
        shape = Shape(Skeleton(specs_of(0, self.world, self.tensors)), self.values, b"", own=self.common.own)
        digests = part_of(0, self.world, self.tensors, self.common, "").digests
        state = Manifest(shape.skeleton, Digest.of(b""), self.values, b"", digests, (self.common.own,))
        none = Sizes(logical=0, new=0, stored=0)
        return Made(
            request=request,
            shape=shape,
            state=state,
            packs=[],
            fingerprinted=[],
            nan=[],
            sizes=none,
            timing=Timing(stall=0, staging=0, hashing=0, writing=0),
            codec="raw",
        )


@contextmanager
def clocks(found: dict[str, float]):
    """Adds up what the phases of a commit take."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                found[name] = found.get(name, 0.0) + time.perf_counter() - began

        return run

    with ExitStack() as stack:
        for name, functions in PHASES.items():
            for owner, attribute in functions:
                stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield


def committed(ranks: Simulated, together: Together, step: int) -> tuple[Digest, dict[str, float]]:
    """One save, with what its phases took."""
    attempt = nonce()
    found = {"put": ranks.hand_in(step, attempt)}
    made = ranks.made(step, attempt)
    began = time.perf_counter()
    with clocks(found), begin_save(ranks.launch, 0, step, shared=False, attempt=attempt) as save:
        record, _ = together.commit(made, save, None, None, trained=False)
    return record.manifest_digest, found | {"commit": time.perf_counter() - began}


def share(ranks: Simulated, digest: Digest) -> dict[str, float]:
    """What the last rank reads of a manifest before it loads, and how long that takes."""
    tracing = TracingStorage(ranks.store.storage)
    store = Store(storage=tracing, info=ranks.store.info)
    began = time.perf_counter()
    opened = OpenManifest(store.run(ranks.run.number), digest)
    part = ranks.world - 1
    for page in (opened.values, opened.inline, opened.own(part), opened.digests(part)):
        assert isinstance(page, bytes)
    took = time.perf_counter() - began
    trees = [one for one in tracing.operations if "/trees/" in one.name]
    whole = {one.name for one in trees if one.verb == "read"}
    read = sum(ranks.store.storage.size(name) for name in whole)
    read += sum(one.size for one in trees if one.verb == "read_into" and one.name not in whole)
    return {"share": read, "open": took}


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ranks", type=int)
    parser.add_argument("tensors", type=int)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    os.fsync = lambda _: None  # type: ignore[assignment]
    before, ranks, together = peak(), Simulated(args.folder, args.ranks, args.tensors), Together()
    (_, once), (digest, again) = (committed(ranks, together, step) for step in (1, 2))
    trees = {"manifest": digest, "skeleton": Digest(OpenManifest(ranks.run, digest).head.skeleton)}
    size = ranks.store.storage.size
    sizes = {kind: size(layout.tree(ranks.run.number, one)) for kind, one in trees.items()}
    memory = {"before": before, "peak": peak()}
    print(json.dumps({"first": once, "again": again, **share(ranks, digest), **sizes, **memory}))


if __name__ == "__main__":
    main()
