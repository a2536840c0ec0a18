"""A training that fails: a checkpoint of the boundary if the state is still that, else the reason; never a torn one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import Stop, digest_of, records_of, steps_of, tiny
from torch import nn
from torch.utils.data import DataLoader, Dataset

import holdfast
from holdfast import Checkpointer, every
from holdfast.catalog.journal.journal import read_journal
from holdfast.errors import StateError
from holdfast.health import nonfinite, out_of_memory, rollback, shrink_batch, when
from holdfast.ids import RunNumber
from holdfast.records import Kind
from holdfast.recovery.environment.grace import Grace
from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.ranks.group import Alone
from holdfast.recovery.ranks.parting import PartingWords
from holdfast.recovery.stopping.failing import Failing

RARELY = every(steps=1000)


def events(store: Path, kind: str) -> list:
    entries = read_journal(holdfast.open(store), RunNumber(1)).entries
    return [entry.event for entry in entries if entry.event.kind == kind]


def normed() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, fail=lambda where: None) -> None:
    optimizer.zero_grad()
    fail("before")
    loss = model(batch).square().mean()
    fail("forward")
    loss.backward()
    fail("backward")
    optimizer.step()
    fail("step")


def failing_at(step: int, place: str, error: BaseException):
    def at(now: int):
        def fail(where: str) -> None:
            if (now, where) == (step, place):
                raise error

        return fail

    return at


def trained(store: Path, made, total: int = 8, failing=lambda step: lambda where: None, **options) -> str:
    """A launch of 8 steps over noise that the loader draws; gives the digest of what it ends with."""
    torch.set_num_threads(1)
    model, optimizer = made()
    torch.manual_seed(7)
    loader = DataLoader(torch.arange(40 * 16.0).view(40, 16).sin(), batch_size=4, shuffle=True)
    settings = {"save": RARELY, "saver": "inline"} | options
    with Checkpointer(store, run="r", state={"model": model, "optimizer": optimizer}, **settings) as ckpt:
        for step, batch in ckpt.batches(loader, total_steps=total):
            step_of(model, optimizer, batch, failing(step))
    return digest_of(model, optimizer)


@pytest.mark.parametrize("made", [tiny, normed], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("place", ["before", "forward", "backward"])
def test_a_failure_before_the_step_leaves_a_checkpoint_of_the_boundary(tmp_path: Path, made, place: str) -> None:
    """Hazard 10: BatchNorm has counted a batch that came to nothing; its buffers are those of the boundary again."""
    with pytest.raises(Stop):
        trained(tmp_path / "s", made, failing=failing_at(5, place, Stop("mine")))
    (record,) = records_of(tmp_path / "s")
    assert (record.step, record.kind, record.reason) == (5, Kind.FAILED, "the training ended with Stop")
    assert record.exactness["data"].exact
    assert trained(tmp_path / "s", made) == trained(tmp_path / "whole", made)


def test_a_failure_after_the_step_leaves_none_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hazard 10: what belongs to the step (schedulers, counters) is perhaps not complete."""
    with pytest.raises(Stop):
        trained(tmp_path / "s", tiny, save=every(steps=2), failing=failing_at(4, "step", Stop("mine")))
    assert steps_of(tmp_path / "s") == [2, 4]
    assert "step 4 was not saved: an optimizer had made its step" in caplog.text
    assert trained(tmp_path / "s", tiny) == trained(tmp_path / "whole", tiny)


def test_an_optimizer_that_steps_in_the_backward_pass_is_noticed(tmp_path: Path) -> None:
    """Hazard 10: it changes the first parameters before a later one fails; and nobody has registered it."""
    model, optimizer = tiny()
    hidden = torch.optim.SGD([model.weight], lr=0.1)
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for step in ckpt.steps(8):
            model(torch.ones(1, 16)).sum().backward()
            if step == 5:
                hidden.step()
                raise Stop
            optimizer.step()
    assert records_of(tmp_path / "s") == []


class Torn(torch.optim.SGD):
    """Fails in the middle of a step, with its first parameter moved: no memory for the second one, for example."""

    fails_with: BaseException | None = None

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter -= self.param_groups[0]["lr"] * parameter.grad
            if self.fails_with is not None:
                error, self.fails_with = self.fails_with, None
                raise error


def torn_at(step: int, error: BaseException, store: Path, body=None, **options) -> Checkpointer:
    """A training whose optimizer fails once, in the middle of a step."""
    torch.manual_seed(3)
    model = nn.Linear(16, 1)
    optimizer = Torn(model.parameters(), lr=0.1)
    settings = {"save": RARELY, "saver": "inline"} | options
    with Checkpointer(store, run="r", state={"m": model, "o": optimizer}, **settings) as ckpt:
        try:
            for now in ckpt.steps(8):
                model(torch.ones(1, 16)).sum().backward()
                optimizer.fails_with = error if now == step else None
                with ckpt.guard() if body is None else body():
                    optimizer.step()
                optimizer.zero_grad()
        except KeyboardInterrupt:
            pass
    return ckpt


def test_half_a_step_is_no_boundary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hazard 10: no hook tells of the end of such a step, but one of its beginning."""
    with pytest.raises(Stop):
        torn_at(5, Stop("in the middle"), tmp_path / "s")
    assert records_of(tmp_path / "s") == []
    assert "step 5 was not saved: an optimizer was in the middle of its step" in caplog.text


def test_half_a_step_is_not_saved_when_a_person_has_interrupted_it_and_the_block_ends_well(tmp_path: Path) -> None:
    """Two Ctrl-C, and an ``except KeyboardInterrupt`` around the loop: the state is that of nobody."""
    ckpt = torn_at(5, KeyboardInterrupt(), tmp_path / "s", save=every(steps=3))
    assert steps_of(tmp_path / "s") == [3]
    assert ckpt.last.step == 3


@pytest.mark.parametrize("asked", ["behind the loop", "in the body", "never"])
def test_half_a_step_of_the_second_optimizer_is_no_step_of_the_first(tmp_path: Path, asked: str) -> None:
    """Hazard 10: the program catches it around the loop, and asks for a checkpoint, or just ends, at its total."""
    torch.manual_seed(3)
    one, two = nn.Linear(16, 1), nn.Linear(16, 1)
    first, second = torch.optim.SGD(one.parameters(), lr=0.1), Torn(two.parameters(), lr=0.1)
    state = {"one": one, "two": two, "first": first, "second": second}
    refused = pytest.raises(StateError, match="in the middle of its step") if asked != "never" else nullcontext()
    with refused, Checkpointer(tmp_path / "s", run="r", state=state, save=every(steps=3), saver="inline") as ckpt:
        try:
            for step in ckpt.steps(5):
                (one(torch.ones(1, 16)) + two(torch.ones(1, 16))).sum().backward()
                second.fails_with = Stop("in the middle") if step == 4 else None
                first.step()
                if asked == "in the body" and step == 4:
                    ckpt.save()
                second.step()
        except Stop:
            pass
        if asked == "behind the loop":
            ckpt.save()
    assert steps_of(tmp_path / "s") == [3]
    assert ckpt.step == 4


def test_a_step_that_ran_out_of_memory_in_its_middle_is_not_left_out(tmp_path: Path) -> None:
    rules = [when(out_of_memory(), shrink_batch(lambda facts: None))]
    with pytest.raises(torch.OutOfMemoryError):
        torn_at(5, torch.OutOfMemoryError("CUDA out of memory"), tmp_path / "s", health=rules)
    assert records_of(tmp_path / "s") == []


def test_the_first_of_two_optimizers_has_stepped(tmp_path: Path) -> None:
    """Hazard 10: a GAN whose generator fails after its discriminator."""
    (one, first), (two, second) = tiny(1), tiny(2)
    state = {"one": one, "two": two, "first": first, "second": second}
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", state=state, save=RARELY) as ckpt:
        for step in ckpt.steps(8):
            (one(torch.ones(1, 16)).sum() + two(torch.ones(1, 16)).sum()).backward()
            first.step()
            if step == 5:
                raise Stop
            second.step()
    assert records_of(tmp_path / "s") == []


def test_buffers_too_large_to_be_kept_are_not_put_back(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("holdfast.state.boundary.KEPT", 10)
    with pytest.raises(Stop):
        trained(tmp_path / "s", normed, failing=failing_at(5, "forward", Stop()))
    assert records_of(tmp_path / "s") == []
    assert "buffers had changed, and no copy of them is kept" in caplog.text


def test_values_that_the_body_has_changed_are_not_saved(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for step in ckpt.steps(8):
            ckpt.values["seen"] = step
            if step == 5:
                raise Stop
            step_of(model, optimizer, torch.ones(2, 16))
    assert records_of(tmp_path / "s") == []


@pytest.mark.parametrize(
    ("first", "change"),
    [
        ({"seen": 0}, lambda value: value.update(seen=8)),
        ([{"seen": [0]}], lambda value: value[0]["seen"].append(1)),
        (torch.zeros(2), lambda value: value.add_(1)),
    ],
    ids=["dict", "nested", "tensor"],
)
def test_what_the_body_has_changed_inside_of_a_value_is_noticed(tmp_path: Path, first, change) -> None:
    model, optimizer = tiny()
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        ckpt.values.setdefault("meters", first)
        for step in ckpt.steps(8):
            if step == 5:
                change(ckpt.values["meters"])
                raise Stop
            step_of(model, optimizer, torch.ones(2, 16))
    assert records_of(tmp_path / "s") == []


def test_the_middle_of_an_accumulation_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = tiny()
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for count, _ in enumerate(ckpt.batches([0] * 40, total_steps=9)):
            model(torch.ones(1, 16)).sum().backward()
            if count == 9:
                raise Stop
            if count % 4 == 3:
                optimizer.step()
    assert records_of(tmp_path / "s") == []
    assert "accumulation" in caplog.text


def test_a_failing_loader_leaves_a_checkpoint_of_the_boundary(tmp_path: Path) -> None:
    class Rotten(Dataset):
        bad = True

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 22 and self.bad:
                raise OSError("cannot read the sample")
            return torch.full((16,), index / 40)

    def run(store: Path, *, bad: bool) -> str:
        model, optimizer = tiny()
        samples = Rotten()
        samples.bad = bad
        with Checkpointer(store, run="r", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
            for _, batch in ckpt.batches(DataLoader(samples, batch_size=4), total_steps=12):
                step_of(model, optimizer, batch)
        return digest_of(model, optimizer)

    with pytest.raises(OSError, match="cannot read the sample"):
        run(tmp_path / "s", bad=True)
    (record,) = records_of(tmp_path / "s")
    assert (record.step, record.kind) == (5, Kind.FAILED)
    assert run(tmp_path / "s", bad=False) == run(tmp_path / "whole", bad=False)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "ctrl-c"])
def test_leaving_on_purpose_is_no_failure(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        trained(tmp_path / "s", tiny, failing=failing_at(5, "before", error))
    assert records_of(tmp_path / "s") == []
    assert [event.data["how"] for event in events(tmp_path / "s", "exit")] == ["left"]
    assert events(tmp_path / "s", "failed") == []
    (left,) = events(tmp_path / "s", "left")
    assert left.message == f"{type(error).__name__} at step 5"


def test_after_out_of_memory_on_the_device_there_is_a_checkpoint(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path / "s", normed, failing=failing_at(5, "backward", error))
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.FAILED)]


def test_after_a_sticky_error_nothing_of_the_state_is_read(tmp_path: Path, caplog, monkeypatch) -> None:
    """To read anything on the device would be an error, or hang."""
    read: list[int] = []
    monkeypatch.setattr("holdfast.recovery.saving.boundary_saves.BoundarySaves.snapshot", lambda self: read.append(1))
    monkeypatch.setattr("holdfast.recovery.stopping.failing.nonfinite_parameter", lambda objects: read.append(2))
    with pytest.raises(RuntimeError, match="device-side assert"):
        trained(
            tmp_path / "s",
            normed,
            failing=failing_at(0, "forward", RuntimeError("CUDA error: device-side assert triggered")),
        )
    assert read == []
    assert "nothing on the device can be read" in caplog.text


def test_weights_that_are_not_finite_are_not_saved_as_a_failure(tmp_path: Path, caplog) -> None:
    """Else the next launch would begin with the NaN that this one has noticed."""
    model, optimizer = tiny()
    save = every(steps=2)
    with (
        pytest.raises(FloatingPointError),
        Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=save) as ckpt,
    ):
        for step in ckpt.steps(8):
            if not torch.isfinite(model.weight).all():
                raise FloatingPointError("the model has diverged")
            step_of(model, optimizer, torch.full((2, 16), float("nan") if step == 4 else 1.0))
    assert steps_of(tmp_path / "s") == [2, 4]
    assert "m/weight has a NaN" in caplog.text


def test_a_launch_that_fails_at_once_adds_nothing(tmp_path: Path) -> None:
    """Restart after restart would push every older checkpoint out of the retention."""
    for _ in range(3):
        with pytest.raises(Stop):
            trained(tmp_path / "s", tiny, save=every(steps=2), failing=failing_at(4, "before", Stop()))
    assert steps_of(tmp_path / "s") == [2, 4]
    with pytest.raises(Stop):
        trained(tmp_path / "t", tiny, failing=failing_at(0, "before", Stop()))
    assert records_of(tmp_path / "t") == []


def test_an_error_behind_the_loop_saves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = tiny()
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for _ in ckpt.steps(8):
            step_of(model, optimizer, torch.ones(2, 16))
        raise Stop
    assert records_of(tmp_path / "s") == []
    assert "outside of the loop" in caplog.text


def test_a_step_between_a_break_and_an_error_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The loop is over then, whatever the last body has left undone."""
    model, optimizer = tiny()
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for step in ckpt.steps(8):
            if step == 5:
                break
            step_of(model, optimizer, torch.ones(2, 16))
        step_of(model, optimizer, torch.ones(2, 16))
        raise Stop
    assert records_of(tmp_path / "s") == []
    assert "outside of the loop" in caplog.text


def test_the_traceback_is_in_the_journal(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        trained(tmp_path / "s", tiny, failing=failing_at(5, "step", Stop("no more of this")))
    (event,) = events(tmp_path / "s", "failed")
    assert "no more of this" in event.data["traceback"]
    assert "in step_of" in event.data["traceback"]
    left = events(tmp_path / "s", "exit")[-1]
    assert left.data["how"] == "failed"


def test_what_cannot_be_saved_at_the_end_does_not_hide_the_error(tmp_path: Path, caplog) -> None:
    model, optimizer = tiny()
    with pytest.raises(Stop), Checkpointer(tmp_path / "s", state={"m": model, "o": optimizer}, save=RARELY) as ckpt:
        for step in ckpt.steps(8):
            if step == 5:
                raise Stop
            ckpt.values["bad"] = object()
            step_of(model, optimizer, torch.ones(2, 16))
    assert records_of(tmp_path / "s") == []
    assert "it could not be saved: UnsupportedValue" in caplog.text
    assert events(tmp_path / "s", "failed")[0].data["traceback"]


def test_the_saver_process_makes_a_failed_checkpoint_too(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        trained(tmp_path / "s", normed, saver="process", failing=failing_at(5, "forward", Stop()))
    assert [(one.step, one.kind) for one in records_of(tmp_path / "s")] == [(5, Kind.FAILED)]


class Refusing:
    """A part of the state that once cannot be loaded: a scheduler of the user's own, or no memory for it."""

    error: Exception | None = None

    def state_dict(self) -> dict[str, int]:
        return {"n": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("mine"), torch.OutOfMemoryError("CUDA out of memory")], ids=type)
def test_a_rollback_that_fails_in_its_middle_is_not_saved(tmp_path: Path, caplog, error: Exception) -> None:
    """I2: some objects are those of the checkpoint, others those of the step at which the training was."""
    refusing = Refusing()
    model, optimizer = tiny()
    state = {"model": model, "refusing": refusing, "optimizer": optimizer}
    rules = [when(nonfinite("loss"), rollback(to="last"))]
    options = {"save": every(steps=4), "saver": "inline", "health": rules}
    with pytest.raises(type(error)), Checkpointer(tmp_path / "s", run="r", state=state, **options) as ckpt:
        for step in ckpt.steps(9):
            step_of(model, optimizer, torch.ones(2, 16))
            refusing.error = error if step == 6 else None
            ckpt.log(loss=float("nan") if step == 6 else 1.0)
    assert steps_of(tmp_path / "s") == [4]
    assert "step 7 was not saved: a restore has failed in its middle" in caplog.text


class OfTwo(Alone):
    """The first of two ranks, alone with the store of both."""

    size = 2

    def at_the_end(self, mine: str, seconds: float) -> list[str] | None:
        return PartingWords(torch.distributed.HashStore(), 0, 2).heard(mine, seconds)


def test_the_first_rank_does_not_save_for_all_when_there_is_no_time_to_hear_of_the_others() -> None:
    """It took its own word for that of all, and its saver then waited for theirs until the peer timeout."""
    stops = StopRequests()
    stops.ask("SIGTERM", Grace(seconds=0.0, why="mine"))
    unused = dict.fromkeys(("place", "saves", "checkpoints"), SimpleNamespace())
    failing = Failing({}, OfTwo(), progress=SimpleNamespace(step=5), stops=stops, torn=lambda: False, **unused)
    assert failing.together(None) == "there is no time left"


def test_every_end_is_in_the_journal_with_the_time_of_its_steps(tmp_path: Path) -> None:
    trained(tmp_path / "done", tiny)
    event = events(tmp_path / "done", "exit")[-1]
    assert (event.data["how"], event.data["step"]) == ("completed", 8)
    assert 0 < event.data["step_seconds"] < event.data["wall_seconds"]


def test_the_time_of_saves_is_no_time_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.recovery.steps import stopwatch

    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])
    watch = stopwatch.Stopwatch()
    watch.go()
    now[0] = 3.0
    assert watch.halt()
    now[0] = 50.0
    assert not watch.halt()
    watch.go()
    watch.go()
    now[0] = 51.0
    assert watch.step_seconds == 4.0
