"""The loop as a user sees it: which steps it yields, when state is restored, what is saved at its end."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from tiny_training import Stop, crash_at, digest_of, expected, launched, one_step, records_of, steps_of, tiny
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.catalog.journal.journal import read_journal
from holdfast.catalog.marks import read_record_marks
from holdfast.ids import RunNumber
from holdfast.records import Kind
from holdfast.recovery.saving import taking
from holdfast.recovery.steps.measuring import plain


def test_a_training_with_checkpoints_is_the_training_without(tmp_path: Path) -> None:
    """Saving, marking and deleting draw no random number and change no weight."""
    assert launched(tmp_path / "s", 9).digest == expected()[9]


def test_steps_count_from_zero_and_the_record_counts_completed_steps(tmp_path: Path) -> None:
    done = launched(tmp_path / "s", 4)
    assert done.steps == [0, 1, 2, 3]
    assert steps_of(tmp_path / "s") == [2, 4]
    assert done.ckpt.step == 4


def test_a_run_resumed_from_a_checkpoint_yields_its_step_first(tmp_path: Path) -> None:
    """Resumed from ``@4``, the loop begins with 4, and ends as if nothing had happened."""
    with pytest.raises(Stop):
        launched(tmp_path / "s", 9, then=crash_at(5))
    again = launched(tmp_path / "s", 9)
    assert again.steps == [4, 5, 6, 7, 8]
    assert again.digest == expected()[9]


def test_nothing_is_read_or_written_before_the_first_use(tmp_path: Path) -> None:
    model, optimizer = tiny()
    Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}).close()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("use", ["batches", "steps", "restore"])
def test_the_state_is_restored_at_the_first_use_and_not_by_the_constructor(tmp_path: Path, use: str) -> None:
    launched(tmp_path / "s", 4)
    model, optimizer = tiny(seed=99)
    fresh = digest_of(model, optimizer)
    ckpt = Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer})
    assert digest_of(model, optimizer) == fresh
    loader = [torch.zeros(1)]
    {"batches": lambda: next(ckpt.batches(loader, total_steps=9)), "steps": lambda: next(ckpt.steps(9))}.get(
        use, ckpt.restore
    )()
    assert digest_of(model, optimizer) == expected()[4]
    ckpt.close()


def test_the_tensors_stay_where_they_are_when_state_is_restored(tmp_path: Path) -> None:
    """The optimizer of a resumed run must hold the parameters that the model computes with."""
    launched(tmp_path / "s", 4)
    model, optimizer = tiny(seed=99)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        ckpt.restore()
        assert [parameter.data_ptr() for parameter in model.parameters()] == before
        assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_reaching_the_total_saves_a_final_checkpoint(tmp_path: Path) -> None:
    done = launched(tmp_path / "s", 5)
    assert [(record.step, record.kind) for record in records_of(tmp_path / "s")] == [
        (2, Kind.REGULAR),
        (4, Kind.REGULAR),
        (5, Kind.FINAL),
    ]
    assert done.ckpt.last is not None
    assert done.ckpt.last.step == 5


def test_a_checkpoint_at_the_very_end_is_marked_final_and_not_made_twice(tmp_path: Path) -> None:
    launched(tmp_path / "s", 4)
    store = holdfast.open(tmp_path / "s")
    (_, last) = store.run(1).records()
    assert steps_of(tmp_path / "s") == [2, 4]
    assert read_record_marks(store, last.address).final


def test_break_saves_nothing(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        for step in ckpt.steps(9):
            one_step(model, optimizer)
            if step == 3:
                break
        assert not ckpt.looping
    assert steps_of(tmp_path / "s") == []


def test_a_save_after_break_holds_the_step_that_was_made(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        for step in ckpt.steps(9):
            one_step(model, optimizer)
            if step == 3:
                break
        record = ckpt.save(reason="I have seen enough")
    assert record is not None
    assert (record.step, record.kind) == (4, Kind.MANUAL)
    assert launched(tmp_path / "s", 9).digest == expected()[9]


def test_an_exception_passes_through_saves_nothing_and_says_what_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stop):
        launched(tmp_path / "s", 9, then=crash_at(4))
    assert steps_of(tmp_path / "s") == [2, 4]
    assert "the training ended with Stop at step 5; the last checkpoint is run-001@4" in caplog.text


def test_a_failure_is_in_the_journal(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        launched(tmp_path / "s", 9, then=crash_at(4))
    events = read_journal(holdfast.open(tmp_path / "s"), RunNumber(1))
    assert any("Stop at step 5" in entry.event.message for entry in events.by_time())


def test_no_handler_and_no_hook_is_left_after_the_loop(tmp_path: Path) -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks as hooks

    before = len(hooks)
    for how in (lambda: launched(tmp_path / "a", 2), lambda: launched(tmp_path / "b", 9, then=crash_at(1))):
        with contextlib.suppress(Stop):
            how()
        assert len(hooks) == before


def test_a_closed_checkpointer_is_not_used_again(tmp_path: Path) -> None:
    ckpt = launched(tmp_path / "s", 2).ckpt
    for use in (lambda: next(ckpt.steps(9)), ckpt.restore, ckpt.save, lambda: ckpt.log(loss=1.0)):
        with pytest.raises(holdfast.errors.Unusable, match="is closed; make a new one"):
            use()
    ckpt.close()  # idempotent


def test_one_loop_at_a_time(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        for _ in ckpt.steps(9):
            with pytest.raises(holdfast.errors.InvalidInput, match="in a loop already"):
                next(ckpt.steps(9))
            with pytest.raises(holdfast.errors.InvalidInput, match="leave the loop first"):
                ckpt.restore()
            break


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"state": {}}, "state= wants"),
        ({"state": [1]}, "state= wants"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"codec": "rar"}, "codec='rar'"),
        ({"run": "../x"}, "run name"),
        ({"run": ""}, "run name"),
        ({"run": 0}, "start at 1"),
        ({"save": latest(3)}, "latest"),
        ({"keep": "everything"}, "keep="),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_touched(tmp_path: Path, wrong: dict, said: str) -> None:
    model, _ = tiny()
    with pytest.raises(holdfast.errors.InvalidInput, match=said):
        Checkpointer(tmp_path / "s", **({"state": {"model": model}} | wrong))
    assert not (tmp_path / "s").exists()


def test_batches_needs_an_end(tmp_path: Path) -> None:
    model, _ = tiny()
    with (
        Checkpointer(tmp_path / "s", state={"model": model}) as ckpt,
        pytest.raises(holdfast.errors.InvalidInput, match="never end"),
    ):
        next(ckpt.batches([1]))


def test_epochs_end_the_training_and_save_a_final_checkpoint(tmp_path: Path) -> None:
    model, optimizer = tiny()
    loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=2)
    with Checkpointer(
        tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=every(epochs=1)
    ) as ckpt:
        seen = [step for step, _ in _stepping(ckpt.batches(loader, epochs=2), model, optimizer)]
    assert seen == [0, 1, 2, 3, 4, 5]
    assert steps_of(tmp_path / "s") == [3, 6]
    assert holdfast.open(tmp_path / "s").run(1).records()[-1].epoch == 1


def test_a_training_that_ends_between_two_halves_of_a_step_still_ends_with_a_checkpoint(tmp_path: Path) -> None:
    """Three batches an epoch, two to a step: the last half is not half-saved in silence, but the weights are."""
    model, optimizer = tiny()
    loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=2)
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        for micro, (_, _batch) in enumerate(ckpt.batches(loader, epochs=1)):
            (model(torch.ones(1, 16)).mean() / 2).backward()
            if micro % 2:
                optimizer.step()
                optimizer.zero_grad()
    (record,) = records_of(tmp_path / "s")
    assert (record.step, record.kind) == (1, Kind.FINAL)
    assert not record.exactness["gradients"].exact


def _stepping(batches, model, optimizer):
    for step, batch in batches:
        one_step(model, optimizer)
        yield step, batch


def test_an_iterable_that_is_no_loader_can_be_trained_on(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        seen = [(s, b) for s, b in _stepping(ckpt.batches([10, 20, 30], total_steps=4), model, optimizer)]
    assert seen == [(0, 10), (1, 20), (2, 30), (3, 10)]


def test_steps_says_in_the_record_that_it_has_no_data_position(tmp_path: Path) -> None:
    launched(tmp_path / "s", 2)
    data = records_of(tmp_path / "s")[-1].exactness["data"]
    assert not data.exact
    assert "elsewhere" in data.reason


def test_a_metric_of_an_unsaved_step_is_not_carried_into_the_next_record(tmp_path: Path) -> None:
    launched(tmp_path / "s", 4, then=lambda step, ckpt: ckpt.log(odd=1.0) if step % 2 == 0 else None)
    assert all("odd" not in record.metrics for record in records_of(tmp_path / "s"))
    assert all("loss" in record.metrics for record in records_of(tmp_path / "s"))


def test_tensors_of_a_device_are_read_only_where_a_record_is_made(tmp_path: Path, monkeypatch) -> None:
    """Reading a tensor waits for its device: without ``best`` no step does."""
    reads = []
    monkeypatch.setattr(taking, "plain", lambda metrics: reads.append(metrics) or plain(metrics))
    launched(tmp_path / "s", 4, then=lambda step, ckpt: ckpt.log(loss=1.0))
    assert len(reads) == len(records_of(tmp_path / "s"))


def test_what_is_logged_is_taken_at_once(tmp_path: Path) -> None:
    """A sum that is set to zero in place must not be zero in the record; nor may its graph be kept alive."""
    total = torch.zeros((), requires_grad=True) + 2

    def then(step: int, ckpt: Checkpointer) -> None:
        value = total.detach().clone()
        ckpt.log(total=value)
        value.zero_()

    launched(tmp_path / "s", 2, then=then)
    assert [record.metrics["total"] for record in records_of(tmp_path / "s")] == [2.0]
