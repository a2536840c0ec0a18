"""What a pre-empted training tells: facts, a hook, an exit code; and what it does with the time that is left."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import expected, launched, one_step, records_of, steps_of, tiny
from torch.utils.data import DataLoader, TensorDataset
from toy_training import ended, forked

import holdfast
from holdfast import Checkpointer, every
from holdfast.catalog.journal.journal import read_journal
from holdfast.errors import InvalidInput, SaveFailed
from holdfast.ids import RunNumber
from holdfast.records import Kind
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.recovery.stopping.preempting import EXIT_CODE

RARELY = every(steps=1000)


def said(store: Path, kind: str) -> list:
    entries = read_journal(holdfast.open(store), RunNumber(1)).entries
    return [entry.event for entry in entries if entry.event.kind == kind]


def sent(step: int, *numbers: int):
    def then(at: int, ckpt: Checkpointer) -> None:
        if at == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    return then


def test_whoever_was_preempted_is_told_how_it_ended(tmp_path: Path) -> None:
    heard = []
    ckpt = launched(tmp_path / "s", 9, then=sent(4, signal.SIGTERM), grace=50.0, on_preempt=heard.append).ckpt
    facts = ckpt.preempted
    assert heard == [facts]
    assert (facts.signal, facts.step, facts.durable) == ("SIGTERM", 5, True)
    assert facts.record.address == records_of(tmp_path / "s")[-1].address
    assert 0 < facts.left <= 50.0
    assert facts.exit_code == EXIT_CODE == os.EX_TEMPFAIL
    (event,) = said(tmp_path / "s", "preempted")
    assert (event.data["signal"], event.data["durable"]) == ("SIGTERM", True)
    assert said(tmp_path / "s", "exit")[-1].data["how"] == "preempted"


def test_the_hook_is_called_when_the_checkpoint_is_durable(tmp_path: Path) -> None:
    """It hands the job back to the queue: another launch may begin at that instant."""
    seen = []
    launched(
        tmp_path / "s",
        9,
        saver="process",
        save=RARELY,
        then=sent(4, signal.SIGTERM),
        on_preempt=lambda facts: seen.append([record.step for record in records_of(tmp_path / "s")]),
    )
    assert seen == [[5]]


def test_a_training_that_reaches_its_end_is_not_preempted(tmp_path: Path) -> None:
    """To put it into the queue again would be of no use."""
    ckpt = launched(tmp_path / "s", 5, then=sent(4, signal.SIGTERM), on_preempt=lambda facts: 1 / 0).ckpt
    assert ckpt.preempted is None
    assert said(tmp_path / "s", "exit")[-1].data["how"] == "completed"


def test_an_undisturbed_training_was_not_preempted(tmp_path: Path) -> None:
    assert launched(tmp_path / "s", 4, on_preempt=lambda facts: 1 / 0).ckpt.preempted is None


def test_a_hook_that_fails_is_heard_and_the_checkpoint_stands(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        launched(tmp_path / "s", 9, save=RARELY, then=sent(4, signal.SIGTERM), on_preempt=lambda facts: 1 / 0)
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.PREEMPTED)]


def test_the_exit_code_reaches_whoever_started_it(tmp_path: Path) -> None:
    def work() -> None:
        ckpt = launched(tmp_path / "s", 9, then=sent(4, signal.SIGTERM)).ckpt
        os._exit(ckpt.preempted.exit_code)

    assert ended(forked(work)) == 75


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGHUP", "SIGRTMIN+5"])
def test_any_signal_can_be_the_one(tmp_path: Path, name: str) -> None:
    """Users-ask 8: the choice was fixed."""
    from holdfast.recovery.environment.signal_names import signal_numbers

    (number,) = signal_numbers([name])
    before = signal.getsignal(number)
    ckpt = launched(tmp_path / "s", 9, save=RARELY, signals=[name], then=sent(4, number)).ckpt
    assert ckpt.preempted.signal == name
    assert steps_of(tmp_path / "s") == [5]
    assert signal.getsignal(number) == before


def test_signals_that_are_not_configured_do_what_they_always_did(tmp_path: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        launched(tmp_path / "s", 9, signals=["SIGUSR2"], then=sent(4, signal.SIGTERM))

    assert ended(forked(work)) == -signal.SIGTERM


@pytest.mark.parametrize("given", [["SIGKILL"], "SIGTERM", ["SIGSEGV"]])
def test_signals_that_make_no_sense_are_refused_before_anything_is_touched(tmp_path: Path, given) -> None:
    with pytest.raises(InvalidInput, match="signals="):
        launched(tmp_path / "s", 9, signals=given)
    assert not (tmp_path / "s").exists()


# Time


def test_a_save_that_would_not_end_in_time_is_not_begun(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(Checkpoints, "typical", 100.0)
    ckpt = launched(tmp_path / "s", 9, then=sent(4, signal.SIGTERM), grace=30.0).ckpt
    assert (ckpt.preempted.durable, ckpt.preempted.step, ckpt.preempted.record.step) == (False, 5, 4)
    assert "a save takes about 100.0 s" in caplog.text
    assert "run-001@4" in caplog.text
    (event,) = said(tmp_path / "s", "preempted")
    assert "stands" in event.message
    assert launched(tmp_path / "s", 9).digest == expected()[9]


def test_a_save_that_does_not_end_in_time_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    """The saver is stuck behind a disk that hangs: the training ends all the same, and says what stands."""
    stopped = []

    def stop(at: int, ckpt: Checkpointer) -> None:
        if at == 4:
            ckpt.save()
        if at == 5:
            ckpt._training._checkpoints.drain()
            process = ckpt._training._checkpoints._saves.process
            os.kill(process.pid, signal.SIGSTOP)
            stopped.append(process.pid)
        if at == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    began = time.monotonic()
    try:
        ckpt = launched(tmp_path / "s", 9, saver="process", save=RARELY, then=stop, grace=4.0).ckpt
        waited = time.monotonic() - began
        assert (ckpt.preempted.durable, ckpt.preempted.record.step) == (False, 5)
        assert ckpt.preempted.left <= 0
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    assert waited < 40, "neither the 60 s of an end in peace, nor the 600 s of a silent saver"


def test_a_step_that_takes_longer_than_the_grace_time_does_not_cost_the_checkpoint(tmp_path: Path, monkeypatch) -> None:
    """In the middle of an accumulation, while there is still time; it says that it is not exact."""
    monkeypatch.setattr(Checkpoints, "typical", 10.0)
    model, optimizer = tiny()
    with Checkpointer(
        tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY, saver="inline", grace=10.9
    ) as ckpt:
        for count, (_, _) in enumerate(ckpt.batches([0] * 1000, total_steps=9)):
            model(torch.ones(1, 16)).sum().backward()
            if count == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            if count < 5:
                optimizer.step()
            assert count < 500
    (record,) = records_of(tmp_path / "s")
    assert not record.exactness["gradients"].exact


# Places


def test_a_loop_that_asks_and_breaks_is_preempted_too(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for step in ckpt.steps(9):
            one_step(model, optimizer)
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            if ckpt.should_stop():
                break
    assert (ckpt.preempted.step, ckpt.preempted.durable) == (4, True)
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(4, Kind.PREEMPTED)]


def test_before_the_first_loop_nobody_has_asked(tmp_path: Path) -> None:
    """And handlers are not there: a signal in a warm-up does what it always does."""
    model, optimizer = tiny()
    before = signal.getsignal(signal.SIGTERM)
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        assert not ckpt.should_stop()
        assert not ckpt.should_stop(together=True)
        assert signal.getsignal(signal.SIGTERM) is before
        assert ckpt.preempted is None


def test_a_signal_right_after_a_resume_saves_nothing_twice(tmp_path: Path) -> None:
    launched(tmp_path / "s", 4)
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=RARELY) as ckpt:
        ckpt.restore()
        ckpt._life._opening.stops.ask("SIGTERM")
        assert list(ckpt.steps(9)) == []
    assert (ckpt.preempted.durable, ckpt.preempted.record.step) == (True, 4)
    assert steps_of(tmp_path / "s") == [2, 4]


def of_epochs(store: Path, then, epochs: int = 4, **options) -> tuple[Checkpointer, list[int]]:
    """A script with a loop of its own around the epochs, of ten batches each, as many have it."""
    (model, optimizer), made = tiny(), []
    loader = DataLoader(TensorDataset(torch.zeros(40, 4)), batch_size=4)
    options = {"run": "a", "state": {"m": model, "o": optimizer}, "save": RARELY} | options
    with Checkpointer(store, **options) as ckpt:
        for epoch in range(epochs):
            for step, _ in ckpt.batches(loader, epochs=epoch + 1):
                made.append(step)
                one_step(model, optimizer)
                then(step, ckpt)
    return ckpt, made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_loop_after_one_that_has_ended_is_preemption_too(tmp_path: Path, number: int) -> None:
    """It was taken for the end: marked final, exit code 0, no hook, and a relaunch took the run for finished."""
    heard = []
    ckpt, made = of_epochs(tmp_path / "s", sent(13, number), on_preempt=heard.append, grace=50.0)
    assert made == list(range(14)), "the loops after it end at once"
    assert heard == [ckpt.preempted]
    assert (ckpt.preempted.step, ckpt.preempted.durable) == (14, True)
    assert said(tmp_path / "s", "exit")[-1].data["how"] == "preempted"
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(14, Kind.PREEMPTED)]
    ckpt, made = of_epochs(tmp_path / "s", lambda *_: None)
    assert made == list(range(14, 40))
    assert ckpt.last.kind is Kind.FINAL


def test_a_signal_after_a_loop_to_warm_up_is_preemption_too(tmp_path: Path) -> None:
    model, optimizer = tiny()
    loader = DataLoader(TensorDataset(torch.zeros(40, 4)), batch_size=4)
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for _ in ckpt.batches(loader, epochs=1):
            one_step(model, optimizer)
        for step, _ in ckpt.batches(loader, total_steps=1000):
            one_step(model, optimizer)
            sent(50, signal.SIGTERM)(step, ckpt)
    assert (ckpt.preempted.step, ckpt.last.kind) == (51, Kind.PREEMPTED)


def test_a_loop_that_is_left_after_one_that_has_ended_is_not_the_end(tmp_path: Path) -> None:
    model, optimizer = tiny()
    loader = DataLoader(TensorDataset(torch.zeros(40, 4)), batch_size=4)
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for epochs in (1, 2):
            for step, _ in ckpt.batches(loader, epochs=epochs):
                one_step(model, optimizer)
                if step == 13:
                    break
    assert said(tmp_path / "s", "exit")[-1].data["how"] == "left"
    assert records_of(tmp_path / "s") == []


def test_the_total_of_one_loop_is_not_that_of_the_next(tmp_path: Path) -> None:
    model, optimizer = tiny()
    loader = DataLoader(TensorDataset(torch.zeros(40, 4)), batch_size=4)
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        counts = []
        for end in ({"total_steps": 5}, {"epochs": 2}):
            counts.append(0)
            for _ in ckpt.batches(loader, **end):
                one_step(model, optimizer)
                counts[-1] += 1
    assert counts == [5, 15]
    assert (ckpt.step, ckpt.last.kind) == (20, Kind.FINAL)


def test_after_ctrl_c_another_loop_of_a_person_is_not_preempted_any_more(tmp_path: Path, monkeypatch) -> None:
    """At a prompt or in a notebook, where pressing it is a way to get back to the prompt."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for step in ckpt.steps(9):
            one_step(model, optimizer)
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
        assert ckpt.preempted.signal == "SIGINT"
        for _ in ckpt.steps(9):
            one_step(model, optimizer)
        assert ckpt.preempted is None
    assert ckpt.last.kind is Kind.FINAL


# Workers


class Dying:
    """A loader whose worker has ended: torch raises this where the next batch is fetched."""

    def __init__(self, at: int, number: int | None) -> None:
        self.at, self.number = at, number

    def __iter__(self):
        for count in range(20):
            if count == self.at:
                if self.number is not None:
                    os.kill(os.getpid(), self.number)
                raise RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly")
            yield count

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_of_an_evaluation_that_died_of_the_same_signal_is_preemption(tmp_path: Path, number) -> None:
    """In the body, where the loader is the program's own."""
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for step in ckpt.steps(15):
            if step == 5:
                list(Dying(0, number))
            one_step(model, optimizer)
    assert (ckpt.preempted.signal, ckpt.preempted.step, ckpt.preempted.durable) == (number.name, 5, True)
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.PREEMPTED)]


def test_a_worker_that_died_of_the_same_signal_is_preemption(tmp_path: Path) -> None:
    """Hazard 23: it would be filed as a failure, and end with a traceback."""
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for _ in ckpt.batches(Dying(5, signal.SIGTERM), total_steps=15):
            one_step(model, optimizer)
    assert (ckpt.preempted.step, ckpt.preempted.durable) == (5, True)
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.PREEMPTED)]
    assert said(tmp_path / "s", "exit")[-1].data["how"] == "preempted"


@pytest.mark.parametrize("place", ["before", "after"])
def test_it_may_be_said_in_the_body_too(tmp_path: Path, place: str) -> None:
    """Torch says it in a signal handler, anywhere in the main thread."""
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=every(steps=2)) as ckpt:
        for step in ckpt.steps(9):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                if place == "after":
                    one_step(model, optimizer)
                raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Terminated. ")
            one_step(model, optimizer)
    durable = place == "before"
    assert (ckpt.preempted.signal, ckpt.preempted.durable) == ("SIGTERM", durable)
    assert steps_of(tmp_path / "s") == ([2, 4, 5] if durable else [2, 4])


def test_without_a_signal_a_worker_that_died_is_a_failure(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("holdfast.recovery.stopping.ending.LATE_SECONDS", 0.05)
    model, optimizer = tiny()
    with (
        pytest.raises(RuntimeError, match="exited unexpectedly"),
        Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt,
    ):
        for _ in ckpt.batches(Dying(5, None), total_steps=15):
            one_step(model, optimizer)
    assert ckpt.preempted is None
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.FAILED)]


def test_a_save_that_fails_at_the_end_calls_the_hook_and_is_raised(tmp_path: Path, monkeypatch) -> None:
    """The job goes back into the queue, and nobody takes the end for a good one."""
    from holdfast.saver.saving import Saving

    def fails(self, *words):
        raise SaveFailed("the disk has had enough")

    heard = []
    monkeypatch.setattr(Saving, "save", fails)
    with pytest.raises(SaveFailed, match="had enough"):
        launched(tmp_path / "s", 9, save=RARELY, then=sent(4, signal.SIGTERM), on_preempt=heard.append)
    assert [(facts.step, facts.durable, facts.record) for facts in heard] == [(5, False, None)]
