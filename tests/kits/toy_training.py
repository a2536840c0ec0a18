"""A training with everything that makes resuming hard, small enough to be killed hundreds of times.

Processes are forked, so that torch is imported once; each child is a real
process with real signals. A child never returns into the test runner.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
import torch._dynamo  # optimizers import it; once here is cheaper than once in every child
from torch import nn
from torch.utils.data import DataLoader, Dataset

import holdfast
from holdfast import Checkpointer, every, latest  # here and not at first use: each child would import it again
from holdfast.ids import Digest
from holdfast.records import Record
from holdfast.storage import opening
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage

TELL = signal.SIGRTMAX - 1
"""Makes a forked child print the stacks of its threads: no thread of its own watches it, which nested forks hang on."""
PATIENCE = 150.0
"""Seconds until it is sent, long before pytest gives up."""
STACKS = ".stacks"
"""How files end into which savers write them."""

SAMPLES, BATCH, ACCUMULATE = 24, 4, 2
STEPS = 9  # three steps an epoch: the third epoch is reached
SAVE_EVERY = 2


class Augmented(Dataset):
    """Samples with random noise, drawn wherever the sample is loaded."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        clean = torch.linspace(-1, 1, 16) * (index + 1) / SAMPLES
        return clean + 0.1 * torch.randn(16), clean.sum().view(1)


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 1))


def train(store: Path, *, steps: int = STEPS, workers: int = 0, pause: Callable[[int], None] = lambda _: None) -> str:
    """Train to the end, or until something kills us; gives the digest of all that was trained."""
    torch.set_num_threads(1)
    model = model_of(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    dataset = holdfast.seeded(Augmented(), seed=5)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers)
    with Checkpointer(
        store,
        run="toy",
        state={"model": model, "optimizer": optimizer, "scheduler": scheduler},
        save=every(steps=SAVE_EVERY),
        keep=latest(2),
        saver="inline",  # kills and faults are counted in file events of this very process
    ) as ckpt:
        ckpt.values.setdefault("seen", [])
        for micro, (step, (x, y)) in enumerate(ckpt.batches(loader, total_steps=steps), start=1):
            ((model(x) - y).pow(2).mean() / ACCUMULATE).backward()
            if micro % ACCUMULATE == 0:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                ckpt.values["seen"].append(round(float(x.sum()), 4))
            pause(step)
    return fingerprint(model, optimizer, ckpt.values)


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer, values: dict) -> str:
    tensors = [*model.state_dict().values()]
    tensors += [part for state in optimizer.state_dict()["state"].values() for part in state.values()]
    raw = b"".join(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors)
    return str(Digest.of(raw + repr(dict(values)).encode()))


def forked(work: Callable[[], object], report: Path | None = None) -> int:
    """Run ``work`` in a child process; gives its pid. What it returns is written to ``report``."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    faulthandler.register(TELL, file=2)
    try:
        logging.disable(logging.CRITICAL)
        result = work()
        if report is not None:
            report.write_text(str(result))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a forked child; its exit code, or minus the signal that killed it.

    One that is still there just before pytest gives up is asked where it is.
    """
    last_call = time.monotonic() + PATIENCE
    while time.monotonic() < last_call:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    ask(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ask(pid: int) -> None:
    """Has a forked child and its children say where they are."""
    for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        print(_state_of(one), file=sys.stderr)
        with suppress(OSError):  # it has ended meanwhile
            _tell(one.pid)


def _tell(pid: int) -> None:
    """Has the stacks of a process printed, if it is prepared for that: here, or in a file of its own."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    if caught and int(caught[1], 16) >> (TELL - 1) & 1:
        os.kill(pid, TELL)
        time.sleep(1)
    for file in Path(f"/proc/{pid}/fd").iterdir():
        if str(file.readlink()).endswith(STACKS):
            print(file.read_text(), file=sys.stderr)


def _state_of(process: psutil.Process) -> str:
    """What the kernel knows of a process that may hang."""
    try:
        with process.oneshot():
            command, waits = " ".join(process.cmdline())[:200], Path(f"/proc/{process.pid}/wchan").read_text()
            return f"{process.pid} {process.status()} {process.cpu_times()} in {waits!r}: {command}"
    except (psutil.Error, OSError) as error:
        return f"{process.pid}: {error}"


def finished(work: Callable[[], object], report: Path) -> str:
    """What ``work`` returns in a child that must succeed."""
    assert ended(forked(work, report)) == 0
    return report.read_text()


def with_files(files: Files, work: Callable[[], object]) -> Callable[[], object]:
    """``work`` in a process whose local storage goes through ``files``."""

    def run() -> object:
        opening.LocalStorage = lambda root, **options: LocalStorage(root, files=files, **options)
        return work()

    return run


def only_run(store: Path) -> holdfast.Run:
    """The run of a store, whatever its number.

    Killed between claiming a number and naming its run, a launch leaves the number to nobody.
    """
    found = holdfast.open(store)
    return found.run(found.runs()[-1].number)


def newest(store: Path) -> Record | None:
    """The newest committed checkpoint of the only run, as anybody can see it."""
    try:
        run = only_run(store)
    except (holdfast.errors.HoldfastError, IndexError):
        return None
    return max(run.records(), key=lambda record: record.address.order, default=None)


def resumed_from(store: Path, launch: int) -> str | None:
    """The id of the record that a launch began with."""
    start = next(one for one in only_run(store).starts() if one.launch == launch)
    return start.resumed_from.id if start.resumed_from else None


KILLED = -signal.SIGKILL
