"""``elastic_worker.py FOLDER TOTAL``: trains under torchrun; rank 1 of the first start kills itself at step 7."""

import os
import signal
import sys
from pathlib import Path

from ranks_training import Job, train


def killed_once(rank, step, ckpt, model):
    del ckpt, model
    if rank == 1 and step == 7 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "notes").mkdir(exist_ok=True)
    # Not torchrun's own store: there torch 2.13 now and then finds the addresses of the ranks that were killed.
    meeting = folder / f"meeting-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    job = Job(
        rendezvous=meeting, store=folder / "store", notes=folder / "notes", total=int(sys.argv[2]), then=killed_once
    )
    (folder / f"rank-{os.environ['RANK']}.result").write_text(train(job))
