"""Names from elsewhere mean one thing each; the table of the page is run line by line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from holdfast import never
from holdfast.errors import InvalidInput
from holdfast.recovery.configuring.aliases import ALIASES
from holdfast.recovery.configuring.arguments import arguments_of
from holdfast.recovery.launching.choice import NewRun, new_run
from holdfast.state.per_rank import per_rank

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def rows() -> list[tuple[str, str]]:
    """The lines of the tables of aliases: what is written, and what it is the same as."""
    text = (
        PAGE.read_text()
        .partition("## Names from elsewhere")[2]
        .partition("## When")[0]
        .replace("\\|", "\N{BROKEN BAR}")
    )
    found = re.findall(r"^\| `([^|]+)` \| ([^|]+) \|$", text, re.MULTILINE)
    return [(left, right.replace("\N{BROKEN BAR}", "|")) for left, right in found]


def written(left: str) -> dict:
    """``a: 1, b: 2`` as a mapping; ``no`` is text, as in YAML 1.2."""
    pairs = (part.split(": ", 1) for part in left.split(", "))
    return {key: value if value == "no" else yaml.safe_load(value) for key, value in pairs}


def state() -> dict:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer)}


def shown(found: dict) -> set[str]:
    """Arguments as the page writes them."""
    told = {name: str(value) for name, value in found.items() if name not in ("state", "not_restored")}
    if isinstance(found.get("run"), NewRun):
        told["run"] = "new_run()"
    if list(found["state"]) != ["model", "optimizer", "scheduler"]:
        told["state"] = ", ".join(found["state"])
    if "not_restored" in found:
        told["not_restored"] = ", ".join(found["not_restored"])
    return {f"{name}: {text}" for name, text in told.items()}


@pytest.mark.parametrize(("left", "right"), rows())
def test_an_alias_means_what_the_page_says(left, right):
    wanted = set() if right == "nothing" else set(re.findall(r"`([^`]+)`", right))
    assert shown(arguments_of(written(left), {"state": state()})) == wanted


def test_the_page_has_every_alias():
    there = {key for left, _ in rows() for key in written(left)}
    assert there == set(ALIASES)


CONTRADICTIONS = [
    ({"save_strategy": "epoch", "save_steps": 100}, ("save_strategy", "save_steps")),
    ({"save_strategy": "no", "save_every_n_epochs": 1}, ("save_strategy", "save_every_n_epochs")),
    ({"save_steps": 5, "save_every_n_epochs": 1}, ("save_steps", "save_every_n_epochs")),
    ({"save_steps": 5, "save": "every(steps=6)"}, ("save_steps", "save")),
    ({"output_dir": "a", "base_dir": "b"}, ("output_dir", "base_dir")),
    ({"output_dir": "a", "store": "b"}, ("output_dir", "store")),
    ({"run_name": "a", "run_number": 3}, ("run_name", "run_number")),
    ({"save_total_limit": 2, "keep_last_n": 3}, ("save_total_limit", "keep_last_n")),
    ({"save_total_limit": 2, "keep": "latest(3)"}, ("save_total_limit", "keep")),
    ({"monitor": "a", "metric_for_best_model": "b"}, ("monitor", "metric_for_best_model")),
    ({"monitor": "a", "mode": "min", "greater_is_better": True}, ("mode", "greater_is_better")),
    ({"monitor": "f1", "metric_for_best_model": "f1"}, ("monitor", "metric_for_best_model")),
    ({"resume_from_checkpoint": True, "resume_from_run": 3}, ("resume_from_checkpoint", "resume_from_run")),
    ({"resume_from_checkpoint": True, "resume": "auto"}, ("resume_from_checkpoint", "resume")),
    ({"save_only_model": True, "save_optimizer_state": True}, ("save_only_model", "save_optimizer_state")),
    ({"save_optimizer_state": False, "restore_optimizer_state": True}, ("save_optimizer_state", "restore_optimizer")),
    ({"overwrite_output_dir": True, "run_number": 3}, ("overwrite_output_dir", "run")),
    ({"overwrite_output_dir": True, "run": "run-003"}, ("overwrite_output_dir", "run is run-003")),
    ({"overwrite_output_dir": True, "run_name": "run-003"}, ("overwrite_output_dir", "run_name is run-003")),
    ({"overwrite_output_dir": True, "resume_from_checkpoint": True}, ("overwrite_output_dir", "resume")),
]


@pytest.mark.parametrize(("source", "named"), CONTRADICTIONS)
def test_two_that_contradict_each_other_are_refused_with_both_named(source, named):
    with pytest.raises(InvalidInput) as caught:
        arguments_of(source)
    assert [name for name in named if name not in str(caught.value)] == []


@pytest.mark.parametrize(
    "source",
    [
        {"save_steps": 5, "save": "every(steps=5)"},
        {"save_strategy": "epoch", "save_every_n_epochs": 1},
        {"output_dir": "a", "base_dir": "a", "store": "a"},
        {"save_total_limit": 2, "keep_last_n": 2, "keep": "latest(2)"},
        {"monitor": "f1", "mode": "max", "metric_for_best_model": "f1", "greater_is_better": True},
        {"monitor": "val_loss", "metric_for_best_model": "val_loss"},
        {"overwrite_output_dir": False, "run_number": 3},
        {"load_best_model_at_end": False},
        {"save_only_model": False, "save_optimizer_state": True},
        {"save_strategy": False, "save": "never()"},
    ],
)
def test_saying_the_same_twice_is_no_contradiction(source):
    arguments_of(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"save_steps": 0.1}, "save_steps: wants an integer above 0 (a share"),
        ({"save_steps": 500.5}, "save_steps: wants an integer above 0"),
        ({"save_steps": float("inf")}, "save_steps: wants an integer above 0"),
        ({"save_steps": 0.0}, "save_steps: wants an integer above 0"),
        (
            {"resume_from_run": "auto"},
            "resume_from_run: wants the number or the name of a run (auto, must, never are none",
        ),
        ({"resume_from_run": "must"}, "say them as resume"),
        ({"resume_from_run": "never"}, "not 'never'"),
        ({"save_total_limit": 0}, "every(steps=1)"),
        ({"keep_last_n": -1}, "every(steps=1)"),
        ({"save_strategy": "sometimes"}, "no, steps, epoch or best"),
        ({"save_strategy": "best"}, "save_strategy: the best by which metric?"),
        ({"greater_is_better": True}, "greater_is_better: by which metric?"),
        ({"mode": "max"}, "mode: by which metric?"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: by which metric?"),
        ({"save_safetensors": False}, "pickle"),
        ({"overwrite_output_dir": "yes"}, "true or false"),
        ({"run_number": "003"}, "an integer above 0"),
        ({"monitor": "a b"}, "monitor"),
    ],
)
def test_what_has_no_meaning_here_is_refused_with_the_reason(source, said):
    with pytest.raises(InvalidInput) as caught:
        arguments_of(source)
    assert said in str(caught.value)


def test_overwriting_never_deletes_and_keeps_the_name():
    assert arguments_of({"overwrite_output_dir": True, "run_name": "gpt2"})["run"] == new_run("gpt2")
    assert arguments_of({"overwrite_output_dir": True}, {"run": "b"})["run"] == new_run("b")


def test_what_changes_nothing_is_said(caplog):
    caplog.set_level("INFO")
    arguments_of({"save_safetensors": True, "load_best_model_at_end": True, "metric_for_best_model": "f1"})
    assert "save_safetensors changes nothing" in caplog.text
    assert "ckpt.restore('@best:f1:max', only=['model'])" in caplog.text


def test_what_is_left_out_is_found_by_its_kind_and_not_by_its_name():
    model, optimizer, scheduler = state().values()
    odd = {"net": model, "a": [optimizer], "b": per_rank(optimizer), "c": scheduler, "d": {"x": optimizer, "y": model}}
    assert list(arguments_of({"save_optimizer_state": False}, {"state": odd})["state"]) == ["net", "c", "d"]


def test_without_a_state_nothing_is_left_out():
    assert arguments_of({"save_optimizer_state": False}) == {}


@pytest.mark.parametrize(
    ("whole", "same"),
    [
        ({"save_steps": 500.0}, {"save_steps": 500}),
        ({"save_steps": 1.0}, {"save_steps": 1}),
        ({"save_total_limit": 2.0}, {"save_total_limit": 2}),
        ({"resume_from_run": 3.0}, {"resume_from_run": 3}),
    ],
)
def test_a_count_may_be_written_as_tools_that_write_json_do(whole, same):
    """It was refused as a share of all steps."""
    assert arguments_of(whole) == arguments_of(same)
    assert str(arguments_of(whole)) == str(arguments_of(same))


@pytest.mark.parametrize("word", [False, "no"])
def test_no_is_no_whatever_the_reader_of_the_file_has_made_of_it(word):
    """A reader of YAML 1.1, as many programs have, makes false of it: that is what it means."""
    assert arguments_of({"save_strategy": word}) == {"save": never()}
    with pytest.raises(InvalidInput, match="no, steps, epoch or best, not True"):
        arguments_of({"save_strategy": True})
