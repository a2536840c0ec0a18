"""When checkpoints are made, what they hold beside the objects, and what `save` and `log` do in the body."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_training import digest_of, expected, launched, one_step, records_of, steps_of, tiny

import holdfast
from holdfast import Checkpointer, best, errors, every
from holdfast.catalog.marks import read_record_marks
from holdfast.records import Kind

RARELY = every(steps=1000)


def accumulated(store: Path, micros: int, *, save=RARELY, at=None, **options):
    """Two batches to a step; gives what ``at`` returned per micro batch."""
    model, optimizer = tiny()
    answers = []
    with Checkpointer(store, run="toy", state={"model": model, "optimizer": optimizer}, save=save, **options) as ckpt:
        for micro, (step, _) in enumerate(ckpt.batches(list(range(8)), epochs=9)):
            model(torch.ones(1, 16) * (micro + 1)).mean().backward()
            if micro % 2:
                optimizer.step()
                optimizer.zero_grad()
            answers.append((step, at(micro, ckpt) if at else None))
            if micro + 1 == micros:
                break
    return answers, digest_of(model, optimizer)


def test_with_gradient_accumulation_one_step_comes_with_several_batches(tmp_path: Path) -> None:
    answers, _ = accumulated(tmp_path / "s", 6)
    assert [step for step, _ in answers] == [0, 0, 1, 1, 2, 2]


def test_a_due_save_waits_for_the_step_and_never_holds_half_a_gradient(tmp_path: Path) -> None:
    """Hazard 26. Due every 0 seconds, that is at every batch."""
    accumulated(tmp_path / "s", 8, save=every(seconds=1e-9), keep=holdfast.latest(9))
    assert steps_of(tmp_path / "s") == [1, 2, 3, 4][: len(steps_of(tmp_path / "s"))]
    assert all("gradients" not in record.exactness for record in records_of(tmp_path / "s"))
    assert len(steps_of(tmp_path / "s")) >= 3  # the last step ends by break


def test_a_save_in_the_middle_of_a_step_is_deferred_and_says_so(tmp_path: Path) -> None:
    """Two batches to a step: the value says that the first one has done something."""

    def at(micro: int, ckpt: Checkpointer):
        ckpt.values["seen"] = micro
        return ckpt.save(reason="now") if micro == 2 else ckpt.last and ckpt.last.step

    answers, _ = accumulated(tmp_path / "s", 6, at=at)
    assert answers[2] == (1, None)
    assert answers[4] == (2, 2), "it was made when the step was complete"
    (record,) = records_of(tmp_path / "s")
    assert (record.step, record.kind, record.reason) == (2, Kind.MANUAL, "now")


def test_a_save_before_anything_has_changed_is_made_at_once(tmp_path: Path) -> None:
    """Gradients are no part of a checkpoint: the batch at hand is drawn again."""
    answers, _ = accumulated(tmp_path / "s", 6, at=lambda micro, ckpt: ckpt.save() if micro == 2 else None)
    (record,) = records_of(tmp_path / "s")
    assert answers[2] == (1, record)
    assert (record.step, record.exactness["data"].exact) == (1, True)


def test_accumulate_says_what_no_hook_can_see(tmp_path: Path) -> None:
    """A foreign optimizer: nothing in ``state`` steps, so the batches are counted."""
    model, _ = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model}, save=every(steps=1), accumulate=3) as ckpt:
        steps = [step for step, _ in ckpt.batches(list(range(9)), total_steps=3)]
    assert steps == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_steps_that_are_seen_count_for_more_than_accumulate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten batches an epoch, four to a step: most programs make one more step at its end, of the two that are left."""
    model, optimizer = tiny()
    state, made = {"model": model, "optimizer": optimizer}, []
    with Checkpointer(tmp_path / "s", run="toy", state=state, save=every(steps=1), accumulate=4) as ckpt:
        for number, (step, batch) in enumerate(ckpt.batches([torch.ones(1, 16)] * 10, epochs=2)):
            assert step == len(made)
            model(batch).sum().backward()
            if number % 10 in (3, 7, 9):
                optimizer.step()
                optimizer.zero_grad()
                made.append(number)
    assert steps_of(tmp_path / "s")[-1] == len(made) == 6
    assert caplog.text.count("accumulate=4") == 1
    assert all("gradients" not in record.exactness for record in records_of(tmp_path / "s"))


def test_where_no_step_is_seen_any_more_accumulate_counts_again(tmp_path: Path) -> None:
    """Some steps to warm up, then those of a CUDA graph, which fire no hook."""
    model, optimizer = tiny()
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path / "s", run="toy", state=state, save=every(steps=1), accumulate=2) as ckpt:
        steps = []
        for number, (step, batch) in enumerate(ckpt.batches([torch.ones(1, 16)] * 12, epochs=1)):
            steps.append(step)
            model(batch).sum().backward()
            if number in (1, 3):
                optimizer.step()
                optimizer.zero_grad()
    assert steps == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4]
    inexact = [record.step for record in records_of(tmp_path / "s") if "gradients" in record.exactness]
    assert inexact == [3], "nobody can tell what the gradients there were for"


def test_a_save_before_the_step_is_that_of_the_boundary_before(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=RARELY) as ckpt:
        for step in ckpt.steps(4):
            if step == 2:
                record = ckpt.save()
                assert record is not None
                assert record.step == 2
            one_step(model, optimizer)
    assert steps_of(tmp_path / "s") == [2, 4]
    assert launched(tmp_path / "s", 4, resume="run-001@2", run="again").digest == expected()[4]


def test_one_boundary_has_one_checkpoint_however_often_it_is_asked_for(tmp_path: Path) -> None:
    ids = []

    def then(step: int, ckpt: Checkpointer) -> None:
        assert ckpt.save() is None
        assert ckpt.save() is None

    done = launched(tmp_path / "s", 2, then=then, keep=holdfast.latest(9))
    assert steps_of(tmp_path / "s") == [1, 2]
    assert ids == []
    assert done.ckpt.last is not None


def test_a_save_outside_of_any_loop_is_made_at_once(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        record = ckpt.save(tag="before")
    assert record is not None
    assert record.step == 0
    assert holdfast.open(tmp_path / "s").run(1).records() == [record]


@pytest.mark.parametrize("tag", ["../x", "", "a/b", "last", "-x"])
def test_a_tag_that_cannot_be_one_is_refused_before_anything_is_saved(tmp_path: Path, tag: str) -> None:
    model, optimizer = tiny()
    with (
        Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt,
        pytest.raises(errors.InvalidName),
    ):
        ckpt.save(tag=tag)
    assert not (tmp_path / "s").exists()


def test_a_tag_that_is_taken_is_an_error_and_the_checkpoint_stands(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        ckpt.save(tag="mine")
        for _ in ckpt.steps(1):
            one_step(model, optimizer)
        with pytest.raises(errors.NameTaken, match="tags do not move"):
            ckpt.save(tag="Mine")
    assert steps_of(tmp_path / "s") == [0, 1]


LOSSES = [3.0, math.nan, 2.0, 2.5, -math.inf, math.inf, 1.0, 1.0]


def test_best_saves_when_a_metric_of_the_step_is_the_best_so_far_and_nan_never_is(tmp_path: Path) -> None:
    """Logged after the optimizer step, it belongs to the step that was just made."""
    launched(
        tmp_path / "s",
        len(LOSSES),
        save=best("val"),
        keep=holdfast.latest(9),
        then=lambda step, ckpt: ckpt.log(val=LOSSES[step]),
    )
    records = records_of(tmp_path / "s")
    assert [(record.step, record.metrics["val"]) for record in records if record.kind is Kind.BEST] == [
        (1, 3.0),
        (3, 2.0),
        (7, 1.0),
    ]


def test_best_looks_at_metrics_that_are_logged_between_steps(tmp_path: Path) -> None:
    """An evaluation after the loop, or before the step: the checkpoint is that of the boundary."""
    model, optimizer = tiny()
    with Checkpointer(
        tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=best("val")
    ) as ckpt:
        for step in ckpt.steps(3):
            if step:
                ckpt.log(val=torch.tensor(5.0 - step))
            one_step(model, optimizer)
        ckpt.log(val=9.0)
    assert [(r.step, r.kind) for r in records_of(tmp_path / "s")] == [
        (1, Kind.BEST),
        (2, Kind.BEST),
        (3, Kind.FINAL),
    ]


def test_a_metric_logged_after_the_save_of_its_step_is_added_to_that_checkpoint(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with Checkpointer(
        tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=every(steps=2)
    ) as ckpt:
        for _ in ckpt.steps(2):
            one_step(model, optimizer)
        ckpt.log(val=0.25)
    store = holdfast.open(tmp_path / "s")
    (record,) = store.run(1).records()
    assert read_record_marks(store, record.address).metrics(record)["val"] == 0.25


def test_the_best_of_the_earlier_launches_is_the_one_to_beat(tmp_path: Path) -> None:
    """Users-ask 30: best-metric trackers are not reset by a resume."""
    then = lambda step, ckpt: ckpt.log(val=float(step if step < 3 else 1.5))  # noqa: E731
    options = {"save": best("val"), "keep": holdfast.latest(9), "then": then}
    launched(tmp_path / "s", 1, **options)
    launched(tmp_path / "s", 6, **options)
    assert [r.step for r in records_of(tmp_path / "s") if r.kind is Kind.BEST] == [1]


@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(0)])
def test_a_metric_that_is_no_number_is_named(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(errors.InvalidInput, match="log\\(odd=\\)"):
        launched(tmp_path / "s", 2, then=lambda step, ckpt: ckpt.log(odd=value))


def test_values_are_restored_in_place(tmp_path: Path) -> None:
    def then(step: int, ckpt: Checkpointer) -> None:
        ckpt.values["seen"] = ckpt.values.get("seen", 0) + 1
        ckpt.values["where"] = ("a", {1: None}, math.inf)

    launched(tmp_path / "s", 3, then=then)
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        values = ckpt.values
        values.setdefault("seen", 100)
        values["new"] = 1
        ckpt.restore()
        assert values is ckpt.values
        assert values == {"seen": 3, "where": ("a", {1: None}, math.inf)}


def test_a_value_that_no_codec_knows_is_named_and_the_checkpoint_before_stands(tmp_path: Path) -> None:
    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 3:
            ckpt.values["bad"] = [object()]

    with pytest.raises(errors.UnsupportedValue, match="bad"):
        launched(tmp_path / "s", 6, then=then)
    assert steps_of(tmp_path / "s") == [2]


def test_attached_files_are_kept_with_every_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("a b c")
    (folder / "empty.txt").touch()

    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 0:
            ckpt.attach(folder)

    launched(tmp_path / "s", 2, then=then)
    (folder / "vocab.txt").unlink()
    again = launched(tmp_path / "s", 4)
    assert again.ckpt._files == {"tokenizer/vocab.txt": b"a b c", "tokenizer/empty.txt": b""}
    with pytest.raises(errors.InvalidInput, match="there is no such file"):
        again.ckpt.attach(tmp_path / "nothing")


def test_a_save_after_a_break_in_mid_step_says_that_it_is_not_exact(tmp_path: Path) -> None:
    """It is made: nothing else could be; and a resume from it warns."""
    model, optimizer = tiny()
    with Checkpointer(tmp_path / "s", run="toy", state={"model": model, "optimizer": optimizer}, save=RARELY) as ckpt:
        for _ in ckpt.batches([1, 2, 3], total_steps=9):
            ckpt.values["seen"] = 1
            break
        record = ckpt.save()
    assert record is not None
    assert record.step == 0
    assert not record.exactness["data"].exact
