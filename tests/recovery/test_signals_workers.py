"""A signal to every process of a job: the workers of the loader live until the training has saved."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from toy_training import ended, forked

import holdfast
from holdfast import Checkpointer, every
from holdfast.records import Kind
from holdfast.state.loaders import open_position
from holdfast.state.loaders_shield import SIGNALS


class Samples(Dataset):
    def __len__(self):
        return 4000

    def __getitem__(self, index):
        return torch.full((4,), float(index))


class Stream(IterableDataset):
    def __iter__(self):
        return (torch.full((4,), float(number)) for number in range(4000))


class Wrapper:
    """What a library puts around a loader."""

    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        yield from self.inner


class Lazy(DataLoader):
    """Makes its workers at the first batch."""

    def __iter__(self):
        yield from super().__iter__()


def everybody(number):
    """To each process of the group, as a scheduler does, and to each by its own id, as a service manager does."""
    for child in psutil.Process().children(recursive=True):
        os.kill(child.pid, number)
    os.killpg(os.getpgrp(), number)


def train(folder, loader, number, at=(3,)):
    """A job of its own process group, which is signalled while workers fetch."""
    os.setsid()
    torch.set_num_threads(1)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Checkpointer(folder, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=10**6)) as ckpt:
        for step, batch in ckpt.batches(loader(), total_steps=10**6):
            model(batch).sum().backward()
            optimizer.step()
            if step in at:
                assert psutil.Process().children(), "there are workers"
                everybody(number)
                for _ in range(50):  # torch says in this thread that a worker has died
                    time.sleep(0.01)


LOADERS = {
    "one epoch's workers": functools.partial(DataLoader, Samples(), batch_size=4, num_workers=2),
    "kept workers": functools.partial(DataLoader, Samples(), batch_size=4, num_workers=2, persistent_workers=True),
    "an iterable": functools.partial(DataLoader, Stream(), batch_size=4, num_workers=1),
    "a loader within a wrapper": lambda: Wrapper(DataLoader(Samples(), batch_size=4, num_workers=1)),
    "a loader that starts late": functools.partial(Lazy, Samples(), batch_size=4, num_workers=1),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_signal_to_the_whole_group_still_becomes_a_checkpoint(tmp_path, loader):
    """Hazard 38, users-ask 8: the workers died of it, and the trainer of them, before it could save."""
    assert ended(forked(lambda: train(tmp_path, LOADERS[loader], signal.SIGTERM))) == 0
    (record,) = holdfast.open(tmp_path).run(1).records()
    assert (record.step, record.kind) == (4, Kind.PREEMPTED)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_ctrl_c_and_usr1_reach_the_group_too(tmp_path, number):
    assert ended(forked(lambda: train(tmp_path, LOADERS["one epoch's workers"], number))) == 0
    (record,) = holdfast.open(tmp_path).run(1).records()
    assert (record.step, record.kind) == (4, Kind.PREEMPTED)


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")
def test_the_stateful_loader_of_torchdata_is_shielded(tmp_path):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    loader = functools.partial(stateful.StatefulDataLoader, Samples(), batch_size=4, num_workers=2)
    assert ended(forked(lambda: train(tmp_path, loader, signal.SIGTERM))) == 0
    (record,) = holdfast.open(tmp_path).run(1).records()
    assert (record.step, record.kind) == (4, Kind.PREEMPTED)


def noted(path, worker):
    path.write_text(f"{worker} {signal.getsignal(signal.SIGTERM)}")


def test_spawned_workers_are_shielded_and_start_as_the_user_wants(tmp_path):
    """Spawning pickles what runs at the start of a worker."""
    own = functools.partial(noted, tmp_path / "started")
    loader = functools.partial(
        DataLoader, Samples(), batch_size=4, num_workers=1, multiprocessing_context="spawn", worker_init_fn=own
    )
    assert ended(forked(lambda: train(tmp_path / "store", loader, signal.SIGTERM))) == 0
    (record,) = holdfast.open(tmp_path / "store").run(1).records()
    assert (record.step, record.kind) == (4, Kind.PREEMPTED)
    assert "_pass_over" in (tmp_path / "started").read_text()


def started(worker):
    return None


@pytest.mark.parametrize("persistent", [False, True])
def test_the_loader_stays_what_the_user_made(persistent):
    loader = DataLoader(
        Samples(), batch_size=2000, num_workers=1, worker_init_fn=started, persistent_workers=persistent
    )
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    position = open_position(loader)
    for _ in position.batches():
        assert loader.worker_init_fn is started
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    position.close()
    assert loader.worker_init_fn is started


def test_after_the_loop_kept_workers_end_by_a_signal_as_ever():
    loader = DataLoader(Samples(), batch_size=2000, num_workers=1, persistent_workers=True)
    position = open_position(loader)
    assert len(list(position.batches())) == 2
    (worker,) = loader._iterator._workers
    for number in SIGNALS:
        os.kill(worker.pid, number)
    worker.join(0.5)
    assert worker.is_alive()
    position.close()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would say in this thread that it has died
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(30)
    signal.signal(signal.SIGCHLD, handler)
    assert -worker.exitcode in SIGNALS


def test_a_program_that_fails_while_workers_live_does_not_wait_for_them(tmp_path):
    """Multiprocessing ends its children by the signal that they are shielded from, and joins them."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from torch.utils.data import DataLoader
        from holdfast.state.loaders import open_position

        position = open_position(DataLoader(list(range(100)), num_workers=2, persistent_workers=True))
        batches = position.batches()
        next(batches)
        torch.utils.data._utils.python_exit_status = True  # as where torch has no part in the end
        1 / 0
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert "ZeroDivisionError" in done.stderr
