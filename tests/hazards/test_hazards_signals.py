"""Signals: a request to stop, at a boundary, with workers alive, wherever the program is."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from lives import filled, records
from torch import nn
from torch.utils.data import DataLoader, Dataset
from toy_training import ended, finished, forked, train

import holdfast
from holdfast import Checkpointer, every
from holdfast.records import Kind


def toy(value=0.0):
    model = filled(nn.Linear(20, 20), value)
    return model, torch.optim.SGD(model.parameters(), lr=0.0)


def run(folder, total, each, **options):
    """Train; ``each(ckpt, step)`` comes in the body of the step, after its update."""
    model, optimizer = toy()
    options = {"save": every(steps=100), **options}
    with Checkpointer(folder, run="r", state={"model": model, "optimizer": optimizer}, **options) as ckpt:
        for step in ckpt.steps(total):
            optimizer.step()
            filled(model, step + 1.0)
            each(ckpt, step)
    return ckpt


def sent(step, number=signal.SIGTERM):
    """Sends a signal to this very process, in the body of a step."""
    return lambda _, at: os.kill(os.getpid(), number) if at == step else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_middle_of_a_step_becomes_a_checkpoint_of_its_end(tmp_path, number):
    """Users-ask 8: flags are read where the state is whole, not in the handler."""
    run(tmp_path, 9, sent(3, number))
    (record,) = records(tmp_path)
    assert (record.step, record.kind) == (4, Kind.PREEMPTED)
    assert signal.Signals(number).name in record.reason
    ckpt = run(tmp_path, 6, lambda *_: None)
    assert holdfast.open(tmp_path).run(1).starts()[-1].resumed_from.step == 4
    assert ckpt.last.kind is Kind.FINAL


def test_a_signal_during_an_accumulation_waits_for_the_whole_step(tmp_path):
    """Users-ask 8 and hazard 26: a save in mid-backward would lose part of a gradient."""
    model, optimizer = toy()
    count = []
    with Checkpointer(tmp_path, run="r", state={"model": model, "optimizer": optimizer}) as ckpt:
        for _ in ckpt.batches([torch.zeros(1)] * 4, total_steps=9):
            count.append(1)
            if len(count) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            if len(count) % 3 == 0:
                optimizer.step()
    assert len(count) == 6
    (record,) = records(tmp_path)
    assert record.step == 2
    assert "gradients" not in record.exactness


def test_earlier_handlers_run_too_and_are_put_back(tmp_path):
    """Users-ask 8: other handlers were overwritten."""
    seen = []

    def mine(number, frame):
        seen.append(number)

    before = [signal.signal(number, mine) for number in (signal.SIGTERM, signal.SIGUSR1)]
    try:
        run(tmp_path, 9, sent(1))
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == [mine, mine]
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGUSR1), before, strict=True):
            signal.signal(number, handler)
    assert seen == [signal.SIGTERM]
    assert records(tmp_path)[-1].kind is Kind.PREEMPTED


def test_a_handler_that_the_program_installs_during_the_loop_is_left_in_place(tmp_path):
    """Hazard 23: what was there before the loop is put back only where ours still is."""

    def mine(number, frame):
        """Nothing."""

    before = signal.getsignal(signal.SIGUSR1)
    try:
        run(tmp_path, 2, lambda *_: signal.signal(signal.SIGUSR1, mine))
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_the_main_thread_it_is_said_that_signals_are_not_heard(tmp_path, caplog):
    """Hazard 23: Python installs handlers in the main thread only."""
    thread = threading.Thread(target=run, args=(tmp_path, 2, lambda *_: None))
    thread.start()
    thread.join()
    assert "outside the main thread" in caplog.text
    assert records(tmp_path)[-1].step == 2


def test_a_long_evaluation_can_ask_whether_to_stop(tmp_path):
    """Users-ask 8: the save fired in none of six preemptions, because the flag was read at the ends of steps only."""
    asked = []

    def evaluate(ckpt, step):
        for batch in range(1000):
            if step == 2 and batch == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            if ckpt.should_stop():
                asked.append((step, batch))
                return

    run(tmp_path, 9, evaluate)
    assert asked == [(2, 5)]
    assert records(tmp_path)[-1].step == 3


def test_a_second_signal_while_the_save_is_made_does_not_break_it(tmp_path, monkeypatch):
    """Users-ask 8: launchers repeat SIGTERM; the one that comes during the save must not end it half-way."""
    from holdfast.saver.saving import Saving

    save = Saving.save

    def interrupted(self, request, shape, content):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(self, request, shape, content)

    monkeypatch.setattr(Saving, "save", interrupted)
    run(tmp_path, 9, sent(1))
    assert [record.step for record in records(tmp_path)] == [2]


class Slow(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.full((20,), float(index))


def with_workers(store: Path, started: Path) -> str:
    """A training with two loader workers that runs until somebody stops it."""
    model, optimizer = toy()
    loader = DataLoader(Slow(), batch_size=4, num_workers=2)
    with Checkpointer(store, run="r", state={"model": model, "optimizer": optimizer}) as ckpt:
        for step, _ in ckpt.batches(loader, total_steps=100_000):
            optimizer.step()
            if step == 3:
                started.write_text("running")
    return f"{ckpt.last.kind} {ckpt.last.step == ckpt.step}"


def test_a_signal_to_the_process_saves_with_loader_workers_alive(tmp_path):
    """Users-ask 8: with num_workers > 0 the emergency checkpoint was lost."""
    pid = forked(lambda: with_workers(tmp_path / "s", tmp_path / "started"), tmp_path / "report")
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 0
    assert (tmp_path / "report").read_text() == "preempted True"


def test_a_signal_to_the_whole_group_loses_no_committed_checkpoint(tmp_path):
    """Hazard 23: workers die first and take the trainer along; what was committed stands, and the relaunch has it."""

    def leader():
        os.setpgid(0, 0)
        return train(tmp_path / "s", workers=2, pause=lambda _: time.sleep(0.05))

    pid = forked(leader)
    while not (tmp_path / "s").exists() or not records_or_none(tmp_path / "s"):
        time.sleep(0.01)
    os.killpg(pid, signal.SIGTERM)
    ended(pid)
    before = records(tmp_path / "s")[-1]
    undisturbed = finished(lambda: train(tmp_path / "whole", workers=2), tmp_path / "whole.txt")
    assert finished(lambda: train(tmp_path / "s", workers=2), tmp_path / "again.txt") == undisturbed
    resumed = [start.resumed_from for start in holdfast.open(tmp_path / "s").run(1).starts()]
    assert resumed[-1].id == before.id


def records_or_none(folder):
    try:
        return records(folder)
    except holdfast.errors.HoldfastError:
        return []
