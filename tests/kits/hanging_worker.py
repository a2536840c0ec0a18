"""``hanging_worker.py FOLDER TOTAL``: trains under torchrun; at step 7 rank 1 of the first start hangs for ever."""

import os
import sys
import threading
from pathlib import Path

from ranks_training import Job, train

from holdfast.health import watchdog

OPTIONS = {"watchdog": watchdog(hung=1.0, then="end", end_after=6.0)}


def stuck_for_ever():
    threading.Event().wait()


def hangs_at_step_7(rank, step, ckpt, model):
    del ckpt, model
    if rank == 1 and step == 7 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        stuck_for_ever()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "notes").mkdir(exist_ok=True)
    # Not torchrun's own store: there torch 2.13 now and then finds the addresses of the ranks that were killed.
    meeting = folder / f"meeting-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    job = Job(
        rendezvous=meeting,
        store=folder / "store",
        notes=folder / "notes",
        total=int(sys.argv[2]),
        then=hangs_at_step_7,
        patience=60.0,
        options=OPTIONS,
    )
    (folder / f"rank-{os.environ['RANK']}.result").write_text(train(job))
