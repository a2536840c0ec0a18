"""Saves that fail: tried again, borne or not, always loud; and disks that are full."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from failing_files import Faults, fill, install, small_disk
from staged_kit import awaited, leftovers
from tiny_training import launched, one_step, steps_of, tiny

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.catalog.marks import read_record_marks
from holdfast.catalog.naming.tags import delete_tag, read_tags
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import SaveFailed, StorageFull, StorageUnavailable
from holdfast.ids import TagName
from holdfast.recovery.handover import background
from holdfast.recovery.saving import checkpoints
from holdfast.recovery.stopping import ending
from holdfast.saver import starting, trying
from holdfast.storage import opening
from holdfast.testing.faults import Op

QUICK = "import holdfast.saver.trying as t; t.FIRST_PAUSE, t.FULL_PAUSE = 0.01, 0.05"
"""For tests that fail often."""


@pytest.fixture(params=["process", "inline"])
def saver(request, monkeypatch):
    monkeypatch.setattr(trying, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(trying, "FULL_PAUSE", 0.05)
    monkeypatch.setattr(starting, "prelude", QUICK)
    return request.param


@pytest.fixture
def faults(tmp_path, saver, monkeypatch):
    """What a test says to the disk under whoever saves."""
    made = Faults(tmp_path / "faults")
    if saver == "process":
        monkeypatch.setattr(starting, "prelude", made.prelude(QUICK))
        # A saver that cannot write does not stand by; each test would wait for that, once.
        monkeypatch.setattr(background, "READY_SECONDS", 3.0)
    else:
        monkeypatch.setattr(opening, "LocalStorage", opening.LocalStorage)
        install(made.orders)
    return made


@pytest.fixture
def disk(tmp_path):
    """A filesystem of 16 MiB, for checkpoints of 3 MB."""
    with small_disk(tmp_path / "disk", "16m") as mounted:
        if not mounted:
            pytest.skip("this user may not mount anything")
        yield tmp_path / "disk"


@pytest.fixture(autouse=True)
def loud(caplog):
    caplog.set_level(logging.INFO, "holdfast")


def at(step, *works):
    """For ``then``: does something in the body of a step."""

    def then(now, ckpt):
        if now == step:
            for work in works:
                work(ckpt)

    return then


def drained(ckpt):
    """Nothing is in flight, and what became of it was heard."""
    ckpt._training._checkpoints.drain()


def standing(ckpt):
    """The saver process, if there is one, has begun: what fails from now on fails a save."""
    process = getattr(ckpt._training._checkpoints._saves, "process", None)

    def ready():
        drained(ckpt)
        return process is None or process.ready

    awaited(ready, "the saver begins")


def big():
    """A model whose checkpoints take 3 MB, and its optimizer."""
    torch.manual_seed(3)
    model = torch.nn.Linear(512, 512)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def trained(store, steps, *, then=lambda step, ckpt: None, **options):
    """One launch with a state of 3 MB, saved at every step."""
    model, optimizer = big()
    settings = {"run": "r", "save": every(steps=1), "keep": latest(9)} | options
    with Checkpointer(store, state={"model": model, "optimizer": optimizer}, **settings) as ckpt:
        for step in ckpt.steps(steps):
            then(step, ckpt)
            model(torch.randn(4, 512)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return ckpt


def whole(store):
    report = verify(holdfast.open(store), deep=True)
    return report.ok and not leftovers(store)


# Tried again


def test_an_error_that_passes_costs_a_second_try_and_nothing_else(tmp_path, faults, saver, caplog):
    launched(tmp_path / "s", 4, saver=saver, then=at(1, standing, lambda ckpt: faults.tell(Op.LINK, "EIO", times=1)))
    assert steps_of(tmp_path / "s") == [2, 4]
    assert "the save of step 2 is tried again" in caplog.text
    assert "has failed" not in caplog.text
    assert whole(tmp_path / "s")


def test_one_save_is_tried_three_times_and_then_given_up(tmp_path, faults, saver, caplog):
    with pytest.raises(StorageUnavailable) as failed:
        model, optimizer = tiny()
        with Checkpointer(
            tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=every(steps=99), saver=saver
        ) as ckpt:
            for _ in ckpt.steps(1):
                one_step(model, optimizer)
            faults.tell(Op.SYNC, "EIO")
            ckpt.save(wait="durable")
    assert "cannot" in str(failed.value)
    assert caplog.text.count("is tried again") == trying.ATTEMPTS - 1
    assert steps_of(tmp_path / "s") == []


# Borne, or not


@pytest.mark.parametrize(("bears", "failures"), [("raise", 1), (2, 3), (holdfast.tolerate(minutes=1e-5), 1)], ids=str)
def test_a_training_bears_so_many_failures_and_not_one_more(tmp_path, faults, saver, bears, failures, caplog):
    def then(step, ckpt):
        if step == 1:
            standing(ckpt)
            faults.tell(Op.SYNC, "EIO")
        drained(ckpt)

    with pytest.raises(StorageUnavailable) as ended:
        launched(tmp_path / "s", 40, saver=saver, on_save_error=bears, then=then)
    assert "holdfast ends the training" in ended.value.__notes__[-1]
    assert caplog.text.count("has failed: ") == failures
    assert "there is no checkpoint yet" in caplog.text


def test_failures_that_are_borne_are_said_and_forgotten_by_the_next_good_save(tmp_path, faults, saver, caplog):
    """Three times two failures with a good save between them are no six in a row."""

    def then(step, ckpt):
        if step % 6 == 0:
            standing(ckpt)
            faults.tell(Op.SYNC, "EIO")
        if step % 6 == 5:
            drained(ckpt)
            faults.clear()

    launched(tmp_path / "s", 18, saver=saver, on_save_error=2, then=then)
    assert steps_of(tmp_path / "s") == [6, 12, 18]
    assert caplog.text.count("has failed: ") == 6


def test_warn_bears_any_number_but_the_exit_code_says_that_the_last_one_failed(tmp_path, faults, saver, caplog):
    with pytest.raises(StorageUnavailable) as ended:
        launched(
            tmp_path / "s",
            12,
            saver=saver,
            on_save_error="warn",
            then=at(1, standing, lambda ckpt: faults.tell(Op.SYNC, "EIO")),
        )
    assert not getattr(ended.value, "__notes__", [])
    assert caplog.text.count("has failed: ") >= 6


SCRIPT = """
import sys, torch, holdfast
from holdfast import Checkpointer, every
from holdfast.recovery.handover import background
from holdfast.saver import starting
background.READY_SECONDS = 3.0
sys.path.append({kits!r})
import failing_files
from holdfast.testing.faults import Op

faults = failing_files.Faults(__import__("pathlib").Path({orders!r}))
if {saver!r} == "process":
    starting.prelude = faults.prelude({quick!r})
else:
    exec({quick!r})
    failing_files.install(faults.orders)
model = torch.nn.Linear(16, 32)
optimizer = torch.optim.AdamW(model.parameters())
with Checkpointer({store!r}, run="r", state={{"model": model, "optimizer": optimizer}}, save=every(steps=2),
                  saver={saver!r}) as ckpt:
    for step in ckpt.steps(6):
        if step == {bad}:
            faults.tell(Op.SYNC, "EIO")
        if step == {good}:
            faults.clear()
        model(torch.ones(4, 16)).sum().backward()
        optimizer.step()
        if step % 2 == 0:
            ckpt._training._checkpoints.drain()
"""


def exit_of(tmp_path, saver, *, bad, good):
    kits = str(Path(sys.modules["failing_files"].__file__).parent)
    places = {"kits": kits, "orders": str(tmp_path / "orders"), "store": str(tmp_path / "s"), "quick": QUICK}
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT).format(saver=saver, bad=bad, good=good, **places))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)


def test_a_script_whose_last_save_failed_does_not_exit_with_zero(tmp_path, saver):
    done = exit_of(tmp_path, saver, bad=5, good=99)
    assert done.returncode == 1, done.stderr
    assert "StorageUnavailable" in done.stderr
    assert steps_of(tmp_path / "s") == [2, 4]


def test_a_script_whose_last_save_made_up_for_one_that_failed_exits_with_zero(tmp_path, saver):
    done = exit_of(tmp_path, saver, bad=1, good=3)
    assert done.returncode == 0, done.stderr
    assert "has failed" in done.stderr, "nobody has heard of it"
    assert steps_of(tmp_path / "s") == [4, 6]


# What hangs on a save that fails


def test_metrics_of_a_save_that_failed_are_in_the_next_one_of_the_same_boundary(tmp_path, faults, saver):
    model, optimizer = tiny()
    with Checkpointer(
        tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=every(steps=99), saver=saver
    ) as ckpt:
        for _ in ckpt.steps(3):
            one_step(model, optimizer)
            break
        ckpt.log(loss=1.0)
        faults.tell(Op.SYNC, "EIO")
        ckpt.save()
        ckpt.log(accuracy=0.5)
        drained(ckpt)
        faults.clear()
        record = ckpt.save(wait="durable")
    assert record.metrics == {"loss": 1.0, "accuracy": 0.5}


def test_a_tag_that_was_asked_for_with_a_save_that_failed_is_said_to_be_missing(tmp_path, faults, saver, caplog):
    model, optimizer = tiny()
    with Checkpointer(
        tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=every(steps=99), saver=saver
    ) as ckpt:
        for _ in ckpt.steps(3):
            one_step(model, optimizer)
            break
        faults.tell(Op.SYNC, "EIO")
        ckpt.save(tag="mine")
        drained(ckpt)
        faults.clear()
        ckpt.save(tag="yours", wait="durable")
    assert "there is no tag mine" in caplog.text
    assert [tag.tag for tag in read_tags(holdfast.open(tmp_path / "s")).tags] == ["yours"]


# Full disks


def test_a_full_disk_skips_the_save_and_the_next_one_is_made_when_there_is_room(disk, saver, caplog):
    def then(step, ckpt):
        if step == 1:
            drained(ckpt)
            fill(disk / "other", leave=2 << 20)
        if step == 2:
            drained(ckpt)
            (disk / "other").unlink()

    trained(disk / "s", 3, saver=saver, then=then)
    assert steps_of(disk / "s") == [1, 3]
    assert "No space left" in caplog.text
    assert whole(disk / "s")


def test_a_full_disk_is_cleared_of_what_retention_does_not_keep(disk, saver, caplog):
    trained(disk / "s", 4, saver=saver)
    assert steps_of(disk / "s") == [1, 2, 3, 4]
    trained(disk / "s", 6, saver=saver, keep=latest(1))
    assert "to make room" in caplog.text
    assert "has failed" not in caplog.text
    assert steps_of(disk / "s") == [4, 6], "a launch keeps what it has resumed from"
    assert whole(disk / "s")


def test_a_disk_that_is_full_to_the_last_byte_is_cleared_as_well(disk, saver, caplog):
    """Hazard 31: whoever deletes must announce it first, and has kept a little room for that."""

    def then(step, ckpt):
        if step == 1:
            ckpt.save(tag="kept")
        if step == 4:
            drained(ckpt)
            delete_tag(holdfast.open(disk / "s"), TagName("kept"))
            fill(disk / "other")

    trained(disk / "s", 5, saver=saver, keep=latest(1), then=then)
    assert "to make room" in caplog.text
    assert "has failed" not in caplog.text
    assert steps_of(disk / "s") == [5]
    assert whole(disk / "s")


def test_a_full_disk_is_waited_for_and_the_save_is_made_once_there_is_room(disk, saver, caplog):
    def then(step, ckpt):
        if step == 1:
            drained(ckpt)
            fill(disk / "other", leave=2 << 20)
            threading.Thread(target=make_room).start()

    def make_room():
        awaited(lambda: "waiting for room" in caplog.text, "the full disk is said")
        (disk / "other").unlink()

    trained(disk / "s", 3, saver=saver, on_full="pause", then=then)
    assert steps_of(disk / "s") == [1, 2, 3]
    assert "has failed" not in caplog.text
    assert caplog.text.count("waiting for room") == 1, "it is said once a minute, not at every look"
    assert whole(disk / "s")


def test_a_request_to_stop_ends_the_wait_for_room(disk, caplog):
    """In line, the loop itself waits: the grace time is for something better."""

    def then(step, ckpt):
        if step == 1:
            drained(ckpt)
            fill(disk / "other", leave=2 << 20)
            threading.Thread(target=stop).start()

    def stop():
        awaited(lambda: "waiting for room" in caplog.text, "the full disk is said")
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StorageFull):
        trained(disk / "s", 9, saver="inline", on_full="pause", then=then)
    assert steps_of(disk / "s") == [1]


def test_room_is_set_aside_before_the_bytes_are_written(tmp_path, faults, saver):
    """So a disk that is too small is not first filled to the brim, in everybody's way."""
    with pytest.raises(StorageFull):
        trained(tmp_path / "s", 1, saver=saver, then=at(0, lambda ckpt: faults.tell(Op.RESERVE, "ENOSPC")))
    assert not faults.much_was_written
    faults.clear()
    trained(tmp_path / "s", 1, saver=saver)
    assert faults.much_was_written, "this test would not notice"


# Waits


@pytest.fixture
def silent(monkeypatch):
    monkeypatch.setattr(checkpoints, "SILENT_SECONDS", 3.0)


def wide():
    """Twelve tensors, each of which is a write of its own."""
    return {f"part{number}": torch.full((20_000 + number,), float(number)) for number in range(12)}


def saved_once(store, state):
    with Checkpointer(store, run="r", state=state, save=every(steps=99), saver="process") as ckpt:
        for _ in ckpt.steps(1):
            pass
    return ckpt.last


@pytest.mark.parametrize("op", ["write", "read"])
def test_a_save_that_gets_on_is_waited_for_however_slow_it_is(tmp_path, monkeypatch, op, caplog):
    """Twelve seconds of writing, or of reading back, with a sign of life each second, against six of patience."""
    monkeypatch.setattr(checkpoints, "SILENT_SECONDS", 6.0)
    slow = {
        "write": "from holdfast.storage.direct import FileSink as F; verb = 'write'",
        "read": "from holdfast.storage.direct import FileSource as F; verb = 'read_into'",
    }[op]
    more = """
import holdfast.saver.worker as w, holdfast.packs.verify as v, holdfast.packs.writer as p, threading, time
w.ALIVE_SECONDS, v.SEGMENT_BYTES, p.SEGMENT_BYTES = 0.1, 100_000, 100_000
lock, call = threading.Lock(), getattr(F, verb)
def slowly(*given):
    with lock:
        time.sleep(1.0)
    return call(*given)
setattr(F, verb, slowly)
"""
    monkeypatch.setattr(starting, "prelude", slow + more)
    model = torch.nn.ParameterDict(wide())
    assert saved_once(tmp_path / "s", {"model": model}).step == 1
    assert "without any progress" not in caplog.text


def test_a_saver_that_stands_still_is_not_waited_for_and_the_exit_code_says_so(tmp_path, monkeypatch, silent, caplog):
    monkeypatch.setattr(ending, "CLOSE_SECONDS", 1.0)
    stopped = []

    def then(step, ckpt):
        if step == 3:
            drained(ckpt)
            stopped.append(ckpt._training._checkpoints._saves.process.pid)
            os.kill(stopped[0], signal.SIGSTOP)

    try:
        with pytest.raises(SaveFailed, match=r"run-001@4 .*, the last save, is not durable yet"):
            launched(tmp_path / "s", 4, saver="process", then=then)
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    assert "without any progress" in caplog.text
    awaited(lambda: steps_of(tmp_path / "s") == [2, 4], "the saver goes on by itself")
    store = holdfast.open(tmp_path / "s")
    assert not any(read_record_marks(store, one.address).final for one in store.run(1).records())


def test_a_saver_that_begins_while_the_disk_fails_saves_once_it_is_well(tmp_path, monkeypatch, caplog):
    faults = Faults(tmp_path / "faults")
    monkeypatch.setattr(starting, "prelude", faults.prelude(QUICK))
    monkeypatch.setattr(background, "READY_SECONDS", 3.0)
    faults.tell(Op.SYNC, "EIO")

    def then(step, ckpt):
        if step == 2:
            drained(ckpt)
            faults.clear()

    launched(tmp_path / "s", 4, saver="process", then=then)
    assert "could not announce itself" in caplog.text
    assert "has died" not in caplog.text
    assert steps_of(tmp_path / "s") == [4]
    assert whole(tmp_path / "s")
