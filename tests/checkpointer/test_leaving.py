"""However a loop is left, the checkpoint that follows is of one instant, and no error of it is lost."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from preempted_kit import ended_within, settled
from staged_kit import saver_of
from tiny_training import Stop, digest_of, records_of, steps_of, tiny
from torch.utils.data import DataLoader, IterableDataset
from toy_training import ended, forked

import holdfast
from holdfast import Checkpointer, best, every, latest
from holdfast.catalog.journal.events import Ending
from holdfast.catalog.journal.journal import read_journal
from holdfast.errors import (
    Fenced,
    InvalidInput,
    NameTaken,
    StorageFull,
    StorageUnavailable,
    UnknownReference,
    UnsupportedValue,
)
from holdfast.health import nonfinite, rollback, when
from holdfast.ids import RunNumber
from holdfast.records import Kind
from holdfast.recovery.caring import care
from holdfast.recovery.handover import beating
from holdfast.recovery.handover.background import BackgroundSaves
from holdfast.recovery.stopping import decisions
from holdfast.saver.handle import SaverProcess

RARELY = every(steps=1000)


class Noisy(torch.utils.data.Dataset):
    """Samples with noise from the global generator, drawn in the training process."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((16,), index / 40) + 0.1 * torch.randn(16)


class Endless(IterableDataset):
    """Eight samples, and no length."""

    def __iter__(self):
        return iter(torch.arange(8 * 16.0).view(8, 16).sin())


def step_of(model, optimizer, batch) -> None:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def objects() -> dict[str, object]:
    model, optimizer = tiny()
    return {"model": model, "optimizer": optimizer}


@pytest.mark.parametrize("place", ["log", "save", "break"])
def test_noise_that_the_loader_draws_is_repeated_by_a_save_at_the_top_of_the_body(tmp_path: Path, place: str) -> None:
    """The batch at hand was drawn after the boundary: random state and position are both from before it."""

    def run(store: Path, until: int) -> str:
        parts = objects()
        loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
        save = best("val") if place == "log" else RARELY
        with Checkpointer(store, run="r", state=parts, save=save, keep=latest(9)) as ckpt:
            for step, batch in ckpt.batches(loader, total_steps=12):
                if step == 3 and store.name == "killed" and ckpt.last is None:
                    if place == "break":
                        break
                    ckpt.log(val=1.0) if place == "log" else ckpt.save()
                step_of(*parts.values(), batch)
                if step == until:
                    raise Stop
            if place == "break" and ckpt.step == 3:
                ckpt.save()
        return digest_of(*parts.values())

    torch.manual_seed(0)
    undisturbed = run(tmp_path / "whole", 99)
    torch.manual_seed(0)
    if place == "break":
        run(tmp_path / "killed", 99)
    else:
        with pytest.raises(Stop):
            run(tmp_path / "killed", 5)
    (record,) = records_of(tmp_path / "killed")
    assert record.step == 3
    assert record.exactness["data"].exact
    torch.manual_seed(1)
    assert run(tmp_path / "killed", 99) == undisturbed


def test_an_exception_between_optimizer_and_scheduler_leaves_no_torn_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I2: a save was asked for in this very body; the generator closes before anybody knows of the exception."""
    parts = objects()
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        for step, batch in ckpt.batches([torch.ones(2, 16)] * 9, total_steps=9):
            step_of(*parts.values(), batch)
            if step == 4:
                ckpt.save(reason="mine")
                raise Stop
    assert records_of(tmp_path / "s") == []
    assert "a save that was asked for (mine) was not made" in caplog.text


def test_a_save_before_break_that_fails_raises_where_somebody_sees_it(tmp_path: Path) -> None:
    """I7: not in the finaliser of a generator, where Python prints it and goes on."""
    parts = objects()
    with pytest.raises(UnsupportedValue), Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        for step, batch in ckpt.batches([torch.ones(2, 16)] * 9, total_steps=9):
            step_of(*parts.values(), batch)
            if step == 4:
                ckpt.values["bad"] = object()
                ckpt.save()
                break


@pytest.mark.parametrize("steps", [3, 9])
def test_a_loop_behind_a_progress_bar_loses_nothing_at_break(tmp_path: Path, steps: int) -> None:
    """A bar keeps the generator alive, so nothing closes it before the block does."""
    parts = objects()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        bar = (item for item in ckpt.batches([torch.ones(2, 16)] * 9, total_steps=9))
        for step, batch in bar:
            step_of(*parts.values(), batch)
            if step + 1 == steps:
                break
        if steps == 3:
            assert ckpt.save(tag="early") is None
    (record,) = records_of(tmp_path / "s")
    assert (record.step, record.kind) == (steps, Kind.MANUAL if steps == 3 else Kind.FINAL)


def test_a_signal_at_the_turn_of_an_epoch_is_served_with_a_checkpoint(tmp_path: Path) -> None:
    """It comes after the last body of an epoch and before the next one: while loader workers end, say."""

    class Signalled:
        def __iter__(self):
            yield from [torch.ones(2, 16)] * 3
            os.kill(os.getpid(), signal.SIGTERM)

        def __len__(self) -> int:
            return 3

    parts = objects()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        for _, batch in ckpt.batches(Signalled(), total_steps=99):
            step_of(*parts.values(), batch)
    (record,) = records_of(tmp_path / "s")
    assert (record.step, record.kind) == (3, Kind.PREEMPTED)


def test_a_stop_does_not_wait_for_a_step_that_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "STOP_SECONDS", 0.0)
    seen = 0
    with Checkpointer(tmp_path / "s", run="r", state=objects(), save=RARELY) as ckpt:
        for _ in ckpt.batches([1, 2, 3], total_steps=99):
            seen += 1
            if seen == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            assert seen < 20
    (record,) = records_of(tmp_path / "s")
    assert (record.kind, record.exactness["gradients"].exact) == (Kind.PREEMPTED, False)


@pytest.mark.parametrize("accumulate", [1, None])
def test_a_break_before_the_step_counts_no_step_that_was_not_made(tmp_path: Path, accumulate: int | None) -> None:
    """Where nobody can tell, the batch is not counted and the record does not claim to be exact."""

    class Foreign:
        def __init__(self, model: torch.nn.Module) -> None:
            self.model, self.made = model, 0

        def step(self) -> None:
            self.made += 1

        def state_dict(self) -> dict[str, int]:
            return {"made": self.made}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.made = state["made"]

    model, _ = tiny()
    optimizer = Foreign(model)
    with Checkpointer(
        tmp_path / "s", run="r", state={"m": model, "o": optimizer}, save=RARELY, accumulate=accumulate
    ) as ckpt:
        for step, _ in ckpt.batches([1] * 9, total_steps=9):
            if step == 5:
                break
            optimizer.step()
        record = ckpt.save()
    assert record is not None
    assert record.step == optimizer.made == 5
    assert not record.exactness["data"].exact


def test_gradients_of_a_state_that_was_left_do_not_come_back(tmp_path: Path) -> None:
    """NaN gradients at the `break` would be added to those of every retry."""
    parts = objects()
    model, optimizer = parts.values()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=every(steps=2)) as ckpt:
        for attempt in range(2):
            for step, batch in ckpt.batches([torch.ones(2, 16)] * 9, total_steps=6):
                loss = model(batch).square().mean()
                if step == 3 and attempt == 0:
                    (loss * float("nan")).backward()
                    break
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            else:
                continue
            ckpt.restore()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert steps_of(tmp_path / "s")[-1] == 6


@pytest.mark.parametrize("known", [True, False])
def test_epochs_are_counted_alike_with_and_without_a_length(tmp_path: Path, known: bool) -> None:
    loader = list(torch.arange(8 * 16.0).view(2, 4, 16)) if known else DataLoader(Endless(), batch_size=4)
    parts = objects()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=every(epochs=2), keep=latest(9)) as ckpt:
        for _, batch in ckpt.batches(loader, epochs=6):
            step_of(*parts.values(), batch)
    assert [(one.step, one.epoch) for one in records_of(tmp_path / "s")] == [(4, 1), (8, 3), (12, 5)]


def test_a_seed_that_is_set_after_the_first_call_of_a_fresh_run_holds(tmp_path: Path) -> None:
    """`restore()` finds nothing, and then the script seeds: the loop must not take that back."""

    def drawn(store: Path, *, early: bool) -> float:
        with Checkpointer(store, run="r", state=objects(), save=RARELY) as ckpt:
            if early:
                ckpt.restore()
            torch.manual_seed(5)
            for _ in ckpt.steps(1):
                return float(torch.rand(()))
        raise AssertionError

    assert drawn(tmp_path / "a", early=True) == drawn(tmp_path / "b", early=False)


def test_a_loader_that_does_not_fit_is_refused_again_at_the_second_try(tmp_path: Path) -> None:
    """The first refusal must not pass for a position that was found."""
    data = torch.arange(40 * 16.0).view(40, 16).sin()

    def loop(batch_size: int, ckpt: Checkpointer, until: int) -> None:
        for step, batch in ckpt.batches(DataLoader(data, batch_size=batch_size), total_steps=9):
            step_of(*parts.values(), batch)
            if step == until:
                raise Stop

    parts = objects()
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", run="r", state=parts, save=every(steps=2)) as ckpt:
        loop(4, ckpt, 4)
    parts = objects()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=every(steps=2)) as ckpt:
        for _ in range(2):
            with pytest.raises(holdfast.errors.StateMismatch):
                loop(8, ckpt, 99)
        loop(4, ckpt, 99)
        assert ckpt.step == 9


@pytest.mark.parametrize(
    "bad", [torch.ones(3), "x", None, [1.0], {"a": 1}], ids=["tensor", "text", "none", "list", "dict"]
)
def test_a_metric_that_is_not_a_number_is_refused_where_it_is_logged(tmp_path: Path, bad: object) -> None:
    with Checkpointer(tmp_path / "s", run="r", state=objects(), save=RARELY) as ckpt:
        for _ in ckpt.steps(1):
            with pytest.raises(InvalidInput, match=r"log\(x=\) wants one number"):
                ckpt.log(x=bad)
            break


def test_after_ctrl_c_another_loop_runs_for_whoever_sits_at_a_prompt(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    parts = objects()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        for step in ckpt.steps(9):
            step_of(*parts.values(), torch.ones(1, 16))
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
        assert ckpt.step == 3
        for _ in ckpt.steps(9):
            step_of(*parts.values(), torch.ones(1, 16))
        assert ckpt.step == 9


def test_an_epoch_begins_anew_with_another_loader_where_that_is_asked_for(tmp_path: Path) -> None:
    data = torch.arange(40 * 16.0).view(40, 16).sin()
    parts = objects()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        for step, batch in ckpt.batches(DataLoader(data, batch_size=4), total_steps=99):
            step_of(*parts.values(), batch)
            if step == 2:
                break
        ckpt.save()
    parts = objects()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        with pytest.raises(InvalidInput, match="there is raise, restart-epoch"):
            next(ckpt.batches([1], total_steps=9, on_mismatch="ignore"))
        loader = DataLoader(data, batch_size=8)
        seen = [batch for _, batch in _stepping(ckpt.batches(loader, epochs=1, on_mismatch="restart-epoch"), parts)]
    assert ckpt.step == 3 + 5
    assert torch.equal(torch.cat(seen), data)


def test_a_finished_epoch_does_not_begin_anew_with_another_loader(tmp_path: Path) -> None:
    data = torch.arange(40 * 16.0).view(40, 16).sin()
    seen = []
    for batch_size, epochs in ((4, 1), (8, 2)):
        parts = objects()
        with Checkpointer(tmp_path / "s", run="r", state=parts, save=every(epochs=1)) as ckpt:
            loader = DataLoader(data, batch_size=batch_size)
            batches = ckpt.batches(loader, epochs=epochs, on_mismatch="restart-epoch")
            seen.append([step for step, _ in _stepping(batches, parts)])
    assert seen == [list(range(10)), list(range(10, 15))]
    assert ckpt.last is not None
    assert (ckpt.last.step, ckpt.last.epoch) == (15, 1)


def _stepping(batches, parts):
    for step, batch in batches:
        step_of(*parts.values(), batch)
        yield step, batch


def test_an_optimizer_that_sums_up_while_another_steps_is_not_claimed_exact(tmp_path: Path) -> None:
    """A boundary of one is the middle of a step of the other, whose gradients no checkpoint holds."""
    one, two = torch.nn.Linear(16, 1), torch.nn.Linear(16, 1)
    often, seldom = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (one, two))
    state = {"one": one, "two": two, "often": often, "seldom": seldom}
    with Checkpointer(tmp_path / "s", run="r", state=state, save=every(steps=1), keep=latest(9)) as ckpt:
        for step in ckpt.steps(4):
            (one(torch.ones(1, 16)) + two(torch.ones(1, 16))).sum().backward()
            often.step()
            often.zero_grad()
            if step % 4 == 3:
                seldom.step()
                seldom.zero_grad()
    assert ["gradients" in record.exactness for record in records_of(tmp_path / "s")] == [True, True, True, False]


FORGOTTEN = """
import logging, sys
import torch
from holdfast import Checkpointer, every
from tiny_training import one_step, tiny
logging.basicConfig()
model, optimizer = tiny()
ckpt = Checkpointer(sys.argv[1], state={"model": model, "optimizer": optimizer}, save=every(steps=4), saver="inline")
for _ in ckpt.steps(6):
    one_step(model, optimizer)
if sys.argv[2] == "close":
    ckpt.close()
elif sys.argv[2] == "drop":
    del ckpt
    print("dropped")
"""


@pytest.mark.parametrize(("then", "steps"), [("close", [4, 6]), ("end", [4]), ("drop", [4])])
def test_whoever_forgets_to_close_is_told(tmp_path: Path, then: str, steps: list[int]) -> None:
    """Exit code 0, and the last steps are lost."""
    command = [sys.executable, "-c", FORGOTTEN, str(tmp_path / "s"), then]
    told = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=300, check=True)
    assert ("the Checkpointer of run-001 was never closed" in done.stderr) == (then != "close")
    assert [one.step for one in holdfast.open(tmp_path / "s").run(1).records()] == steps


class Failing:
    """A part of the state that cannot be told once the training is over."""

    error: BaseException | None = None

    def state_dict(self) -> dict[str, int]:
        if self.error is not None:
            raise self.error
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "how", "why"),
    [
        (StorageFull("No space left on device"), Ending.FAILED, "StorageFull: No space left on device"),
        (KeyboardInterrupt(), Ending.LEFT, ""),
    ],
    ids=["failed", "ctrl-c"],
)
def test_a_last_save_that_fails_is_a_failure_in_the_journal_and_ctrl_c_is_none(
    tmp_path: Path, error: BaseException, how: Ending, why: str
) -> None:
    parts, failing = objects(), Failing()
    ckpt = Checkpointer(tmp_path / "s", run="r", state={**parts, "failing": failing}, save=RARELY, saver="inline")
    with pytest.raises(type(error)), ckpt:
        for _, batch in ckpt.batches([torch.ones(2, 16)] * 3, total_steps=3):
            step_of(*parts.values(), batch)
        failing.error = error
    journal = read_journal(holdfast.open(tmp_path / "s"), RunNumber(1))
    (exit_,) = (entry.event.data for entry in journal.entries if entry.event.kind == "exit")
    assert (exit_["how"], exit_["error"]) == (how, why)


def exits(store: Path) -> list[tuple[str, str]]:
    """What the launches have said about their ends."""
    journal = read_journal(holdfast.open(store), RunNumber(1))
    return [(one.event.data["how"], one.event.data["error"]) for one in journal.entries if one.event.kind == "exit"]


@pytest.mark.parametrize("let_go", ["closed", "superseded"])
def test_an_error_behind_the_end_is_the_programs_and_closes_nothing_of_it(tmp_path: Path, let_go: str) -> None:
    """The saver's descriptors were closed a second time: what the program has opened since has their numbers."""
    opened, options = [], {"run": "r", "save": RARELY, "saver": "process"}
    with pytest.raises(ZeroDivisionError), Checkpointer(tmp_path / "s", state=objects(), **options) as ckpt:
        ckpt.save(wait="durable")
        if let_go == "closed":
            ckpt.close()
        else:
            with Checkpointer(tmp_path / "s", state=objects(), **options) as second:
                second.restore()
        opened += [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
        _ = 1 / 0
    for descriptor in opened:
        os.close(descriptor)  # an OSError if somebody else has done it
    assert [how for how, _ in exits(tmp_path / "s")] == [Ending.LEFT] * (1 if let_go == "closed" else 2)


def test_an_error_of_close_inside_the_block_is_told_once(tmp_path: Path) -> None:
    failing = Failing()
    state = {**objects(), "failing": failing}
    with pytest.raises(StorageFull), Checkpointer(tmp_path / "s", run="r", state=state, save=RARELY) as ckpt:
        for _ in ckpt.steps(1):
            step_of(state["model"], state["optimizer"], torch.ones(1, 16))
        failing.error = StorageFull("No space left on device")
        ckpt.close()
    assert exits(tmp_path / "s") == [(Ending.FAILED, "StorageFull: No space left on device")]


def test_a_first_restore_that_found_nothing_leaves_nothing_that_is_to_be_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = objects()
    with Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        with pytest.raises(UnknownReference):
            ckpt.restore("pretrained", only=["model"])
        for _ in ckpt.steps(2):
            step_of(*parts.values(), torch.ones(1, 16))
    assert steps_of(tmp_path / "s") == [2]
    del ckpt
    gc.collect()
    assert "never closed" not in caplog.text


def test_a_training_that_could_not_be_made_leaves_nothing_of_a_saver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its memory nor the signal of its watchdog: whoever tries again for hours would run out of both."""

    def refused(*_: object) -> None:
        raise StorageUnavailable("EIO")

    def held() -> tuple[list[str], set[int]]:
        links = (os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink())
        return sorted(link for link in links if "memfd:holdfast" in link or "pipe:" in link), set(beating._used)

    gc.collect()  # what other trainings have left goes now, and not in between
    settings = {"saver": "process", "health": [when(nonfinite("loss"), rollback())]}
    before, ckpt = held(), Checkpointer(tmp_path / "s", run="r", state=objects(), save=RARELY, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(care, "read_history", refused)
        for _ in range(3):
            with pytest.raises(StorageUnavailable):
                next(ckpt.steps(2))
        gc.collect()
        assert held() == before
    assert next(ckpt.steps(2)) == 0
    ckpt.close()


def _hook(error: BaseException) -> Callable[[object], None]:
    def hook(facts: object) -> None:
        raise error

    return hook


@pytest.mark.parametrize(
    ("options", "tag", "error", "how"),
    [
        ({}, "taken", NameTaken, (Ending.FAILED, "NameTaken: there is a tag taken already; tags do not move")),
        ({"on_preempt": _hook(ValueError("hook"))}, None, ValueError, (Ending.FAILED, "ValueError: hook")),
        ({"on_preempt": _hook(SystemExit(75))}, None, SystemExit, (Ending.PREEMPTED, "")),
    ],
    ids=["a tag that is taken", "a hook that fails", "a hook that ends the program"],
)
def test_what_is_raised_behind_a_break_is_how_the_launch_has_ended(
    tmp_path: Path, options: dict[str, object], tag: str | None, error: type[BaseException], how: tuple[str, str]
) -> None:
    """It passed for a training that was merely left, and a restart for one that may go on as if nothing were."""
    parts = objects()
    ckpt = Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY, **options)
    with pytest.raises(error), ckpt:
        ckpt.save(tag="taken")
        for _ in ckpt.steps(9):
            step_of(*parts.values(), torch.ones(1, 16))
            if tag is not None:
                ckpt.save(tag=tag)
            else:
                os.kill(os.getpid(), signal.SIGTERM)
            break
    assert exits(tmp_path / "s") == [how]


def test_whoever_is_fenced_behind_a_break_says_so(tmp_path: Path) -> None:
    """Else its restart takes the run back from whoever has it now."""
    parts = objects()
    with pytest.raises(Fenced), Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY) as ckpt:
        for _ in ckpt.steps(9):
            step_of(*parts.values(), torch.ones(1, 16))
            assert ended(forked(lambda: Checkpointer(tmp_path / "s", run="r", state=objects()).restore())) == 0
            os.kill(os.getpid(), signal.SIGTERM)
            break
    (exit_,) = exits(tmp_path / "s")
    assert exit_[0] == Ending.FAILED
    assert exit_[1].startswith("Fenced:")


def _pressing(kind: type, name: str) -> None:
    """In this process, who comes to a method presses Ctrl-C there, once."""
    method, left = getattr(kind, name), [1]

    def pressed(*args: object) -> object:
        if left.pop() if left else 0:
            os.kill(os.getpid(), signal.SIGINT)
        return method(*args)

    setattr(kind, name, pressed)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_while_the_end_waits_for_the_saver_ends_it_there_and_is_in_the_journal(
    tmp_path: Path, presses: int
) -> None:
    """The saver is stuck: a second press comes while it is let go."""

    def work() -> None:
        settled()
        parts = objects()
        ckpt = Checkpointer(tmp_path / "s", run="r", state=parts, save=RARELY, saver="process")
        with pytest.raises(KeyboardInterrupt), ckpt:
            for _ in ckpt.steps(2):
                step_of(*parts.values(), torch.ones(1, 16))
                ckpt.save(wait="durable")
            saver = saver_of(os.getpid())
            (tmp_path / "saver").write_text(str(saver.pid))
            saver.suspend()
            _pressing(BackgroundSaves, "drain")
            if presses == 2:
                _pressing(SaverProcess, "_ended")

    try:
        assert ended_within(forked(work), 30.0) == 0
        assert exits(tmp_path / "s") == [(Ending.LEFT, "")]
    finally:
        os.kill(int((tmp_path / "saver").read_text()), signal.SIGKILL)
