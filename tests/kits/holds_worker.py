"""One process of the campaign in tests/catalog/test_protocol_processes.py: ``python holds_worker.py STORE ROLE SEED``.

Each line that it prints is a promise: the parent kills it at any moment and holds it to what it has said.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from holds_kit import load_all, save

from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.readers import reading
from holdfast.catalog.store import open_store
from holdfast.errors import BeingDeleted, Fenced, Missing, SaveFailed

FROZEN = [b"frozen" * 50]


def say(*words: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, words))}\n")  # at once, so that a kill leaves no half of a promise
    sys.stdout.flush()


def train(store, choice: random.Random) -> None:
    """Saves step after step, each reusing the last one, and keeps two."""
    run = store.run(1)
    launch = begin_launch(run, deadline=10)
    head = run.lineage().head
    address = head.address if head else None
    launch.record_start(0, address, "newest")
    step = head.step if head else 0
    say("resumed", launch.number, step)
    last = b"start"
    while not launch.fenced():
        step += 1
        parts = [last, choice.randbytes(2000)]
        last = parts[1]
        try:
            record = save(launch, step, parts, frozen=FROZEN, bases=[address] if address else [])
        except (Fenced, SaveFailed) as error:
            say("failed", step, error)
            continue
        say("published", launch.number, step)
        address = record.address
        old = [one.address for one in run.records()][:-2]
        execute(store, plan_sweep(store, run, old), run=run)


def sweep(store, choice: random.Random) -> None:
    """Collects the garbage of run 1 and of the shared packs, again and again."""
    while True:
        run = store.run(1)
        for scope in (run, None):
            execute(store, plan_sweep(store, scope), run=scope, seconds=choice.choice([0, 0.05]))
        say("swept")


def read(store, choice: random.Random) -> None:
    """Loads the head, again and again."""
    while True:
        head = store.run(1).lineage().head
        if head is None:
            continue
        try:
            with reading(store, [head.address]):
                load_all(store, head.address)
        except (BeingDeleted, Missing) as error:
            say("refused", type(error).__name__)
        else:
            say("read", head.step)


if __name__ == "__main__":
    place, role, seed = sys.argv[1:]
    {"train": train, "sweep": sweep, "read": read}[role](open_store(Path(place)), random.Random(int(seed)))
