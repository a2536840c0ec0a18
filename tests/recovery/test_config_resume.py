"""A path where a reference is wanted: as Hugging Face's ``resume_from_checkpoint`` takes it."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

import holdfast
from holdfast import every
from holdfast.errors import InvalidInput
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
