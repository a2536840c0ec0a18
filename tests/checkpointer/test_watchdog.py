"""The watchdog of a training from end to end: what hangs is found with its place, and what only takes long is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from staged_kit import Family, awaited, heard
from torch.utils.data import DataLoader, Dataset
from toy_training import KILLED, ended, forked

import holdfast
from holdfast import Checkpointer, best, every
from holdfast.catalog.journal.journal import read_journal
from holdfast.errors import HoldfastError, InvalidInput
from holdfast.health import watchdog
from holdfast.recovery.saving import boundary_saves
from holdfast.recovery.saving.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through pidfds")
SHORT = 0.5
"""Seconds that count as a hang where one is wanted; on a busy machine a step may take as long, see `silence`."""
SPARING = 1.2
"""Seconds that count as a hang where none is wanted."""
LONG = 2.6
"""Longer than that, and long enough for the watchdog to look twice."""
TOTAL = 4


class Data(Dataset):
    """Zeros; what is fetched can be made to wait."""

    def __init__(self, fetch: Callable[[int], object] = lambda i: None) -> None:
        self.fetch = fetch

    def __len__(self) -> int:
        return TOTAL

    def __getitem__(self, index: int) -> torch.Tensor:
        self.fetch(index)
        return torch.zeros(2)


def train(
    folder: Path,
    at: Callable[[int, Checkpointer], object] = lambda step, ckpt: None,
    *,
    fetch: Callable[[int], object] = lambda i: None,
    workers: int = 0,
    after: Callable[[Checkpointer], object] = lambda ckpt: None,
    **settings,
) -> list[float]:
    """Four steps; ``at`` is called in each of them, ``after`` behind each loop."""
    torch.manual_seed(1)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"saver": "process", "watchdog": watchdog(hung=SHORT), "save": every(steps=1)} | settings
    loader = DataLoader(Data(fetch), batch_size=1, num_workers=workers)
    with Checkpointer(folder, run="r", state={"model": model, "optimizer": optimizer}, **settings) as ckpt:
        for total in (TOTAL // 2, TOTAL):
            for step, batch in ckpt.batches(loader, total_steps=total):
                at(step, ckpt)
                model(batch).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            after(ckpt)
        assert ckpt.step == TOTAL
    return [float(one) for one in model.state_dict()["bias"]]


def said(folder: Path, *kinds: str) -> list:
    """What the journal has of these kinds."""
    with contextlib.suppress(HoldfastError):
        store = holdfast.open(folder)
        return [one.event for one in read_journal(store, store.run(1).number).by_time() if one.event.kind in kinds]
    return []


WATCHED = ("hung", "recovered", "ended", "spared")


def silence(folder: Path) -> list:
    """What it says of the silence in step 3 and of its end: a busy machine may have made others."""
    events = said(folder, *WATCHED)
    begin = next(number for number, one in enumerate(events) if one.kind == "hung" and one.data["step"] == 3)
    return events[begin : begin + 2]


def at_step(step: int, do: Callable[[], object]) -> Callable[[int, Checkpointer], None]:
    def at(now: int, ckpt: Checkpointer) -> None:
        if now == step:
            do()

    return at


def hanging_in_python(folder: Path) -> None:
    end = time.monotonic() + 60
    while not said(folder, "hung"):
        assert time.monotonic() < end, "the hang is not found"
        time.sleep(0.02)


def hanging_in_c() -> None:
    """In one call, which keeps the interpreter's lock, after some that were too short."""
    longest, letters = 0.0, 20
    while longest < 3 * SHORT:
        began, letters = time.monotonic(), letters + 1
        re.match(r"(a+)+$", "a" * letters + "b")
        longest = time.monotonic() - began


def test_a_hang_in_python_is_found_with_its_place_and_the_training_goes_on(tmp_path: Path) -> None:
    """Users-ask 32: jobs stood still for days with no error."""
    train(tmp_path, at_step(3, lambda: hanging_in_python(tmp_path)))
    hung, recovered = silence(tmp_path)
    assert (hung.kind, recovered.kind) == ("hung", "recovered")
    assert (hung.data["step"], hung.data["rank"]) == (3, 0)
    assert "hanging_in_python" in hung.data["stacks"]
    assert "rank 0 has made no step after step 3" in hung.message
    assert __file__ in hung.message
    assert holdfast.open(tmp_path).run(1).records()[-1].step == TOTAL


def test_a_hang_in_c_that_lets_no_python_run_is_found_with_its_place(tmp_path: Path) -> None:
    """Users-ask 32: whoever looks is another process."""
    train(tmp_path, at_step(3, hanging_in_c))
    hung, recovered = silence(tmp_path)
    assert "in hanging_in_c" in hung.message
    assert recovered.kind == "recovered"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fetch_that_does_not_come_back_is_found_with_its_place(tmp_path: Path, workers: int) -> None:
    def fetch(index: int) -> None:
        if index == 3:
            hanging_in_python(tmp_path)

    train(tmp_path, fetch=fetch, workers=workers)
    hung, recovered = silence(tmp_path)
    assert "dataloader.py" in hung.data["stacks"]
    assert f'{__file__}", line' in hung.message, "where the program waits"
    assert ("in fetch" in hung.data["stacks"]) is (workers == 0)
    assert recovered.kind == "recovered"


def test_whoever_asks_for_it_is_ended_and_the_next_launch_goes_on(tmp_path: Path) -> None:
    """Users-ask 32: the stacks, then an end, then a start from the newest checkpoint."""
    store, family, dog = tmp_path / "s", Family(), watchdog(hung=SHORT, then="end", end_after=2 * SHORT)

    def forever() -> None:
        torch.set_num_threads(1)

        def at(step: int, ckpt: Checkpointer) -> None:
            if step == 3:
                threading.Event().wait()

        train(store, at, watchdog=dog)

    pid = forked(family.of(heard(forever, tmp_path / "log")))
    assert ended(pid) == KILLED
    family.await_savers_end()
    assert [event.kind for event in silence(store)] == ["hung", "ended"]
    steps = []
    train(store, lambda step, ckpt: steps.append(step), watchdog="off")
    assert steps == [3]


def test_what_says_that_it_lives_or_is_no_step_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause, signs of life, a save that takes long, an evaluation between two loops."""
    save = boundary_saves.BoundarySaves.save

    def slowly(self, kind, reason):
        time.sleep(LONG if self._progress.step == 2 else 0)
        return save(self, kind, reason)

    monkeypatch.setattr(boundary_saves.BoundarySaves, "save", slowly)

    def at(step: int, ckpt: Checkpointer) -> None:
        if step == 0:
            with ckpt.pause_watchdog():
                time.sleep(LONG)
        if step in (1, 3):
            end = time.monotonic() + LONG
            while time.monotonic() < end:
                time.sleep(SHORT / 30)
                ckpt.should_stop() if step == 1 else ckpt.log(evaluated=1.0)

    train(tmp_path, at, after=lambda ckpt: time.sleep(LONG), watchdog=watchdog(hung=SPARING))
    assert said(tmp_path, *WATCHED) == []


def test_a_wait_for_the_last_save_at_the_end_of_a_loop_is_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop, the loop waits at its end for the save: whoever ended it then would lose it."""
    wait, asked = Checkpoints.await_until, []

    def slowly(self, left):
        asked.append(time.sleep(LONG))
        wait(self, left)

    monkeypatch.setattr(Checkpoints, "await_until", slowly)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path, run="r", state=state, saver="process", watchdog=watchdog(hung=SPARING)) as ckpt:
        for step in ckpt.steps(TOTAL):
            optimizer.step()
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    assert asked
    assert said(tmp_path, *WATCHED) == []


def saved_at_once(ckpt: Checkpointer) -> None:
    ckpt.save(wait="durable")


def measured_better(ckpt: Checkpointer) -> None:
    ckpt.log(loss=1.0)


@pytest.mark.parametrize("save", [saved_at_once, Checkpointer.save, measured_better])
def test_a_save_that_is_asked_for_in_a_body_is_no_hang_and_what_hangs_behind_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Checkpointer], object]
) -> None:
    """Storage is slow, or the saver has no room yet: whoever ended the training then would lose the save."""
    waited = []

    def slow(owner: type, name: str) -> None:
        quick = getattr(owner, name)

        def slowly(*args):
            waited.append(time.sleep(LONG))
            return quick(*args)

        monkeypatch.setattr(owner, name, slowly)

    def at(step: int, ckpt: Checkpointer) -> None:
        if step == 3:
            slow(*((Checkpoints, "await_durable") if save is saved_at_once else (boundary_saves.BoundarySaves, "save")))
            save(ckpt)
            assert len(waited) == 1
            hanging_in_python(tmp_path)

    train(tmp_path, at, save=best("loss"), watchdog=watchdog(hung=SPARING))
    hung, recovered = silence(tmp_path)
    assert "hanging_in_python" in hung.data["stacks"]
    assert recovered.kind == "recovered"


def test_a_training_that_was_frozen_together_with_its_saver_goes_on(tmp_path: Path) -> None:
    """A container that is paused: its clock runs on, and its saver has not seen that anything stood still."""
    store, frozen, family, patience = tmp_path / "s", tmp_path / "saver", Family(), 4.0

    def busy() -> None:
        torch.set_num_threads(1)

        def at(step: int, ckpt: Checkpointer) -> None:
            if step == 3:
                (tmp_path / "new").write_text(str(ckpt._training._checkpoints._saves.process.pid))
                (tmp_path / "new").rename(frozen)
                for _ in range(30):  # one sleep would be over when it goes on
                    time.sleep(0.05)

        train(store, at, watchdog=watchdog(hung=patience, then="end", end_after=patience))

    pid = forked(family.of(heard(busy, tmp_path / "log")))
    awaited(frozen.exists, "the step in which it is frozen")
    both = pid, int(frozen.read_text())
    for one in both:
        os.kill(one, signal.SIGSTOP)
    time.sleep(patience + 0.5)
    for one in both:
        os.kill(one, signal.SIGCONT)
    assert ended(pid) == 0
    family.await_savers_end()
    assert said(store, *WATCHED) == []


@pytest.mark.parametrize("dog", ["off", None])
def test_nothing_is_said_of_a_training_that_is_not_watched_or_by_default(tmp_path: Path, dog: str | None) -> None:
    train(tmp_path, at_step(3, lambda: time.sleep(LONG)), watchdog=dog)
    assert said(tmp_path, *WATCHED) == []


def test_workers_that_are_forked_do_not_disturb_it(tmp_path: Path) -> None:
    train(tmp_path, at_step(3, lambda: hanging_in_python(tmp_path)), workers=2)
    assert [event.kind for event in silence(tmp_path)] == ["hung", "recovered"]


def test_a_saver_that_takes_the_place_of_a_killed_one_goes_on_watching(tmp_path: Path) -> None:
    savers = []

    def at(step: int, ckpt: Checkpointer) -> None:
        process = ckpt._training._checkpoints._saves.process
        savers.append(process.pid)
        if step == 0:
            os.kill(process.pid, signal.SIGKILL)
        if step == 3:
            hanging_in_python(tmp_path)

    train(tmp_path, at)
    assert len(set(savers)) == 2
    assert [event.kind for event in silence(tmp_path)] == ["hung", "recovered"]


def test_a_watchdog_that_was_asked_for_and_cannot_be_had_is_said_once(tmp_path: Path, caplog) -> None:
    train(tmp_path / "asked", saver="inline")
    assert [one.message for one in caplog.records if "watchdog" in one.message] == [
        "the watchdog does not work: saves are made in the training loop, and not by a process of their own, "
        "so nobody is there to watch this process"
    ]
    caplog.clear()
    train(tmp_path / "not-asked", saver="inline", watchdog=None)
    assert not [one for one in caplog.records if "watchdog" in one.message]


def test_two_trainings_in_one_process_are_both_watched_and_end_without_harm(tmp_path: Path) -> None:
    """The signal of one that is over must not be what ends the process: the saver of the other one sends it."""
    with contextlib.ExitStack() as stack:
        both = []
        for name in ("a", "b"):
            model = torch.nn.Linear(2, 1)
            settings = {"saver": "process", "watchdog": watchdog(hung=SHORT), "accumulate": 1}
            both.append(stack.enter_context(Checkpointer(tmp_path / name, run="r", state={"m": model}, **settings)))
        first, second = (ckpt.steps(2) for ckpt in both)
        next(first), next(second)
        numbers = [ckpt._training.beating.signal for ckpt in both]
        assert len(set(numbers)) == 2
        for name in ("a", "b"):
            hanging_in_python(tmp_path / name)
        list(first)
        both[0].close()
        os.kill(os.getpid(), numbers[0])  # as if it had been on its way
        time.sleep(0.01)
        list(second)


def test_a_signal_that_asks_to_stop_is_not_the_one_that_writes_the_stacks(tmp_path: Path) -> None:
    """Whichever handler comes last would have both: a silence would stop the training, and leave no stacks."""
    numbers = ("SIGTERM", *range(signal.SIGRTMIN + 8, signal.SIGRTMIN + 12))
    train(tmp_path, at_step(3, lambda: hanging_in_python(tmp_path)), signals=numbers)
    hung, _ = silence(tmp_path)
    assert "hanging_in_python" in hung.data["stacks"]
    assert said(tmp_path, "preempted") == []


def test_a_watchdog_is_an_object_or_off(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="watchdog="):
        Checkpointer(tmp_path, run="r", state={"m": torch.nn.Linear(1, 1)}, watchdog="on")
