"""I2: whatever a body or the program behind a loop changes, no checkpoint is a mixture of two instants."""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import Stop, digest_of, records_of, tiny
from torch import nn
from torch.utils.data import DataLoader, Dataset

from holdfast import Checkpointer, best, every
from holdfast.records import Kind

RARELY = every(steps=1000)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def opened(store: Path, parts: dict, **options) -> Checkpointer:
    return Checkpointer(store, run="r", state=parts, **{"save": RARELY, "saver": "inline"} | options)


def objects() -> dict:
    model, optimizer = tiny()
    return {"model": model, "optimizer": optimizer}


@torch.no_grad()
def zeroed(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(0.0)


def zeroed_behind_the_back(model: nn.Module) -> None:
    """As averages are often put in place: nothing counts such writes."""
    for parameter in model.parameters():
        parameter.data.mul_(0.0)


CHANGES = pytest.mark.parametrize("change", [zeroed, zeroed_behind_the_back, nn.Module.half])


# --- behind the loop


@CHANGES
@pytest.mark.parametrize("bar", [False, True], ids=["plain", "progress bar"])
def test_an_error_behind_a_break_saves_nothing(tmp_path: Path, caplog, change, bar: bool) -> None:
    """The body was entered, and has changed nothing; a bar that has a name keeps the loop from being closed."""
    parts = objects()
    with pytest.raises(KeyError), opened(tmp_path / "s", parts) as ckpt:
        steps = (step for step in ckpt.steps(9)) if bar else ckpt.steps(9)
        for step in steps:
            if step == 5:
                break
            step_of(*parts.values(), torch.ones(2, 16))
        change(parts["model"])
        raise KeyError("no such dataset")
    assert records_of(tmp_path / "s") == []
    assert "outside of the loop" in caplog.text


def evaluated_in_a_function(ckpt: Checkpointer, parts: dict) -> None:
    for step in ckpt.steps(9):
        if step == 5:
            return
        step_of(*parts.values(), torch.ones(2, 16))


def test_an_error_behind_a_function_with_the_loop_saves_nothing(tmp_path: Path) -> None:
    parts = objects()
    with pytest.raises(Stop), opened(tmp_path / "s", parts) as ckpt:
        evaluated_in_a_function(ckpt, parts)
        zeroed_behind_the_back(parts["model"])
        raise Stop
    assert records_of(tmp_path / "s") == []


def test_an_error_of_the_loop_that_is_raised_again_after_a_change_saves_nothing(tmp_path: Path) -> None:
    class Rotten(list):
        def __getitem__(self, index):
            if index == 5:
                raise OSError("cannot read")
            return super().__getitem__(index)

        def __iter__(self):
            return (self[index] for index in range(len(self)))

    parts = objects()
    with pytest.raises(OSError, match="cannot read"), opened(tmp_path / "s", parts) as ckpt:
        try:
            for _, batch in ckpt.batches(Rotten([torch.ones(2, 16)] * 9), total_steps=9):
                step_of(*parts.values(), batch)
        except OSError:
            zeroed(parts["model"])
            raise
    assert records_of(tmp_path / "s") == []


def raised_again() -> None:
    try:
        raise Stop
    except Stop as error:
        raise ValueError("in this step") from error


@pytest.mark.parametrize("how", ["with", "new", "again", "function", "bar", "generator"])
def test_an_error_of_the_body_is_known_as_one(tmp_path: Path, how: str) -> None:
    """However it comes out of it: each of them leaves the checkpoint that belongs to it."""
    parts = objects()

    def body(step: int) -> None:
        if step != 5:
            step_of(*parts.values(), torch.ones(2, 16))
            return
        if how == "with":
            with torch.no_grad():
                raise Stop
        raise Stop

    def looped(ckpt: Checkpointer) -> None:
        for step in ckpt.steps(9):
            body(step)

    def generated(ckpt: Checkpointer):
        yield from ckpt.steps(9)

    def run(ckpt: Checkpointer) -> None:
        if how == "function":
            looped(ckpt)
        bar = generated(ckpt)
        for step in bar if how in ("bar", "generator") else ckpt.steps(9):
            if how == "generator":
                bar = None
            try:
                body(step)
            except Stop as error:
                if how == "new":
                    raise ValueError("in this step") from error
                raise

    with pytest.raises((Stop, ValueError)), opened(tmp_path / "s", parts) as ckpt:
        run(ckpt)
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.FAILED)]


def left_by_a_signal(ckpt, parts: dict, at: str) -> None:
    """The program leaves its loop itself, in step 5."""
    for step in ckpt.steps(9):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            if at == "before the step":
                break
        step_of(*parts.values(), torch.ones(2, 16))
        if ckpt.should_stop():
            break


@pytest.mark.parametrize("at", ["before the step", "after the step"])
@pytest.mark.parametrize("change", [zeroed, nn.Module.half])
def test_parameters_that_change_behind_the_loop_are_not_saved_as_a_preemption(
    tmp_path: Path, caplog, change, at: str
) -> None:
    parts = objects()
    with opened(tmp_path / "s", parts) as ckpt:
        left_by_a_signal(ckpt, parts, at)
        change(parts["model"])
    assert records_of(tmp_path / "s") == []
    assert ckpt.preempted is not None
    assert not ckpt.preempted.durable
    assert "parameters have changed since the loop was left" in caplog.text


@pytest.mark.parametrize(("at", "saved"), [("before the step", 5), ("after the step", 6)])
def test_a_break_because_of_a_signal_is_a_preemption_that_is_saved(tmp_path: Path, at: str, saved: int) -> None:
    parts = objects()
    with opened(tmp_path / "s", parts) as ckpt:
        left_by_a_signal(ckpt, parts, at)
        with torch.no_grad():
            parts["model"](torch.ones(2, 16))
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(saved, Kind.PREEMPTED)]


# --- in the body


class Buffer:
    """Of experience: what is in it when a body begins belongs to the boundary."""

    def __init__(self) -> None:
        self.seen: deque[float] = deque(maxlen=3)

    def state_dict(self) -> dict:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict) -> None:
        self.seen = deque(state["seen"], maxlen=3)


class Ring(Buffer):
    """Too large to be looked at, and always of one length."""

    def __init__(self) -> None:
        self.seen = deque(range(100_000), maxlen=100_000)


class Averaged(Buffer):
    """Keeps a module of its own, which nobody has registered."""

    def __init__(self, model: nn.Module) -> None:
        self.average = torch.optim.swa_utils.AveragedModel(model)

    def state_dict(self) -> dict:
        return dict(self.average.state_dict())

    def load_state_dict(self, state: dict) -> None:
        self.average.load_state_dict(state)


def scheduler(parts: dict) -> tuple[object, object]:
    one = torch.optim.lr_scheduler.LambdaLR(parts["optimizer"], lambda step: 1 / (1 + step))
    return one, one.step


def buffer(parts: dict) -> tuple[object, object]:
    one = Buffer()
    one.seen.extend((1.0, 2.0, 3.0))
    return one, lambda: one.seen.append(4.0)


def averages(parts: dict) -> tuple[object, object]:
    one = Averaged(parts["model"])
    return one, lambda: one.average.update_parameters(parts["model"])


def module(parts: dict) -> tuple[object, object]:
    one = torch.optim.swa_utils.AveragedModel(parts["model"])
    return one, lambda: one.update_parameters(parts["model"])


def tensor(parts: dict) -> tuple[object, object]:
    one = torch.zeros(3)
    return one, lambda: one.add_(1)


@pytest.mark.parametrize("kind", [scheduler, buffer, averages, module, tensor])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_what_the_body_has_changed_of_any_registered_object_is_not_saved(tmp_path: Path, caplog, kind) -> None:
    parts = objects()
    one, change = kind(parts)
    with pytest.raises(Stop), opened(tmp_path / "s", {**parts, "one": one}) as ckpt:
        for step in ckpt.steps(9):
            if step == 5:
                change()
                assert ckpt.save() is None, "it waits for the end of the step"
                raise Stop
            step_of(*parts.values(), torch.ones(2, 16))
    assert records_of(tmp_path / "s") == []
    assert "step 5 was not saved: " in caplog.text


@pytest.mark.parametrize("kind", [scheduler, buffer, averages, module, tensor])
def test_what_the_body_has_not_changed_is_saved(tmp_path: Path, kind) -> None:
    parts = objects()
    one, change = kind(parts)
    with pytest.raises(Stop), opened(tmp_path / "s", {**parts, "one": one}) as ckpt:
        for step in ckpt.steps(9):
            if step == 5:
                raise Stop
            step_of(*parts.values(), torch.ones(2, 16))
            change()
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.FAILED)]


def test_where_there_is_too_much_to_be_looked_at_a_failure_saves_nothing(tmp_path: Path, caplog) -> None:
    """But what the program asks for is made: it knows what its body has done."""
    parts, ring = objects(), Ring()
    with pytest.raises(Stop), opened(tmp_path / "s", {**parts, "ring": ring}, save=best("val")) as ckpt:
        for step in ckpt.steps(9):
            if step == 3:
                ckpt.log(val=1.0)
            if step == 4:
                ring.seen.append(1)
                assert ckpt.save() is None, "its ends are others"
            if step == 6:
                raise Stop
            step_of(*parts.values(), torch.ones(2, 16))
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(3, Kind.BEST), (5, Kind.MANUAL)]
    assert "nobody can tell whether 'ring' had changed" in caplog.text


class Odd(Buffer):
    """Its code runs when it is looked at, and fails."""

    def __getattribute__(self, name: str):
        if name == "__dict__":
            raise RuntimeError("not now")
        return super().__getattribute__(name)


def test_an_object_that_cannot_be_looked_at_disturbs_no_step(tmp_path: Path) -> None:
    parts = objects()
    with opened(tmp_path / "s", {**parts, "odd": Odd()}) as ckpt:
        for _ in ckpt.steps(3):
            step_of(*parts.values(), torch.ones(2, 16))
    assert ckpt.last.step == 3


# --- random states


GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(7),
    "numpy": lambda: np.random.default_rng(7),
}


def drawn(generator) -> torch.Tensor:
    if isinstance(generator, torch.Generator):
        return torch.randn(2, 16, generator=generator)
    return torch.as_tensor(generator.standard_normal((2, 16)), dtype=torch.float32)


@pytest.mark.parametrize("kind", list(GENERATORS))
@pytest.mark.parametrize("how", ["fail", "save"])
def test_what_a_body_has_drawn_from_a_registered_generator_is_drawn_again(tmp_path: Path, kind: str, how: str) -> None:
    """As from the global ones: the checkpoint has the states of the boundary, and the body that goes on its own."""

    def run(store: Path, *, disturbed: bool) -> str:
        parts, generator = objects(), GENERATORS[kind]()
        with opened(store, {**parts, "noise": generator}) as ckpt:
            for step in ckpt.steps(9):
                noise = drawn(generator)
                if disturbed and step == 5:
                    if how == "fail":
                        raise Stop
                    assert ckpt.save().step == 5
                step_of(*parts.values(), noise)
                if disturbed and step == 6:
                    raise SystemExit
        return digest_of(*parts.values())

    whole = run(tmp_path / "whole", disturbed=False)
    with pytest.raises((Stop, SystemExit)):
        run(tmp_path / "s", disturbed=True)
    assert [one.step for one in records_of(tmp_path / "s")] == [5]
    assert run(tmp_path / "s", disturbed=False) == whole


def seeded(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


class Flaky(Dataset):
    """Augments with noise of the global generator, and cannot read one of its samples for once."""

    def __init__(self, fails_at: int | None) -> None:
        self.reads, self.fails_at = 0, fails_at

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.randn(16)
        self.reads += 1
        if self.reads == self.fails_at:
            raise OSError("stale file handle")
        return noise + index / 16


def stateful(*arguments, **options):
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader(*arguments, **options)


@pytest.mark.parametrize("fails_at", [22, 18, 2], ids=["in an epoch", "at the turn of an epoch", "at the very first"])
@pytest.mark.filterwarnings("ignore:.*set_vital")
@pytest.mark.parametrize("loader", [DataLoader, stateful])
@pytest.mark.parametrize("own", [False, True], ids=["global", "own generator"])
def test_a_loader_that_fails_in_a_fetch_gives_the_same_again_after_a_resume(
    tmp_path: Path, caplog, fails_at: int, loader, own: bool
) -> None:
    def run(store: Path, fails_at: int | None) -> tuple[str, list[torch.Tensor]]:
        parts = objects()
        seeded(5)
        order = torch.Generator().manual_seed(9) if own else None
        batches = loader(Flaky(fails_at), batch_size=4, shuffle=True, generator=order)
        with opened(store, parts) as ckpt:
            seen = []
            for _, batch in ckpt.batches(batches, total_steps=12):
                seen.append(batch)
                step_of(*parts.values(), batch)
        return digest_of(*parts.values()), seen

    whole, batches = run(tmp_path / "whole", None)
    with pytest.raises(OSError, match="stale"):
        run(tmp_path / "s", fails_at)
    done = (fails_at - 1) // 4
    found = [(one.step, one.kind) for one in records_of(tmp_path / "s")]
    told = loader is DataLoader or fails_at != 22  # whoever keeps its own position has counted on before it has failed
    assert found == ([(done, Kind.FAILED)] if done and told else [])
    assert ("cannot say where it was before the fetch" in caplog.text) == (not told)
    done = done if told else 0
    again, rest = run(tmp_path / "s", None)
    assert all(torch.equal(a, b) for a, b in zip(rest, batches[done:], strict=True))
    assert again == whole


class Drawing:
    """Draws when it is asked for its state, and then fails, for once."""

    def __init__(self) -> None:
        self.fails = False

    def state_dict(self) -> dict:
        if self.fails:
            self.fails = False
            torch.rand(3)
            raise Stop
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def test_what_was_drawn_at_a_boundary_that_failed_is_no_part_of_its_random_state(tmp_path: Path) -> None:
    def run(store: Path, *, fails: bool) -> list[float]:
        parts, found = {**objects(), "drawing": (drawing := Drawing())}, []
        seeded(5)
        with opened(store, parts, save=every(steps=4)) as ckpt:
            for step in ckpt.steps(7):
                found.append(float(torch.rand(())))
                step_of(parts["model"], parts["optimizer"], torch.ones(2, 16))
                drawing.fails = fails and step == 3
        return found

    whole = run(tmp_path / "whole", fails=False)
    with pytest.raises(Stop):
        run(tmp_path / "s", fails=True)
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(4, Kind.FAILED)]
    assert run(tmp_path / "s", fails=False) == whole[4:]


def test_a_scaler_in_the_middle_of_a_step_has_the_state_of_the_boundary(tmp_path: Path) -> None:
    """It keeps in mind that it has unscaled gradients, which is no part of its state: clipping may well raise."""
    parts, scaler = objects(), torch.amp.GradScaler("cpu")
    model, optimizer = parts.values()
    with pytest.raises(Stop), opened(tmp_path / "s", {**parts, "scaler": scaler}) as ckpt:
        for step in ckpt.steps(9):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 16)).square().mean()).backward()
            scaler.unscale_(optimizer)
            if step == 5:
                raise Stop
            scaler.step(optimizer)
            scaler.update()
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.FAILED)]


def test_lazy_modules_are_no_obstacle(tmp_path: Path) -> None:
    model = nn.LazyLinear(1)
    with opened(tmp_path / "s", {"model": model}, accumulate=1) as ckpt:
        for _ in ckpt.steps(2):
            model(torch.ones(2, 16))
    assert ckpt.last.step == 2
