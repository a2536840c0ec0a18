"""With stage= no end of the trainer costs more steps than it says: kill -9, an exception, a signal, a hang in C."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from staged_kit import Family, Notes, awaited, check_store, digest_of, heard, record_at, resumed, saver_of
from tiny_training import one_step, tiny
from toy_training import KILLED, ended, finished, forked

import holdfast
from holdfast import Checkpointer, every
from holdfast.records import Kind

EVERY = 4
"""Steps from one staged state to the next."""

STEPS = 10**6
LONG = [pytest.mark.soak, pytest.mark.timeout(3600)]


class Rolling:
    """A training that would go on for ever, keeps every fourth state in reserve and never saves by itself."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.store, self.place, self.family = place / "store", place, Family()
        self.notes, self.log = Notes(place / "notes"), place / "log"

    def train(self, act: Callable[[int], object] = lambda step: None) -> None:
        """Notes the state after every step, while that is still the next to be kept."""
        model, optimizer = tiny(width=64)
        state = {"model": model, "optimizer": optimizer}
        policies = {"save": every(steps=STEPS), "stage": every(steps=EVERY)}
        with Checkpointer(self.store, run="toy", state=state, saver="process", **policies) as ckpt:
            for step in ckpt.steps(STEPS):
                one_step(model, optimizer)
                self.notes.add("state", step + 1, digest_of(model, optimizer))
                act(step + 1)
                time.sleep(0.005)

    def start(self, act: Callable[[int], object] = lambda step: None) -> int:
        """The trainer's pid."""
        return forked(self.family.of(heard(lambda: self.train(act), self.log)))

    def await_saver(self, savers: int = 1) -> None:
        """Until so many savers have stood by, and something is in reserve."""
        holds = set[Path]()

        def stood() -> bool:
            holds.update(self.store.glob("catalog/runs/001/holds/saver-*.json"))
            return len(holds) >= savers and len(self.notes.digests()) > EVERY + 1

        awaited(stood, f"saver {savers} stands by")

    def check(self, kind: Kind) -> int:
        """How many of the steps that were made are lost; at most as many as were promised."""
        noted = self.notes.digests()
        step, digest = self.relaunched()
        lost = max(noted) - step
        assert lost <= EVERY
        assert digest == noted[step]
        record = record_at(self.store, step)
        assert record.kind is kind
        assert resumed(self.store, 2) == (step, record.id)
        self.family.await_savers_end()
        check_store(self.store)
        return lost

    def relaunched(self) -> tuple[int, str]:
        """Where a second launch begins, and with what."""

        def relaunch() -> str:
            model, optimizer = tiny(seed=99, width=64)
            state = {"model": model, "optimizer": optimizer}
            with Checkpointer(self.store, run="toy", state=state, saver="process") as ckpt:
                ckpt.restore()
                return f"{ckpt.step} {digest_of(model, optimizer)}"

        step, digest = finished(self.family.of(relaunch), self.place / "second").split()
        return int(step), digest


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=LONG)])
def test_a_kill_costs_no_more_steps_than_lie_between_two_staged_states(tmp_path: Path, kills: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    rng, lost = random.Random(seed), []
    for number in range(kills):
        training = Rolling(tmp_path / str(number))
        pid = training.start()
        training.await_saver()
        time.sleep(rng.uniform(0, 0.5))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == KILLED
        if number % 2:
            time.sleep(rng.uniform(0, 0.5))
        else:
            training.family.await_savers_end()
        lost.append(training.check(Kind.PREEMPTED))
    print(f"steps lost: {lost}")


def test_what_is_in_reserve_survives_its_saver_as_well(tmp_path: Path) -> None:
    """The saver is killed, another one is started, then the trainer is killed."""
    training = Rolling(tmp_path / "0")
    pid = training.start()
    training.await_saver()
    saver_of(pid).kill()
    training.await_saver(savers=2)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == KILLED
    training.check(Kind.PREEMPTED)
    assert "has died: SIGKILL" in training.log.read_text()


def test_an_exception_in_the_loop_costs_no_more(tmp_path: Path) -> None:
    training = Rolling(tmp_path / "0")

    def fail(step: int) -> None:
        if step == 3 * EVERY:
            raise ArithmeticError

    assert ended(training.start(fail)) == 70
    assert training.check(Kind.FAILED) == EVERY


def test_a_signal_costs_nothing_where_the_loop_goes_on(tmp_path: Path) -> None:
    training = Rolling(tmp_path / "0")
    pid = training.start()
    training.await_saver()
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 0
    assert record_at(training.store, max(training.notes.digests())).kind is Kind.PREEMPTED


def hang() -> None:
    """Blocks in C without the lock of the interpreter, as a collective does; no signal gets through."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def test_a_signal_while_the_trainer_hangs_in_c_costs_no_more(tmp_path: Path) -> None:
    """Hazard 23: its handlers never run, and its saver knows of the signal at once."""
    training = Rolling(tmp_path / "0")

    def act(step: int) -> None:
        if step == 3 * EVERY:
            training.notes.add("hangs")
            hang()

    pid = training.start(act)
    awaited(lambda: ["hangs"] in training.notes.read(), "the trainer hangs")
    os.kill(pid, signal.SIGTERM)
    awaited(lambda: holdfast.open(training.store).run(1).records(), "the saver makes a checkpoint of the reserve")
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the trainer hangs as before"
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == KILLED
    training.check(Kind.PREEMPTED)
    assert "SIGTERM" in record_at(training.store, 2 * EVERY).reason
