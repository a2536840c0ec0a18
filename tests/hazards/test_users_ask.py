"""What users of checkpoint tools complain about most, as sequences: what no other test here reproduces."""

from __future__ import annotations

import ast
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lives import Death, Program, filled, line, lived, model_of, records, stored
from torch import nn
from toy_training import finished

import holdfast
from holdfast import Checkpointer, best, every, latest
from holdfast.catalog.marks import read_marks
from holdfast.catalog.naming.references import resolve
from holdfast.catalog.verifying.verify import verify
from holdfast.cli.app import app
from holdfast.errors import NothingToResume, RestoreFailed, StateMismatch, StorageError
from holdfast.ids import RunNumber
from holdfast.records import MarkKind
from holdfast.recovery.environment.launcher import command_line, environment_facts
from holdfast.saver.saving import Saving
from holdfast.storage.files import Files
from holdfast.testing.faults import CountedFiles, HookedFiles, Op


def toy(value: float = 0.0):
    model = filled(nn.Linear(20, 20), value)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}


def train(folder, total, *, state=None, die=None, log=None, **options):
    state = toy() if state is None else state
    options = {"run": "r", "save": every(steps=1), "keep": latest(99), **options}
    with Checkpointer(folder, state=state, **options) as ckpt:
        for step in ckpt.steps(total):
            state["optimizer"].step()
            filled(state["model"], step + 1.0)
            if log is not None:
                ckpt.log(**log(step))
            if step == die:
                raise Death
    return ckpt


# --- Order and durability


def test_a_record_appears_after_all_that_it_names_and_deletion_comes_after_that(tmp_path, monkeypatch):
    """Users-ask 3: the pointer moved, and the old ones went, when the save was dispatched. Here no sync comes late."""
    events: list[tuple[Op, str]] = []

    class Noted(HookedFiles):
        def around(self, event, run):
            result = run()
            name = str(event.target or event.path or "")
            events.append((event.op, name.removeprefix(str(tmp_path))))
            return result

    from holdfast.storage import opening
    from holdfast.storage.local import LocalStorage

    monkeypatch.setattr(opening, "LocalStorage", lambda root, **o: LocalStorage(root, files=Noted(), **o))
    train(tmp_path, 3, keep=latest(1))
    named = [(n, path) for n, (op, path) in enumerate(events) if op in (Op.LINK, Op.RENAME_NEW)]
    commits = [n for n, path in named if "/records/" in path]
    assert len(commits) == 3
    gone = [n for n, (op, path) in enumerate(events) if op is Op.UNLINK and "/records/" in path and ".tmp" not in path]
    assert min(gone) > commits[1], "the first one goes only when the second is there"
    for begin, commit in zip([-1, *commits], commits, strict=False):
        packs = [n for n, path in named if begin < n < commit and path.startswith("/data/")]
        trees = [n for n, path in named if begin < n < commit and "/trees/" in path]
        assert max(packs) < min(trees), "packs, then manifest, then record"
        for n in (*packs, *trees):
            after = [op for op, _ in events[n + 1 : commit]]
            assert Op.SYNC_FOLDER in after, "and the name is on the disk before the record is"


def test_two_trainings_of_one_run_never_break_a_checkpoint(tmp_path):
    """Users-ask 19: every process renamed tmp-checkpoint-N; one of two launches is fenced, and nothing is torn."""
    from toy_training import ended, forked

    def work():
        try:
            train(tmp_path / "s", 30)
        except holdfast.errors.Conflict:
            return "fenced"
        return "finished"

    pids = [forked(work, tmp_path / f"report{number}") for number in range(2)]
    assert [ended(pid) for pid in pids] == [0, 0]
    said = sorted((tmp_path / f"report{number}").read_text() for number in range(2))
    assert "finished" in said
    runs = holdfast.open(tmp_path / "s").runs()
    assert any(line(tmp_path / "s", info.number)[-1:] == [30] for info in runs)
    assert verify(holdfast.open(tmp_path / "s"), deep=True).ok


def test_state_that_appears_during_the_run_is_in_the_next_checkpoint(tmp_path):
    """Users-ask 24: a cached plan dropped new state, and the load failed on every rank."""
    model = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model[1].parameters())
    with Checkpointer(
        tmp_path, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=1), keep=latest(9)
    ) as ckpt:
        for step in ckpt.steps(3):
            if step == 1:
                model[1].register_buffer("seen", torch.zeros(300))
            if step == 2:
                optimizer.add_param_group({"params": list(model[0].parameters())})
            model(torch.randn(2, 16)).sum().backward()
            optimizer.step()
    counts = [record.tensors for record in records(tmp_path)]
    assert counts[0] < counts[1] < counts[2]


def test_ten_and_nine_are_numbers(tmp_path):
    """Users-ask 20: sorted as text, the newest was 9, and 800,000 steps were run again."""
    train(tmp_path, 11)
    assert holdfast.open(tmp_path).run(1).lineage().head.step == 11
    with Checkpointer(tmp_path, run="r", state=toy()) as ckpt:
        ckpt.restore()
        assert ckpt.step == 11, "and the counter goes on where it was"


# --- Resuming


def test_a_second_resume_is_as_good_as_the_first(tmp_path):
    """Users-ask 7: right after the first resume and wrong after the second, over epochs and at their seams."""

    def build():
        model = model_of(seed=torch.initial_seed())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = torch.utils.data.TensorDataset(torch.arange(10.0).view(10, 1).expand(10, 16))
        loader = torch.utils.data.DataLoader(data, 2, shuffle=True)

        def update(batch):
            optimizer.zero_grad()
            model(batch[0]).mean().backward()
            optimizer.step()
            return batch[0][:, 0].tolist()

        return Program({"model": model, "optimizer": optimizer}, update, loader, {"save": every(steps=1)})

    whole = lived(tmp_path / "whole", build, total=12)
    assert lived(tmp_path / "torn", build, total=12, deaths=range(2, 12)) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("optimizer"), "optimizer"),
        (lambda s: s.update(extra=nn.Linear(2, 2)), "extra"),
        (lambda s: s.update(model=nn.Linear(20, 21)), "model/weight"),
        (lambda s: s.update(model=nn.Linear(20, 20).double()), "model/weight"),
        (lambda s: s.update(model=nn.Linear(20, 20, bias=False)), "model/bias"),
    ],
    ids=["an object is gone", "an object is new", "another shape", "another dtype", "a parameter is gone"],
)
def test_a_load_is_whole_or_nothing(tmp_path, change, said):
    """Users-ask 27: partial loads reported as success while the rest stayed random."""
    train(tmp_path, 1)
    state = toy(-1.0)
    change(state)
    if "optimizer" in state:
        state["optimizer"] = torch.optim.SGD(state["model"].parameters(), lr=0.0)
    before = {key: tensor.clone() for key, tensor in state["model"].state_dict().items()}
    with Checkpointer(tmp_path, run="r", state=state) as ckpt, pytest.raises(StateMismatch, match=said):
        ckpt.restore()
    assert all(torch.equal(before[key], tensor) for key, tensor in state["model"].state_dict().items())


def test_a_partial_load_is_asked_for_by_name_and_says_what_it_left(tmp_path):
    """Users-ask 27."""
    train(tmp_path, 2)
    model = filled(nn.Linear(20, 20), -1.0)
    with Checkpointer(tmp_path, run=holdfast.new_run("warm-start"), state={"model": model}) as ckpt:
        left = ckpt.restore("r@2", only=["model"])
        assert ckpt.step == 0
    assert model.weight[0, 0].item() == 2.0
    assert any("optimizer" in name for name in left)


def test_the_best_value_is_known_after_a_resume(tmp_path):
    """Users-ask 30: the tracker was a plain number that began anew, and a worse model replaced the best one."""
    losses = {0: 3.0, 1: 1.0, 2: 2.5, 3: 2.0, 4: 0.5}
    options = {"save": best("loss") | every(steps=3), "keep": best("loss") | latest(1)}
    with pytest.raises(Death):
        train(tmp_path, 5, log=lambda step: {"loss": losses[step]}, die=3, **options)
    assert resolve(holdfast.open(tmp_path), "r@best:loss").step == 2
    train(tmp_path, 4, log=lambda step: {"loss": losses[step]}, **options)
    assert resolve(holdfast.open(tmp_path), "r@best:loss").step == 2, "2.0 is no new best of this run"
    train(tmp_path, 5, log=lambda step: {"loss": losses[step]}, **options)
    assert resolve(holdfast.open(tmp_path), "r@best:loss").step == 5
    assert stored(tmp_path, "r@best:loss", nn.Linear(20, 20)).weight[0, 0].item() == 5.0


def test_a_metric_of_one_step_is_never_filed_under_another(tmp_path):
    """Users-ask 30 and hazard 36: measured after the step's save, it belongs to the record of that step."""
    state = toy()
    with Checkpointer(tmp_path, run="r", state=state, save=every(steps=1), keep=latest(9)) as ckpt:
        for step in ckpt.steps(3):
            if step:
                ckpt.log(val_loss=float(step))
            state["optimizer"].step()
        ckpt.log(val_loss=3.0)
    marks = read_marks(holdfast.open(tmp_path), RunNumber(1))
    found = {r.step: {**r.metrics, **(marks[r.id].metrics(r) if r.id in marks else {})} for r in records(tmp_path)}
    assert found == {step: {"val_loss": float(step)} for step in (1, 2, 3)}


def test_an_optimizer_that_changes_what_it_loads_stops_the_resume(tmp_path):
    """Users-ask 29 and 39: fresh adapters, NaN on the first step; the live state must be what was stored."""

    class Lossy(torch.optim.SGD):
        def load_state_dict(self, state):
            for group in state["param_groups"]:
                group["lr"] *= 2
            super().load_state_dict(state)

    def made():
        model = nn.Linear(16, 1)
        return {"model": model, "optimizer": Lossy(model.parameters(), lr=0.1)}

    with Checkpointer(tmp_path, run="r", state=made()) as ckpt:
        ckpt.save()
    with Checkpointer(tmp_path, run="r", state=made()) as ckpt, pytest.raises(RestoreFailed, match="lr"):
        ckpt.restore()


def test_one_command_serves_the_first_launch_and_every_later_one(tmp_path):
    """Users-ask 43: and must says so where there is nothing."""
    with pytest.raises(NothingToResume):
        train(tmp_path / "s", 3, resume="must")
    assert not (tmp_path / "s").exists()
    for death in (0, 1, 2, None):
        try:
            train(tmp_path / "s", 4, die=death)
        except Death:
            assert death is not None
    assert line(tmp_path / "s") == [1, 2, 3, 4]
    assert [s.resumed_from and s.resumed_from.step for s in holdfast.open(tmp_path / "s").run(1).starts()] == [
        None,
        None,
        1,
        2,
    ]


def test_a_finished_run_is_not_trained_again_and_a_larger_total_goes_on(tmp_path):
    """Users-ask 20 and 43: started once more by a restart loop, nothing is repeated and nothing is new."""
    train(tmp_path, 3)
    before = [record.id for record in records(tmp_path)]
    state = toy(-1.0)
    with Checkpointer(tmp_path, run="r", state=state) as ckpt:
        assert list(ckpt.steps(3)) == []
    assert state["model"].weight[0, 0].item() == 3.0
    assert [record.id for record in records(tmp_path)] == before
    train(tmp_path, 4)
    assert line(tmp_path) == [1, 2, 3, 4]


def test_branching_from_an_older_step_leaves_the_first_run_as_it_is(tmp_path):
    """Users-ask 37: users want fork and rewind with lineage."""
    train(tmp_path, 4)
    train(tmp_path, 3, run="branch", resume="r@2")
    store = holdfast.open(tmp_path)
    assert line(tmp_path, 1) == [1, 2, 3, 4]
    assert store.run(2).info.forked_from.step == 2
    assert [record.step for record in records(tmp_path, 2)] == [3]
    assert stored(tmp_path, "branch", nn.Linear(20, 20)).weight[0, 0].item() == 3.0


# --- Memory, security, reading without torch


def test_saving_many_times_does_not_grow(tmp_path):
    """Users-ask 13: two more gigabytes of memory with each save."""

    def grown():
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        state = {"model": nn.Linear(1000, 500)}
        with Checkpointer(tmp_path / "s", run="r", state=state, save=every(steps=1), keep=latest(1)) as ckpt:
            sizes = []
            for _ in ckpt.steps(24):
                with torch.no_grad():
                    state["model"].weight.add_(1)
                sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        return max(sizes[12:]) - max(sizes[6:12])

    assert int(finished(grown, tmp_path / "report")) < 12 * 2_000_000 / 3, "not even a third of what was saved"


def test_nothing_in_a_checkpoint_is_ever_executed(tmp_path):
    """Users-ask 15: the resume path ran pickle, and random states were the usual reason."""
    state = toy() | {"own": np.random.default_rng(1)}
    with Checkpointer(tmp_path, run="r", state=state) as ckpt:
        ckpt.values["x"] = {1, (2, 3)}
        ckpt.save()
    stores = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in stores if path.read_bytes()[:2] == b"\x80\x04" or path.suffix in (".pt", ".pkl")]
    source = Path(holdfast.__file__).parent
    names = {
        name
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [node.func.id]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            else []
        )
    }
    assert not names & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "eval", "exec"}


def test_small_objects_of_a_store_are_readable_json(tmp_path):
    """Users-ask 21 and 42: no model code, no GPU, no torch; a text editor will do."""
    train(tmp_path, 1, config={"lr": 0.1})
    names = [path for path in (tmp_path / "catalog").rglob("*.json") if "trees" not in path.parts]
    assert len(names) >= 4
    for path in names:
        assert isinstance(json.loads(path.read_text()), dict)


def test_the_command_line_answers_what_is_inside(tmp_path):
    """Users-ask 42 and 28: what is there, what is in it, why it is kept, what would go, is it sound."""
    from typer.testing import CliRunner

    train(tmp_path, 3, config={"note": "[/x] exp[lr=1e-4]"}, log=lambda step: {"loss": math.nan})

    def said(*words):
        result = CliRunner().invoke(app, [*words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "run-001" in said("runs", "--store", str(tmp_path))
    assert "3" in said("ls", "--store", str(tmp_path))


def test_secrets_are_not_written_down(tmp_path, monkeypatch):
    """Hazard 49: of the environment an allow-list is told; options and keys that look secret are blotted out."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr("sys.argv", ["train.py", "--hub-token", "hunter2", "--api-key=hunter2", "--lr", "0.1"])
    train(tmp_path, 1, config={"lr": 0.1, "api_key": "hunter2", "hub": {"password": "hunter2"}})
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    assert "0.1" in command_line()
    assert environment_facts()["slurm_job_id"] == "77"


# --- Failures that must not be lost


def test_the_final_save_is_awaited_and_its_failure_is_the_exit_code(tmp_path):
    """Users-ask 11: the process exited 0 having written no checkpoint."""
    from toy_training import ended, forked

    def work():
        def fails(self, request, shape, content):
            raise StorageError("no space left")

        Saving.save = fails
        train(tmp_path / "s", 2, save=every(steps=100))

    assert ended(forked(work)) != 0
    assert ended(forked(lambda: train(tmp_path / "t", 2, save=every(steps=100)))) == 0
    assert records(tmp_path / "t")[-1].step == 2


@pytest.mark.parametrize("on_save_error", [None, "raise"])
def test_a_save_that_failed_is_made_up_for_by_the_next_one(tmp_path, monkeypatch, caplog, on_save_error):
    """Users-ask 14: one transient error ended a multi-day run; it is borne, and who wants it may catch it and go on."""
    state, failures, caught = toy(), [], []
    save = Saving.save

    def flaky(self, request, shape, content):
        if request.step == 2:
            failures.append(1)
            raise StorageError("EIO, for a while")
        return save(self, request, shape, content)

    monkeypatch.setattr(Saving, "save", flaky)
    options = {} if on_save_error is None else {"on_save_error": on_save_error}
    ckpt = Checkpointer(tmp_path, run="r", state=state, save=every(steps=2), keep=latest(9), **options)
    with ckpt:
        for _ in range(2):
            try:
                for step in ckpt.steps(5):
                    state["optimizer"].step()
                    filled(state["model"], step + 1.0)
            except StorageError as error:
                caught.append(error)
    steps = [record.step for record in records(tmp_path)]
    assert failures
    assert len(caught) == (on_save_error == "raise")
    assert "EIO, for a while" in caplog.text
    assert steps[-2:] == [4, 5]
    assert all(stored(tmp_path, f"r@{step}", nn.Linear(20, 20)).weight[0, 0].item() == step for step in steps)


def test_a_checkpoint_counts_as_verified_only_after_it_was_read_back(tmp_path):
    """Users-ask 4 and 5, hazard 38: written is not yet verified."""
    train(tmp_path, 3)
    store = holdfast.open(tmp_path)
    marks = read_marks(store, RunNumber(1))
    assert all(marks[record.id].verified for record in records(tmp_path))
    assert all(mark.kind is MarkKind.VERIFIED for r in records(tmp_path) for mark in marks[r.id].of(MarkKind.VERIFIED))


def test_files_are_made_with_the_umask_and_not_for_the_owner_alone(tmp_path):
    """Users-ask 2: write-then-rename turned 0644 into 0600 without a word."""

    def work():
        os.umask(0o027)
        train(tmp_path / "s", 1)
        return {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "s").rglob("*") if path.is_file()}

    assert finished(work, tmp_path / "report") == str({"0o640"})


def test_a_save_goes_through_one_seam_that_faults_can_sit_on():
    """Users-ask 2: what counts, kills and fails in other tests is what every real save goes through."""
    assert issubclass(CountedFiles, Files)
