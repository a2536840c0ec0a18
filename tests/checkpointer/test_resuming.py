"""What ``run=`` and ``resume=`` mean, through a real Checkpointer; the pure table is in tests/recovery."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_training import Stop, crash_at, digest_of, expected, launched, one_step, records_of, steps_of, tiny
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import Checkpointer, errors, every, latest
from holdfast.catalog.journal.events import Ending
from holdfast.catalog.journal.gathering import gather
from holdfast.catalog.journal.timeline import timeline_of
from holdfast.catalog.launches import Launch
from holdfast.records import Kind
from holdfast.state import loading

NO_JOB = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in NO_JOB:
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Killed by its own bug in the step after 4."""
    with pytest.raises(Stop):
        launched(tmp_path / "s", 9, then=crash_at(4))
    return tmp_path / "s"


def tree(store: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_must_resumes_and_refuses_where_there_is_nothing(store: Path, tmp_path: Path) -> None:
    assert launched(store, 9, resume="must").steps[0] == 4
    with pytest.raises(errors.NothingToResume, match="named 'gone'"):
        launched(store, 9, run="gone", resume="must")
    with pytest.raises(errors.NothingToResume, match="no store at"):
        launched(tmp_path / "gone", 9, resume="must")
    assert not (tmp_path / "gone").exists()


def test_a_tensor_among_the_values_goes_where_the_program_has_it(tmp_path: Path, monkeypatch) -> None:
    def launch(total):
        model, optimizer = tiny()
        with Checkpointer(
            tmp_path / "s", run="r", state={"model": model, "optimizer": optimizer}, saver="inline"
        ) as ckpt:
            ckpt.values["mean"] = mean = torch.full((3,), float(total))
            for _ in ckpt.steps(total):
                one_step(model, optimizer)
        return mean, ckpt.values["mean"]

    seen, allocate = [], loading._new
    launch(1)
    monkeypatch.setattr(
        loading, "_new", lambda spec, like, device: (seen.append(like), allocate(spec, like, device))[1]
    )
    live, found = launch(2)
    assert torch.equal(found, torch.ones(3))
    assert found is not live
    assert live.data_ptr() in [like.data_ptr() for like in seen if like is not None]


def test_a_mistyped_way_to_resume_is_answered_with_the_right_one(store: Path, tmp_path: Path) -> None:
    """It is taken for the name of a checkpoint."""
    before = tree(store)
    with pytest.raises(errors.UnknownReference, match="did you mean resume='auto'"):
        launched(store, 9, resume="auot")
    assert tree(store) == before
    with pytest.raises(errors.NothingToResume, match="did you mean resume='never'"):
        launched(tmp_path / "gone", 9, resume="nevr")


def test_never_starts_a_run_of_its_own(store: Path) -> None:
    assert launched(store, 3, resume="never").steps == [0, 1, 2]
    assert [info.name for info in holdfast.open(store).runs()] == ["toy", "toy"]


def test_never_means_never_from_another_job_so_a_restart_goes_on(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard 28: the launcher repeats the command line."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(Stop):
        launched(store, 9, resume="never", then=crash_at(4))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = launched(store, 9, resume="never")
    assert again.steps[0] == 4
    assert again.digest == expected()[9]


def test_new_run_starts_a_new_one_and_a_restart_of_the_job_continues_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    with pytest.raises(Stop):
        launched(store, 9, run=holdfast.new_run("toy"), then=crash_at(2))
    assert launched(store, 9, run=holdfast.new_run("toy")).steps[0] == 2
    assert len(holdfast.open(store).runs()) == 2


@pytest.mark.parametrize("key", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
@pytest.mark.parametrize("place", ["nothing", "empty folder", "another store"])
def test_a_restarted_job_is_refused_a_silent_fresh_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, place: str
) -> None:
    """Hazard 28: the mount is missing, and nothing is written where it should be."""
    folder = tmp_path / "s"
    if place == "empty folder":
        folder.mkdir()
    if place == "another store":
        launched(folder, 2, run="somebody-elses")
    before = tree(folder)
    monkeypatch.setenv(key, "2")
    with pytest.raises(errors.RefusedFresh, match="is the right disk mounted"):
        launched(folder, 9)
    assert tree(folder) == before


def test_a_name_that_is_nearly_that_of_a_run_is_refused(store: Path) -> None:
    with pytest.raises(errors.RefusedFresh, match="say run='toy' to continue it"):
        launched(store, 9, run="Toy")
    assert launched(store, 2, run=holdfast.new_run("Toy")).steps == [0, 1]


def test_a_run_is_continued_by_its_number_too(store: Path) -> None:
    assert launched(store, 6, run=1).steps[0] == 4
    assert launched(store, 8, run="run-001").steps[0] == 6
    before = tree(store)
    with pytest.raises(errors.UnknownReference, match="there is no run-003"):
        launched(store, 9, run=3)
    assert tree(store) == before


def test_a_finished_run_that_is_launched_again_does_nothing(tmp_path: Path) -> None:
    for total in (4, 5):  # the last checkpoint is marked final; the last checkpoint is final
        store = tmp_path / f"s{total}"
        launched(store, total)
        before = steps_of(store)
        again = launched(store, total)
        assert again.steps == []
        assert again.digest == expected()[total]
        assert steps_of(store) == before


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(tmp_path: Path) -> None:
    launched(tmp_path / "s", 4)
    done = launched(tmp_path / "s", 8)
    assert done.steps == [4, 5, 6, 7]
    assert done.digest == expected()[8]


def test_going_back_by_reference_opens_a_new_timeline(store: Path) -> None:
    """Hazards 1 and 2: the head is then what was gone back to, and its checkpoints collide with nobody's."""
    done = launched(store, 9, resume="run-001@2")
    assert done.steps[0] == 2
    assert done.digest == expected()[9]
    assert launched(store, 9, resume="auto").steps == []


def test_a_fork_by_reference_is_made_once_and_continued(store: Path) -> None:
    with pytest.raises(Stop):
        launched(store, 9, run="branch", resume="run-001@2", then=crash_at(6))
    (_, branch) = holdfast.open(store).runs()
    assert branch.forked_from is not None
    assert branch.forked_from.step == 2
    again = launched(store, 9, run="branch", resume="run-001@2")
    assert again.steps[0] == 6
    assert again.digest == expected()[9]
    assert len(holdfast.open(store).runs()) == 2


@pytest.mark.parametrize("reference", ["run-001@77", "gone@last", "tag:gone"])
def test_a_reference_that_nothing_answers_to_changes_nothing(store: Path, reference: str) -> None:
    before = tree(store)
    with pytest.raises(errors.UnknownReference):
        launched(store, 9, resume=reference)
    assert tree(store) == before


def test_a_reference_into_a_store_that_is_not_there_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        launched(tmp_path / "s", 9, resume="run-001@2")
    assert not (tmp_path / "s").exists()


def test_a_changed_config_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Users-ask 34."""
    launched(tmp_path / "s", 2, config={"lr": 0.1, "batch": 4, "api_key": "s3cret"})
    caplog.clear()
    launched(tmp_path / "s", 4, config={"lr": 0.2, "batch": 4, "api_key": "other"})
    assert "lr: 0.1 -> 0.2" in caplog.text
    assert "batch" not in caplog.text
    assert all(b"s3cret" not in data for data in tree(tmp_path / "s").values())


def test_more_than_one_process_is_refused_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(errors.InvalidInput, match="WORLD_SIZE is 2"):
        launched(tmp_path / "s", 9)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_store_that_cannot_be_a_folder_is_a_typed_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.StorageError):
        launched(tmp_path / "file" / ("s" if place == "below a file" else ""), 9)
    assert (tmp_path / "file").read_text() == "x"


def _another(store: Path, **options) -> tuple[Checkpointer, object, object]:
    model, optimizer = tiny(seed=99)
    return Checkpointer(store, run="toy", state={"model": model, "optimizer": optimizer}, **options), model, optimizer


def test_restore_goes_back_in_the_same_process(store: Path) -> None:
    ckpt, model, optimizer = _another(store)
    with ckpt:
        ckpt.restore()
        assert (ckpt.step, digest_of(model, optimizer)) == (4, expected()[4])
        ckpt.restore("@2")
        assert (ckpt.step, digest_of(model, optimizer)) == (2, expected()[2])
        assert next(iter(ckpt.steps(9))) == 2


def test_restore_with_nothing_to_go_back_to_says_so(tmp_path: Path) -> None:
    ckpt, _, _ = _another(tmp_path / "s")
    with ckpt:
        assert ckpt.restore() == []  # a first launch
        with pytest.raises(errors.NothingToResume):
            ckpt.restore()


def _tuned(store: Path, steps: int = 0) -> tuple[list[int], str]:
    """A script that begins with the weights of another run, whatever was before; gives the steps that it made."""
    model, optimizer = tiny(seed=99)
    made = []
    with Checkpointer(
        store, run="tuned", state={"model": model, "optimizer": optimizer}, save=every(steps=2), keep=latest(1)
    ) as ckpt:
        assert ckpt.restore("toy@4", only=["model"]) == ([] if store_has(store, "tuned") else ["optimizer"])
        if not steps:
            assert not optimizer.state
        for step in ckpt.steps(steps):
            made.append(step)
            one_step(model, optimizer)
    return made, digest_of(model)


def store_has(store: Path, name: str) -> bool:
    """Whether a run has checkpoints."""
    return any(
        record
        for run in holdfast.open(store).runs()
        if run.name == name
        for record in holdfast.open(store).run(run.number).records()
    )


def test_a_partial_restore_loads_what_was_named_and_says_what_it_left(store: Path) -> None:
    """As the first call of a new run it takes the place of resuming: everything else is as the program made it."""
    made, digest = _tuned(store)
    assert made == []
    there, whole, _ = _another(store)
    with there:
        there.restore("run-001@4")
    assert digest == digest_of(whole)


def test_a_partial_start_that_is_run_again_goes_on_with_its_own_work(store: Path) -> None:
    """I5: the script says the same at every start, and a restart must not begin from zero and delete the real work."""
    assert _tuned(store)[0] == []  # killed before its first save
    assert _tuned(store, 4)[0] == [0, 1, 2, 3]
    assert _tuned(store, 8)[0] == [4, 5, 6, 7]


def test_a_partial_restore_of_ones_own_run_resumes(store: Path) -> None:
    ckpt, model, optimizer = _another(store)
    with ckpt:
        assert ckpt.restore(only=["model"]) == []
        assert (ckpt.step, digest_of(model, optimizer)) == (4, expected()[4])
        assert ckpt.restore("@2", only=["model"]) == ["optimizer"]
        assert ckpt.step == 4


@pytest.mark.parametrize("saver", ["inline", "process"])
def test_a_partial_start_that_could_not_be_noted_is_made_again(
    store: Path, monkeypatch: pytest.MonkeyPatch, saver: str
) -> None:
    """The second try must not be taken for a later restore: the run would go on without a saver, or a start."""
    model, optimizer = tiny(seed=99)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(store, run="tuned", state=state, save=every(steps=2), saver=saver) as ckpt:
        with monkeypatch.context() as patched:
            patched.setattr(Launch, "record_start", _full)
            with pytest.raises(errors.StorageFull):
                ckpt.restore("toy@4", only=["model"])
        assert ckpt.restore("toy@4", only=["model"]) == ["optimizer"]
        for _ in ckpt.steps(4):
            one_step(model, optimizer)
    run = holdfast.open(store).run(2)
    assert [record.step for record in run.records()] == [2, 4]
    assert [start.resumed_from.step for start in run.starts()] == [4]


def test_a_partial_start_that_could_not_be_noted_is_told_as_a_failure(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny(seed=99)
    monkeypatch.setattr(Launch, "record_start", _full)
    with Checkpointer(store, run="tuned", state={"model": model}) as ckpt, pytest.raises(errors.StorageFull):
        ckpt.restore("toy@4", only=["model"])
    (one,) = timeline_of(gather(holdfast.open(store).run(2)).history).accounts
    assert (one.ending, one.why, one.done) == (Ending.FAILED, "StorageFull: no space for the start", 0)


def test_a_restore_that_could_not_be_noted_leaves_nothing_that_is_used(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is that of another timeline by then: saved in the old one, it would not be the head."""
    ckpt, model, optimizer = _another(store)
    for step in ckpt.steps(6):
        one_step(model, optimizer)
        if step == 4:
            break
    with monkeypatch.context() as patched:
        patched.setattr(Launch, "record_start", _full)
        with pytest.raises(errors.StorageFull):
            ckpt.restore("@2")
    with pytest.raises(errors.Unusable):
        ckpt.save()
    ckpt.close()
    assert max(steps_of(store)) == 4


def _full(*_: object) -> None:
    raise errors.StorageFull("no space for the start")


def test_a_partial_restore_of_nothing_is_an_error(tmp_path: Path) -> None:
    ckpt, _, _ = _another(tmp_path / "s")
    with ckpt, pytest.raises(errors.NothingToResume):
        ckpt.restore(only=["model"])


def test_every_difference_is_in_one_error_and_nothing_has_changed(store: Path) -> None:
    """Users-ask 27 and 38: surplus and missing names, another shape, another dtype."""
    import torch

    model, _ = tiny(seed=99, width=33)
    extra = torch.nn.Linear(2, 2)
    before = digest_of(model)
    ckpt = Checkpointer(store, run="toy", state={"model": model.to(torch.float64), "extra": extra})
    for _ in range(2):  # it stays an error, and never becomes a half-restored state
        with pytest.raises(errors.StateMismatch) as caught:
            next(ckpt.steps(9))
        said = str(caught.value)
        assert all(word in said for word in ("extra", "optimizer", "model/weight", "model/bias", "nothing was changed"))
    assert digest_of(model.to(torch.float32)) == before
    assert steps_of(store) == [2, 4]
    ckpt.close()


def test_after_a_torn_restore_nothing_more_is_done(store: Path) -> None:
    """I5: what is half loaded is never trained on, and never saved."""
    for path in store.glob("data/runs/001/*.pack"):
        data = bytearray(path.read_bytes())
        data[4096 : 4096 + 64] = bytes(64)
        data[70:200] = bytes(130)
        path.write_bytes(bytes(data))
    ckpt, _, _ = _another(store)
    with pytest.raises(errors.RefusedFresh):
        next(ckpt.steps(9))
    for use in (ckpt.save, ckpt.restore, lambda: next(ckpt.steps(9))):
        with pytest.raises(errors.Unusable, match="half-restored"):
            use()
    ckpt.close()
    assert len(records_of(store)) == 2


def test_a_run_that_is_resumed_at_its_end_keeps_its_place_in_the_data_for_a_longer_one(tmp_path):
    """Ended by a kill after the last save: the launch after it only saves the end, and has drawn nothing."""
    data = TensorDataset(torch.arange(48.0).reshape(48, 1))
    seen = []

    def live(total, die_at=None):
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        state = {"model": model, "optimizer": optimizer}
        loader = DataLoader(data, batch_sampler=holdfast.Sampler(data, batch_size=4, shuffle=False))
        with Checkpointer(tmp_path, run="x", state=state, save=every(steps=2)) as ckpt:
            for step, (batch,) in ckpt.batches(loader, total_steps=total):
                seen.append((step, batch[0].item()))
                model(batch).sum().backward()
                optimizer.step()
                if step + 1 == die_at:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(6, die_at=5)
    live(4)
    live(6)
    assert dict(seen)[4] == 16.0


def test_the_end_is_saved_before_the_best_one_is_put_in_its_place(tmp_path: Path) -> None:
    """``restore("@best:loss", only=["model"])`` behind the loop: final had those weights beside the optimizer's end."""
    model, optimizer = tiny()
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path / "s", run="toy", state=state, save=every(steps=4), saver="inline") as ckpt:
        for step in ckpt.steps(7):
            one_step(model, optimizer)
            ckpt.log(loss=abs(step - 3) + 1.0)
        end = digest_of(model, optimizer)
        ckpt.restore("@best:loss", only=["model"])
        best = digest_of(model)
    assert (ckpt.last.step, ckpt.last.kind) == (7, Kind.FINAL)
    assert best == digest_of(model), "nothing takes it back"
    model, optimizer = tiny(seed=5)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path / "s", run="toy", state=state, saver="inline") as ckpt:
        ckpt.restore()
    assert digest_of(model, optimizer) == end != best


def _ended(store: Path, then, saver: str = "inline", total: int = 6) -> tuple[list[int], str, str]:
    """A launch up to its end, and something behind it; the steps that were made, and what was live before and after."""
    model, optimizer = tiny()
    made, state = [], {"model": model, "optimizer": optimizer}
    with Checkpointer(store, run="toy", state=state, save=every(steps=4), keep=latest(3), saver=saver) as ckpt:
        for step in ckpt.steps(total):
            made.append(step)
            one_step(model, optimizer)
        before = digest_of(model, optimizer)
        then(ckpt)
    return made, before, digest_of(model, optimizer)


def _account(store: Path, launch: int):
    return timeline_of(gather(holdfast.open(store).run(1)).history).accounts[launch - 1]


def _nothing(ckpt: Checkpointer) -> None:
    """Nothing is done behind the end."""


@pytest.mark.parametrize("saver", ["inline", "process"])
def test_a_tag_behind_a_restore_of_parts_names_what_is_live(tmp_path: Path, saver: str) -> None:
    """It was given to the final checkpoint, without a word; and that has other weights."""
    store, tagged = tmp_path / "s", []

    def best(ckpt: Checkpointer) -> None:
        ckpt.restore("@4", only=["model"])
        tagged.append(ckpt.save(tag=f"best-model-{len(tagged)}", wait="durable"))

    for launch in (1, 2):
        made, end, live = _ended(store, best, saver)
        assert (len(made), end) == (6 if launch == 1 else 0, expected()[6]), "the end is what it was"
        assert (tagged[-1].step, tagged[-1].kind) == (6, Kind.MANUAL)
        assert _account(store, launch).ending is Ending.COMPLETED
    for tag in ("best-model-0", "best-model-1"):
        assert _ended(store, lambda ckpt, tag=tag: ckpt.restore(tag))[1:] == (end, live)
    assert live != end
    assert [record.kind for record in records_of(store)].count(Kind.FINAL) == 1


def test_a_save_between_two_loops_has_what_was_restored_into_it(tmp_path: Path) -> None:
    """And the training goes on from there, on a timeline that follows the checkpoint that was there before."""
    store = tmp_path / "s"
    model, optimizer = tiny()
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(store, run="toy", state=state, save=every(steps=2), keep=latest(9)) as ckpt:
        for step in ckpt.steps(9):
            one_step(model, optimizer)
            ckpt.log(before=1.0)
            if step == 3:
                break
        assert ckpt.save().address == ckpt.last.address
        ckpt.restore("@2", only=["model"])
        ckpt.log(loss=1.0)
        mixed, record = digest_of(model, optimizer), ckpt.save(tag="mixed")
        assert ckpt.save() == record, "there is one checkpoint of it"
        for _ in ckpt.steps(6):
            one_step(model, optimizer)
    found = records_of(store)
    assert [(one.timeline, one.step) for one in found] == [(0, 2), (0, 4), (1, 4), (1, 6)]
    assert [one.metrics for one in found[1:3]] == [{"before": 1.0}, {"loss": 1.0}]
    assert found[2].parent.step == 4
    model, optimizer = tiny(seed=5)
    with Checkpointer(store, run="toy", state={"model": model, "optimizer": optimizer}) as ckpt:
        ckpt.restore("mixed")
    assert digest_of(model, optimizer) == mixed


@pytest.mark.parametrize("saver", ["inline", "process"])
@pytest.mark.parametrize("then", ["nothing", "save", "error"])
def test_what_is_restored_behind_the_end_is_looked_at_and_the_run_stays_finished(
    tmp_path: Path, then: str, saver: str
) -> None:
    """It passed for going back: the same command made the steps from there on again."""
    store = tmp_path / "s"

    def look(ckpt: Checkpointer) -> None:
        ckpt.restore("@4")
        assert ckpt.step == 4
        if then == "save":
            ckpt.save(tag="looked-at")
        elif then == "error":
            raise Stop

    if then == "error":
        with pytest.raises(Stop):
            _ended(store, look, saver)
    else:
        assert _ended(store, look, saver)[2] == expected()[4]
    one = _account(store, 1)
    assert one.ending is (Ending.FAILED if then == "error" else Ending.COMPLETED)
    assert (one.done, one.useful, one.lost) == (6, 6, 0)
    for _ in range(2):
        assert _ended(store, look if then == "nothing" else _nothing, saver)[:2] == ([], expected()[6])
    assert _ended(store, _nothing, total=8)[:2] == ([6, 7], expected()[8]), "with more steps it goes on from its end"


def test_a_loop_behind_a_restore_at_the_end_trains_on_from_there(tmp_path: Path) -> None:
    model, optimizer = tiny()
    made, state = [], {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path / "s", run="toy", state=state, save=every(steps=4)) as ckpt:
        for total in (6, 5):
            if total == 5:
                ckpt.restore("@4")
            for step in ckpt.steps(total):
                made.append(step)
                one_step(model, optimizer)
    assert made == [0, 1, 2, 3, 4, 5, 4]
    last = records_of(tmp_path / "s")[-1]
    assert (last.timeline, last.step, last.kind) == (1, 5, Kind.FINAL)
    assert len(holdfast.open(tmp_path / "s").run(1).starts()) == 2


def test_a_signal_that_came_with_the_last_step_does_not_pre_empt_what_is_looked_at(tmp_path: Path) -> None:
    def then(step: int, ckpt: Checkpointer) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    model, optimizer = tiny()
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path / "s", run="toy", state=state, save=every(steps=4)) as ckpt:
        for step in ckpt.steps(6):
            one_step(model, optimizer)
            then(step, ckpt)
        ckpt.restore("@4")
    assert ckpt.preempted is None
    assert _account(tmp_path / "s", 1).ending is Ending.COMPLETED
