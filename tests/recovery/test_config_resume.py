"""A path where a reference is wanted: as Hugging Face's ``resume_from_checkpoint`` takes it."""

from __future__ import annotations

import inspect
import json
import re

import pytest
import torch

import holdfast
from holdfast import every
from holdfast.catalog.store import open_store
from holdfast.errors import InvalidInput, NameTaken, NothingToResume, UnknownReference
from holdfast.ids import RunNumber
from holdfast.recovery.configuring.arguments import STORE, arguments_of
from holdfast.recovery.configuring.paths import reference_of


def trained(source, total=4):
    """The step that the training began with."""
    model = torch.nn.Linear(2, 1)
    ckpt = holdfast.Checkpointer.from_config(
        source, state={"model": model}, save=every(steps=2), keep=every(steps=1), saver="inline"
    )
    with ckpt:
        return next(iter(list(ckpt.steps(total))), total)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with one run, ``out`` in the folder in which the program runs."""
    monkeypatch.chdir(tmp_path)
    trained({"output_dir": "out", "run_name": "a"})
    return tmp_path / "out"


def test_a_training_goes_on_from_what_a_path_names(store):
    record = store / holdfast.open(store).run(1).records()[0].name
    for number, path in enumerate(
        ["out/a@2", "./out/run-001@2", store / "run-001@2", store.as_uri() + "/run-001@2", record], start=2
    ):
        assert trained({"output_dir": "out", "run_name": f"b{number}", "resume_from_checkpoint": str(path)}) == 2
    assert trained({"output_dir": "out", "run_name": "c", "resume_from_checkpoint": "out/catalog/runs/001"}, 6) == 4
    assert trained({"output_dir": "out", "run_name": "a", "resume_from_checkpoint": "out"}, 6) == 4


def test_the_store_of_a_path_is_the_one_that_counts(store):
    """That of Python, or the one that a Checkpointer has by itself."""
    link = store.with_name("link")
    link.symlink_to(store)
    for other in (store, str(store), store.as_uri(), "./out/", link):
        found = arguments_of({"output_dir": "x", "resume_from_checkpoint": "out/a@2"}, {"store": other})
        assert found["resume"] == "a@2"
    assert inspect.signature(holdfast.Checkpointer).parameters["store"].default == STORE
    assert arguments_of({"resume_from_checkpoint": f"{STORE}/a@2"})["resume"] == "a@2"


def test_in_the_folder_of_the_store_a_reference_is_still_one(store, monkeypatch):
    monkeypatch.chdir(store)
    (store / "gpt2").mkdir()
    assert [reference_of(text, ".") for text in ("gpt2", "run-001@2", ".", "./run-001@2")] == [
        "gpt2",
        "run-001@2",
        "must",
        "run-001@2",
    ]


def test_the_same_path_in_other_words_is_no_contradiction():
    source = {"store": "out", "resume": "run-003@5", "resume_from_checkpoint": "out/run-003@5"}
    assert arguments_of(source)["resume"] == "run-003@5"


@pytest.mark.parametrize("text", ["run-003@500", "gpt2", "@best:val_loss", "tag:v1", "auto", "must", "checkpoint-500"])
def test_a_reference_is_taken_as_it_is(store, text):
    (store.parent / "gpt2").mkdir()  # as the source of a training may be called
    assert reference_of(text, "out") == text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("out/checkpoint-500", "is no checkpoint of the store out, and those of other tools cannot be read yet"),
        ("hf/checkpoint-500", "those of other tools cannot be read yet: load it in the program"),
        ("checkpoint-500", "if a run or a tag is meant, write run:checkpoint-500 or tag:checkpoint-500"),
        ("model.pt", "those of other tools cannot be read yet"),
        ("./model.pt", "those of other tools cannot be read yet"),
        ("out/checkpoint-501", "there is nothing at 'out/checkpoint-501'"),
        ("out/run-001@x", "cannot read 'x' in the reference"),
        ("out/catalog", "is no checkpoint of the store out"),
        ("other/run-001", "is in the store {other}, and the store here is out"),
        ("nowhere/run-001", "there is nothing at 'nowhere/run-001'; write true for the newest checkpoint"),
        ("~/out/run-001", "'~' is not expanded"),
        ("s3://bucket/run-001", "cannot read the reference 's3://bucket/run-001'"),
        ("a" * 300 + "/b", "there is nothing at"),
        ("run-001@@5", "cannot read"),
        ("\0/x", "cannot read"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_key_and_path(store, tmp_path, path, said):
    (store / "checkpoint-500").mkdir()
    (tmp_path / "hf" / "checkpoint-500").mkdir(parents=True)
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "model.pt").write_bytes(b"PK")
    trained({"output_dir": "other", "run_name": "a"}, 2)
    file = tmp_path / "train.yaml"
    file.write_text(f"output_dir: out\nresume_from_checkpoint: {json.dumps(path)}\n")
    with pytest.raises(InvalidInput, match=r"^resume_from_checkpoint \(train.yaml, line 2\): ") as caught:
        arguments_of(file)
    assert said.format(other=tmp_path / "other") in str(caught.value)


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ({"metric_for_best_model": "f1"}, 2),
        ({"metric_for_best_model": "f1", "greater_is_better": False}, 1),
        ({"monitor": "f1"}, 1),
        ({"monitor": "f1", "mode": "max"}, 2),
    ],
)
def test_the_call_that_the_log_says_loads_the_best_one(tmp_path, caplog, words, step):
    """By ``@best:f1`` it was the worst one, where the greatest is best: a reference alone means the least."""
    caplog.set_level("INFO")
    model = torch.nn.Linear(2, 1)
    source = {"store": str(tmp_path / "s"), "save_steps": 1, "load_best_model_at_end": True, "saver": "inline", **words}
    with holdfast.Checkpointer.from_config(source, state={"model": model}) as ckpt:
        for index in ckpt.steps(5):
            torch.nn.init.constant_(model.weight, index + 1.0)
            ckpt.log(f1=(0.1, 0.9, 0.3, 0.5, 0.4)[index])
        reference = re.findall(r"ckpt.restore\('([^']+)', only=\['model'\]\)", caplog.text)[-1]
        ckpt.restore(reference, only=["model"])
        assert model.weight[0, 0].item() == step


def numbered(store, total=2, **words):
    """The run that a configuration comes to work on, and the steps that are made."""
    model = torch.nn.Linear(2, 1)
    source = {"base_dir": str(store), "save": "every(steps=2)", "saver": "inline", **words}
    with holdfast.Checkpointer.from_config(source, state={"model": model}) as ckpt:
        return len(list(ckpt.steps(total))), str(ckpt.last.address).partition("@")[0]


def test_a_configuration_that_numbers_its_runs_makes_the_next_one(tmp_path):
    """The first launch was refused: there is no run-001."""
    assert numbered(tmp_path, run_number=1) == (2, "run-001")
    assert numbered(tmp_path, 4, run_number=1) == (2, "run-001")
    assert numbered(tmp_path, 6, run_number=2, resume_from_run=1) == (2, "run-002")
    assert numbered(tmp_path, 8, run_number=2, resume_from_run=1) == (2, "run-002"), "again, it goes on"
    assert holdfast.open(tmp_path).run(2).info.forked_from.step == 4
    assert numbered(tmp_path, run_number=3) == (2, "run-003")


def test_a_number_that_is_not_the_next_one_is_a_slip(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(f"base_dir: {tmp_path / 's'}\nrun_number: 3\n")
    state = {"model": torch.nn.Linear(2, 1)}
    numbered(tmp_path / "s", run_number=1)
    said = r"run_number \(train.yaml, line 2\): 3: there is no run-003 .* say 2 for a new run, or leave run_number out"
    with pytest.raises(UnknownReference, match=said), holdfast.Checkpointer.from_config(file, state=state) as ckpt:
        next(iter(ckpt.steps(4)))
    with pytest.raises(NothingToResume, match=r"there is no run-002 yet \(run_number"):
        numbered(tmp_path / "s", run_number=2, resume_from_checkpoint=True)
    with pytest.raises(UnknownReference, match="run=2: there is no run-002"):
        numbered(tmp_path / "s", run=2)
    assert len(holdfast.open(tmp_path / "s").runs()) == 1


def test_a_number_that_somebody_else_has_taken_meanwhile_is_not_shared(tmp_path):
    store = open_store(tmp_path, create=True)
    store.create_run(number=RunNumber(1))
    with pytest.raises(NameTaken, match="run-001 was made by somebody else"):
        store.create_run(number=RunNumber(1))
    assert store.numbers() == [1]
