"""The saver as a process: what it has, what it does not have, and whom it outlives."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from memory_watch import held
from staged_kit import Family, Notes, awaited, check_store, gated, has_died, heard, saver_of, staging_memory
from tiny_training import Stop, launched, records_of, steps_of
from toy_training import KILLED, ended, forked

from holdfast import Checkpointer, every
from holdfast.errors import InvalidInput, SaveFailed
from holdfast.records import Kind
from holdfast.saver import starting

MIB = 1 << 20
NEVER = every(steps=10**6)
NOT_FOR_EVER = 90.0
"""Seconds after which a child ends that a test that failed has left behind."""


class Trainer:
    """A trainer in a process of its own that does what a test says at the end of each step."""

    def __init__(self, place: Path) -> None:
        self.store, self.log, self.gate = place / "store", place / "log", place / "gate"
        self.log.touch()
        self.notes, self.family = Notes(place / "notes"), Family()
        self.pid = 0

    def start(self, then: Callable[[int, Checkpointer], Any], *, gate: bool = False, **options: Any) -> None:
        """Starts it; with ``gate`` its saver publishes nothing before `open` is called."""

        def work() -> None:
            starting.prelude = gated(self.gate) if gate else ""
            launched(self.store, 10**6, then=then, **({"saver": "process", "save": NEVER} | options))

        gc.collect()  # what trainings in this very process have left would be theirs in the child as well
        self.pid = forked(self.family.of(heard(work, self.log)))

    def open(self) -> None:
        self.gate.touch()

    def await_note(self, *words: object) -> None:
        awaited(lambda: [str(word) for word in words] in self.notes.read(), f"the trainer notes {words}")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.ended() == KILLED

    def ended(self) -> int:
        """Waits for its end; its exit code."""
        pid, self.pid = self.pid, 0
        return ended(pid)

    @property
    def saver(self) -> psutil.Process:
        found = saver_of(self.pid)
        assert found is not None
        return found


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    made = Trainer(tmp_path)
    yield made
    if made.pid:  # the test has failed, and a child that is left would hold the output of the tests open
        os.kill(made.pid, signal.SIGKILL)
        made.ended()
    for one in made.family.savers():
        one.kill()


def save_and_sleep(trainer: Trainer, at: int = 1) -> Callable[[int, Checkpointer], None]:
    """Saves when a step is complete; at the next one tells, and sleeps for ever."""

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == at:
            ckpt.save()
        elif step == at + 1:
            trainer.notes.add("saved")
            time.sleep(600)

    return then


# What it is


def test_a_saver_is_small_and_knows_no_torch(trainer: Trainer) -> None:
    trainer.start(save_and_sleep(trainer))
    trainer.await_note("saved")
    awaited(lambda: records_of(trainer.store), "a record")
    saver, has = trainer.saver, held(trainer.saver.pid)
    assert has.rss - has.shared_memory < 150 * MIB
    mapped = {Path(one.path).name for one in saver.memory_maps()}
    assert not [name for name in mapped if "torch" in name or "cuda" in name]
    trainer.kill()


def test_a_saver_has_a_session_of_its_own_and_its_main_thread_the_usual_priority(trainer: Trainer) -> None:
    trainer.start(save_and_sleep(trainer))
    trainer.await_note("saved")
    pid = trainer.saver.pid
    assert os.getsid(pid) == pid != os.getsid(trainer.pid)
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert trainer.saver.cwd() == "/"
    trainer.kill()


def test_a_saver_inherits_no_descriptor(trainer: Trainer, tmp_path: Path) -> None:
    """Not even those that are meant to be inherited."""
    (tmp_path / "opened").touch()

    def then(step: int, ckpt: Checkpointer) -> None:
        save_and_sleep(trainer)(step, ckpt)

    def work() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        kept = [listening, (tmp_path / "opened").open(), *map(os.fdopen, os.pipe())]
        for one in kept:
            os.set_inheritable(one.fileno(), True)
        trainer.notes.add("has", *(os.readlink(f"/proc/self/fd/{one.fileno()}") for one in kept))
        launched(trainer.store, 10**6, then=then, saver="process", save=NEVER)

    trainer.pid = forked(trainer.family.of(work))
    trainer.await_note("saved")
    (theirs,) = (set(words[1:]) for words in trainer.notes.read() if words[0] == "has")
    folder = Path(f"/proc/{trainer.saver.pid}/fd")
    awaited(lambda: records_of(trainer.store), "the saver is at rest, and opens and closes nothing")
    has = set()
    for link in folder.iterdir():
        with suppress(FileNotFoundError):
            has.add(os.readlink(link))
    assert len(theirs) == 3
    assert not theirs & has
    assert [os.readlink(folder / str(number)) for number in (0, 1)] == ["/dev/null"] * 2
    trainer.kill()


TRAP = """
import os
with open(os.environ["TRAP"], "a") as file:
    file.write(__name__ + "\\n")
raise ImportError("this is the user's own module")
"""

SCRIPT = """
import os, sys
folder = sys.path.pop(0)
import torch
from holdfast import Checkpointer, every
from holdfast.saver import starting
sys.path.insert(0, folder)  # as it is when a script is run; the trainer has imported what it needs
os.environ["PYTHONPATH"] = folder
starting.prelude = {prelude!r}
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Checkpointer({store!r}, state={{"model": model, "optimizer": optimizer}}, save=every(steps=2)) as ckpt:
    for step in ckpt.steps(5):
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        if step == {kill_at}:
            print("a line", flush=True)
            os.kill(os.getpid(), 9)
"""


def script(tmp_path: Path, *, kill_at: int, prelude: str = "") -> list[str]:
    """The command line of a training script that may kill itself."""
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(SCRIPT.format(store=str(tmp_path / "store"), kill_at=kill_at, prelude=prelude)))
    return [sys.executable, str(path)]


def test_modules_of_the_user_are_not_taken_for_those_of_python_or_of_libraries(tmp_path: Path) -> None:
    """Hazard 19: in the working folder, in the script's folder, and in PYTHONPATH."""
    for name in ("types", "token", "blake3", "msgspec", "json", "socket", "psutil", "holdfast"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    env = {**os.environ, "TRAP": str(tmp_path / "sprung")}
    done = subprocess.run(script(tmp_path, kill_at=-1), cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert not (tmp_path / "sprung").exists()
    assert steps_of(tmp_path / "store") == [2, 4, 5]


def test_whoever_waits_for_the_output_of_a_killed_trainer_does_not_wait_for_its_saver(tmp_path: Path) -> None:
    """Hazard 19: the saver holds none of it open, and is still at work when the caller has all the output."""
    family, gate = Family(), tmp_path / "gate"

    def work() -> None:
        command = script(tmp_path, kill_at=3, prelude=gated(gate))
        done = subprocess.run(command, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (KILLED, b"a line\n"), done.stderr.decode()
        assert family.savers(), "the saver has outlived its trainer"
        gate.touch()

    assert ended(forked(family.of(work))) == 0
    family.await_savers_end()
    assert steps_of(tmp_path / "store") == [2]
    check_store(tmp_path / "store")


# Whom it outlives


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_everybody_does_not_end_a_saver(trainer: Trainer, number: signal.Signals) -> None:
    trainer.start(save_and_sleep(trainer), gate=True)
    trainer.await_note("saved")
    saver = trainer.saver
    saver.send_signal(number)
    trainer.kill()
    saver.send_signal(number)
    trainer.open()
    trainer.family.await_savers_end()
    assert steps_of(trainer.store) == [2]
    check_store(trainer.store)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGQUIT, signal.SIGRTMIN + 3])
def test_a_signal_that_the_trainer_watches_does_not_end_a_saver_either(trainer: Trainer, number: int) -> None:
    """Of itself it would: schedulers send it to every process of a job."""
    trainer.start(save_and_sleep(trainer), gate=True, signals=("SIGTERM", number))
    trainer.await_note("saved")
    saver = trainer.saver
    saver.send_signal(number)
    trainer.kill()
    trainer.open()
    trainer.family.await_savers_end()
    assert steps_of(trainer.store) == [2]


def c_fork() -> int:
    """A child that Python does not know of: it keeps every descriptor, as one would that was forked by a library."""
    pid = int(ctypes.CDLL(None).fork())
    if pid == 0:
        time.sleep(NOT_FOR_EVER)
        os._exit(0)
    return pid


def test_the_end_of_the_trainer_is_noticed_while_a_child_holds_its_sockets(trainer: Trainer) -> None:
    """Hazard 19: end-of-file comes only when the last holder has closed them; a pidfd tells at once."""

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 1:
            trainer.notes.add("child", c_fork())
        save_and_sleep(trainer)(step, ckpt)

    trainer.start(then)
    trainer.await_note("saved")
    trainer.kill()
    trainer.family.await_savers_end()
    (child,) = (int(words[1]) for words in trainer.notes.read() if words[0] == "child")
    assert staging_memory(child), "the child has outlived them, with all that it inherited"
    os.kill(child, signal.SIGKILL)
    assert steps_of(trainer.store) == [2]
    check_store(trainer.store)


# Forked children


def in_child(work: Callable[[], object]) -> int:
    """Does ``work`` in a child of the trainer, forked by Python; gives its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_a_forked_child_has_no_part_in_the_saver(trainer: Trainer) -> None:
    """It may not save, holds no staging memory, and keeps nobody alive."""

    def child(ckpt: Checkpointer) -> None:
        with pytest.raises(InvalidInput, match="belongs to the process that made it"):
            ckpt.save()
        trainer.notes.add("child", os.getpid())
        time.sleep(NOT_FOR_EVER)

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 1:
            ckpt.save()
        elif step == 2:
            in_child(lambda: child(ckpt))
            ckpt.save()
        elif step == 3:
            trainer.notes.add("saved")
            time.sleep(600)

    trainer.start(then)
    trainer.await_note("saved")
    awaited(lambda: any(words[0] == "child" for words in trainer.notes.read()), "the child was refused")
    (pid,) = (int(words[1]) for words in trainer.notes.read() if words[0] == "child")
    assert staging_memory(trainer.pid)
    assert staging_memory(pid) == []
    trainer.kill()
    trainer.family.await_savers_end()
    os.kill(pid, signal.SIGKILL)
    assert steps_of(trainer.store) == [2, 3]
    check_store(trainer.store)


def test_a_forked_child_that_leaves_the_block_ends_nothing(trainer: Trainer) -> None:
    """A helper process that raises, or returns out of the loop, runs the ends of all its parent's blocks."""

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 1:
            ckpt.save()
            pid = os.fork()
            if pid == 0:
                raise Stop
            assert ended(pid) == 70  # as `toy_training.forked` ends whoever raises
            trainer.notes.add("saver", saver_of(os.getpid()).pid)
        elif step == 3:
            trainer.notes.add("saver", saver_of(os.getpid()).pid)
            raise KeyboardInterrupt if ckpt.save(wait="durable") else AssertionError

    trainer.start(then, save=every(steps=1))
    assert trainer.ended() == 70
    savers = [words[1] for words in trainer.notes.read()]
    assert len(savers) == 2
    assert savers[0] == savers[1]
    assert "has died" not in trainer.log.read_text()
    assert steps_of(trainer.store) == [1, 2, 3]
    check_store(trainer.store)


def test_a_signal_to_a_forked_child_tells_the_saver_nothing(trainer: Trainer) -> None:
    """It has inherited the handler and the wakeup descriptor; its saver would take it for a signal to the trainer."""

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 3:
            pid = in_child(lambda: time.sleep(NOT_FOR_EVER))
            time.sleep(0.2)  # the child comes to its sleep, or is killed before, which hides what this looks for
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            trainer.notes.add("saved")
            time.sleep(600)

    trainer.start(then, stage=every(steps=1))
    trainer.await_note("saved")
    assert records_of(trainer.store) == []
    trainer.kill()
    trainer.family.await_savers_end()
    assert [record.kind for record in records_of(trainer.store)] == [Kind.PREEMPTED]
    assert "killed" in records_of(trainer.store)[0].reason


# When it dies


def test_a_saver_that_cannot_even_start_is_said_and_fails_the_saves(tmp_path: Path, caplog) -> None:
    """Its last words are in the log of the trainer, and a training that saves nothing does not end well."""

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(starting, "prelude", "raise RuntimeError('no saver today')")
        with pytest.raises(SaveFailed, match="no saver process"):
            launched(tmp_path / "s", 4, saver="process", save=every(steps=1), on_save_error="warn")
    assert "no saver today" in caplog.text
    assert "no other one is started" in caplog.text
    assert records_of(tmp_path / "s") == []


def test_a_saver_that_cannot_be_started_now_is_started_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor, no process, no place for its last words: none of that ends a training, or all of its saves."""
    tries: list[int] = []
    real = starting.error_file

    def scarce() -> Any:
        tries.append(len(tries))
        if len(tries) in (2, 3):
            raise OSError(24, "Too many open files")
        return real()

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 1:
            saver = saver_of(os.getpid())
            assert saver is not None
            saver.kill()
            awaited(lambda: has_died(saver), "it is dead")

    monkeypatch.setattr(starting, "error_file", scarce)
    launched(tmp_path / "s", 6, saver="process", save=every(steps=1), then=then, on_save_error="warn")
    assert len(tries) >= 4
    assert steps_of(tmp_path / "s")[-1] == 6
    check_store(tmp_path / "s", killed=True)


def test_an_idle_saver_that_dies_is_replaced_before_the_next_save_returns(trainer: Trainer) -> None:
    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 1:
            trainer.notes.add("up")
            awaited(trainer.gate.exists, "the saver was killed")
            ckpt.save()
        elif step == 2:
            trainer.notes.add("saved")
            time.sleep(600)

    trainer.start(then)
    trainer.await_note("up")
    awaited(lambda: list(trainer.store.glob("catalog/runs/001/holds/saver-*")), "the saver stands by")
    first = trainer.saver
    first.kill()
    awaited(lambda: has_died(first), "it is dead")
    trainer.open()
    trainer.await_note("saved")
    assert trainer.saver.pid != first.pid
    assert f"the saver process {first.pid} has died: SIGKILL" in trainer.log.read_text()
    trainer.kill()
    trainer.family.await_savers_end()
    assert steps_of(trainer.store) == [2]
    check_store(trainer.store)


def test_the_end_of_a_training_is_the_end_of_its_saver(tmp_path: Path) -> None:
    launched(tmp_path / "s", 4, saver="process")
    assert saver_of(os.getpid()) is None
    assert steps_of(tmp_path / "s") == [2, 4]
    check_store(tmp_path / "s")


# When time is short


def test_a_signal_while_all_staging_memory_is_taken_does_not_wait(trainer: Trainer) -> None:
    """Hazard 25: the newest state takes the place of one that nobody has begun to save."""

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 2:  # the first save waits for the gate, the second one for the first
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.start(then, gate=True, save=every(steps=1))
    awaited(lambda: "was given up for a newer one" in trainer.log.read_text(), "one that waits makes place")
    trainer.open()
    assert trainer.ended() == 0
    first, last = records_of(trainer.store)
    assert (first.step in (1, 2), first.kind) == (True, Kind.REGULAR)  # which one was begun is up to the saver
    assert (last.step, last.kind) == (3, Kind.PREEMPTED)
    check_store(trainer.store)
