"""How long it takes to plan the retention of a run with many checkpoints. Nothing is read or written.

python benchmarks/policies.py
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from datetime import UTC, datetime

from harness.options import command, heading, parsed
from harness.report import machine, spread, table

from holdfast.catalog.deleting.retention import RetentionFacts, plan_retention
from holdfast.catalog.lineage import Lineage
from holdfast.catalog.marks import RecordMarks
from holdfast.catalog.owners import this_process
from holdfast.ids import Order, RecordId, RunNumber
from holdfast.policy import Policy, at, at_most, best, every, latest, newer
from holdfast.records import Kind, Mark, MarkKind, Record, Sizes, StartInfo, Target, Timing

OWNER, RUN = this_process(), RunNumber(1)
PACK = 500_000_000

POLICIES = {
    "latest": latest(3),
    "milestones": every(steps=10_000) | every(hours=6),
    "everything at once": latest(3) | best("loss", 5) | every(hours=6) | newer(hours=24) | at(steps=[1000, 5000]),
    "keep all": every(steps=1),
    "keep all, at most half": every(steps=1) | at_most(PACK * 5000),
    "at most half": at_most(PACK * 5000),
}


def history(records: int, seed: int) -> RetentionFacts:
    """A line of checkpoints, 500 steps and 10 minutes apart, with a rollback now and then."""
    chance = random.Random(seed)
    made: list[Record] = []
    starts: list[StartInfo] = []
    order, step, parent = Order(1, 0, 0), 0, None
    for n in range(records):
        if made and chance.random() < 0.001:
            parent = chance.choice(made[-5:])
            order, step = Order(1, order.timeline + 1, 0), parent.step
            starts.append(start_of(order, parent))
        step += 500
        parent = record_of(order._replace(step=step), parent, 600.0 * n, chance.random())
        made.append(parent)
    marks = {RecordId(one.id): verified(one) for one in made}
    return RetentionFacts(
        lineage=Lineage.of(made, starts), marks=marks, packs={name: PACK for one in made for name in one.packs}
    )


def start_of(order: Order, parent: Record) -> StartInfo:
    origin = Target.of(parent.address)
    return StartInfo(
        run=1, launch=1, timeline=order.timeline, created=parent.created, resumed_from=origin, why="bench", attempt="00"
    )


def record_of(order: Order, parent: Record | None, seconds: float, loss: float) -> Record:
    id_ = str(RecordId.derive("bench", RUN, order))
    return Record(
        id=id_,
        run=1,
        **order._asdict(),
        epoch=order.step // 10_000,
        parent=None if parent is None else Target.of(parent.address),
        created=datetime.fromtimestamp(1_800_000_000 + seconds, UTC).isoformat(),
        kind=Kind.REGULAR,
        reason="every(steps=500)",
        metrics={"loss": loss},
        manifest="00" * 32,
        packs=[f"data/runs/001/{id_}-{n}.pack" for n in range(3)],
        tensors=148,
        bytes=Sizes(logical=3 * PACK, new=3 * PACK, stored=3 * PACK),
        timing=Timing(stall=0.1, staging=0.1, hashing=0.4, writing=0.9),
        codec="raw",
        owner=OWNER,
        attempt="00",
    )


def verified(one: Record) -> RecordMarks:
    mark = Mark(kind=MarkKind.VERIFIED, target=Target.of(one.address), created=one.created, by="saver", attempt="00")
    return RecordMarks(marks=(mark,))


def timed(policy: Policy, facts: RetentionFacts) -> float:
    gc.collect()
    began = time.perf_counter()
    plan_retention(policy.kept, facts, policy.limit)
    return 1000 * (time.perf_counter() - began)


def report(taken: dict[str, dict[int, list[float]]], args: argparse.Namespace) -> str:
    """Milliseconds by policy and number of checkpoints."""
    rows = []
    for name, by_size in taken.items():
        few, many = (statistics.median(values) for values in by_size.values())
        rows.append([name, *(spread(values, 1) for values in by_size.values()), f"{many / few:.1f}"])
    sizes = next(iter(taken.values()))
    lines = [
        heading("Planning retention", args),
        f"{machine()}; `{command()}`. Milliseconds, medians (lowest-highest) of {args.rounds} rounds, for facts that "
        "are in memory. *Ratio* is of the medians: ten times the checkpoints should take about ten times as long.",
        table(["keep", *(f"{size:,} checkpoints" for size in sizes), "ratio"], rows),
    ]
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parsed(parser, {"records": 1000, "rounds": 1})
    facts = {size: history(size, seed=0) for size in (args.records // 10, args.records)}
    taken = {
        name: {size: [timed(policy, one) for _ in range(args.rounds)] for size, one in facts.items()}
        for name, policy in POLICIES.items()
    }
    print(report(taken, args), flush=True)


if __name__ == "__main__":
    main()
