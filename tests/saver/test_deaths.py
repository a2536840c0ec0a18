"""Savers that die: what they had to say is heard or found out; none is started for ever, none is waited for."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import pytest
from staged_kit import Family, awaited, check_store, heard, saver_of
from tiny_training import launched, one_step, steps_of, tiny
from toy_training import ended, forked

from holdfast import Checkpointer, every, latest
from holdfast.errors import SaveFailed
from holdfast.health import nonfinite, rollback, when
from holdfast.recovery.saving import checkpoints
from holdfast.saver import handle, starting

DIES_BEHIND_A_COMMIT = """
import os, signal
from holdfast.saver import following
following.Following.follow = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
"""
DIES_IN_A_SAVE = """
import os, signal
from holdfast.saver import saving
write = saving.Saving.write
def dying(self, request, *rest):
    if request.step >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, request, *rest)
saving.Saving.write = dying
"""
TELLS_NOTHING = """
import os, signal, time
from holdfast.saver import channel, inheriting, messages, worker
try:
    os.close(os.open({once!r}, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    find = inheriting.Inheriting.find
    def late(self):
        end = time.monotonic() + 60
        while not os.path.exists({used!r}) and time.monotonic() < end:
            time.sleep(0.01)
        find(self)
    inheriting.Inheriting.find = late
else:
    send = channel.Channel.send
    def dropping(self, message, descriptors=None):
        if not isinstance(message, messages.Committed):  # it has not come to say it
            send(self, message, descriptors)
    channel.Channel.send = dropping
    done = worker.Control.done
    def dying(self, row):
        done(self, row)
        os.kill(os.getpid(), signal.SIGKILL)
    worker.Control.done = dying
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for somebody who never says anything is found out soon."""
    monkeypatch.setattr(checkpoints, "SILENT_SECONDS", 20.0)


def saves(store: Path, total: int, **options) -> Checkpointer:
    return launched(store, total, saver="process", save=every(steps=2), keep=latest(9), **options).ckpt


def test_savers_that_die_in_what_follows_a_commit_are_not_started_for_ever(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(starting, "prelude", DIES_BEHIND_A_COMMIT)
    saves(tmp_path / "s", 2)
    assert caplog.text.count("another saver") == handle.RESTARTS
    assert steps_of(tmp_path / "s") == [2]


def test_savers_that_die_in_a_save_are_not_started_for_ever(tmp_path: Path, monkeypatch, caplog) -> None:
    """That there was a checkpoint before, each of them tells again."""
    monkeypatch.setattr(starting, "prelude", DIES_IN_A_SAVE)
    with pytest.raises(SaveFailed):
        saves(tmp_path / "s", 4)
    assert caplog.text.count("another saver") <= 2 * handle.RESTARTS
    assert steps_of(tmp_path / "s") == [2]


def test_a_save_that_no_saver_tells_of_any_more_is_looked_up(tmp_path: Path, impatient) -> None:
    """It died before it could say so, and the slot was used again before another one came to look."""
    once, used, log, family = tmp_path / "once", tmp_path / "used", tmp_path / "log", Family()

    def then(step: int, ckpt: Checkpointer) -> None:
        process = ckpt._training._checkpoints._saves.process
        if step == 2:
            awaited(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "the first one has died")
        if step == 3:
            for row in process.control.rows():
                process.control.unseal(row.slot)
            used.touch()

    def work() -> None:
        starting.prelude = TELLS_NOTHING.format(once=str(once), used=str(used))
        ckpt = launched(tmp_path / "s", 4, saver="process", save=every(steps=2), keep=latest(9), then=then).ckpt
        assert ckpt.last.step == 4

    assert ended(forked(family.of(heard(work, log)))) == 0, log.read_text()
    family.await_savers_end()
    assert "without any progress" not in log.read_text()
    assert "in flight" not in log.read_text()
    check_store(tmp_path / "s", killed=True)


@pytest.mark.parametrize("ill", [False, True])
def test_a_mark_does_not_wait_for_what_is_only_kept_in_reserve(tmp_path: Path, impatient, caplog, ill: bool) -> None:
    """The end of the training would wait for it, and a rollback would not find what is good."""
    model, optimizer = tiny()
    told, health = [], when(nonfinite("loss"), rollback())
    with Checkpointer(
        tmp_path / "s",
        state={"model": model, "optimizer": optimizer},
        save=every(steps=10),
        stage=every(steps=1),
        keep=latest(9),
        good_after=4,
        health=health,
        saver="process",
    ) as ckpt:
        for step in ckpt.steps(22):
            loss = one_step(model, optimizer)
            if step == 12:
                awaited(lambda: steps_of(tmp_path / "s"), "it is saved")
            if step == 17 and not told:
                told.append(step)
                if not ill:
                    break
                loss = float("nan")
            ckpt.log(loss=loss)
    assert "in flight" not in caplog.text
    assert ckpt.step == (22 if ill else 18)


def test_a_checkpointer_that_nobody_closes_leaves_no_saver(tmp_path: Path, monkeypatch) -> None:
    """In a notebook the process goes on."""
    monkeypatch.setattr(starting, "prelude", "import holdfast.saver.main as m; m.FORGOTTEN_SECONDS = 0.2")

    def work() -> None:
        train()
        gc.collect()
        saver = saver_of(os.getpid())
        assert saver is not None
        awaited(lambda: saver.status() == psutil.STATUS_ZOMBIE, "it has ended")

    def train() -> None:
        model, optimizer = tiny()
        state = {"model": model, "optimizer": optimizer}
        ckpt = Checkpointer(tmp_path / "s", run="r", state=state, save=every(steps=2), saver="process")
        for _ in ckpt.steps(4):
            one_step(model, optimizer)

    assert ended(forked(work)) == 0
    assert steps_of(tmp_path / "s")[-1] == 4
