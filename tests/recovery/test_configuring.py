"""Files and mappings become the arguments of a `Checkpointer`, or an error that names the key."""

from __future__ import annotations

import datetime
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from holdfast import Checkpointer, every, latest
from holdfast.errors import HoldfastError, InvalidInput
from holdfast.health import nonfinite, when
from holdfast.ids import RunNumber
from holdfast.recovery.configuring.arguments import arguments_of
from holdfast.recovery.launching.choice import NumberedRun, new_run
from holdfast.recovery.launching.keys import KEYS

EXAMPLES = {
    "store": "out",
    "run": "gpt2",
    "save": 'every(steps=500) | best("val_loss")',
    "keep": "latest(3)",
    "stage": "every(steps=10)",
    "config": {"lr": 0.1},
    "on_config_change": {"lr": "keep"},
    "resume": "must",
    "accumulate": 2,
    "prefix": "stage0.",
    "peer_timeout": 60,
    "codec": "zstd",
    "saver": "inline",
    "ram_budget": "8GB",
    "on_save_error": "tolerate(hours=1)",
    "on_full": "pause",
    "check_staging": True,
    "progress": False,
    "signals": ["SIGTERM", 10],
    "grace": 30,
    "notice": "aws",
    "health": ["when(nonfinite('loss'), stop())"],
    "watchdog": "watchdog(hung=600)",
    "good_after": 50,
    "not_restored": ["optimizer"],
}
"""One for each key that can be said in a file."""

WRONG = {
    "store": ("", 5),
    "run": (True, 0, 1.5, ["a"], "", "a b"),
    "save": (500, True, {"every": 5}, [], "every(5)", "latest(3)"),
    "keep": (3, "keep all", ["latest(3)", 5]),
    "stage": (10, "latest(1)"),
    "config": ("lr=0.1", 3, [1], datetime.date(2024, 1, 1)),
    "on_config_change": ("perhaps", 3, {"lr": "maybe"}),
    "resume": (True, 500, "out/checkpoint-500"),
    "accumulate": (0, "2", 1.5, True),
    "prefix": (1,),
    "peer_timeout": ("60", 0, -1, float("nan"), float("inf"), True),
    "codec": (1, "zst", ""),
    "saver": (True, "proces"),
    "ram_budget": (0, 1.5, True, "8 gigs", ""),
    "on_save_error": ("sometimes", True, [1], -1),
    "on_full": (False, "wait"),
    "check_staging": ("yes", 1),
    "progress": ("on", 0),
    "signals": ("SIGTERM", 15, ["SIGKIL"], ["SIGKILL"], [999], [True], [1.5], {"SIGTERM": 1}, b"x"),
    "grace": ("30s", 0),
    "notice": (True, "no"),
    "health": (True, [5], ["explode()"], "stop()"),
    "watchdog": (600, "stop()"),
    "good_after": (0, "100"),
    "not_restored": ("optimizer", [1], [""], {"optimizer": True}),
    "on_preempt": ("print",),
}


def test_every_argument_of_a_checkpointer_can_be_said_in_a_file_but_its_state():
    arguments = set(inspect.signature(Checkpointer).parameters) - {"state"}
    assert arguments - set(KEYS) == set()


def test_there_is_an_example_and_a_mistake_for_every_key():
    assert set(EXAMPLES) == set(KEYS) - {"on_preempt"}
    assert set(WRONG) == set(KEYS)


def test_everything_that_can_be_said_is_taken():
    found = arguments_of(EXAMPLES)
    assert set(found) == set(EXAMPLES)
    assert str(found["save"]) == EXAMPLES["save"]
    assert (found["keep"], found["peer_timeout"], found["signals"]) == (latest(3), 60.0, ("SIGTERM", 10))
    assert [str(rule) for rule in found["health"]] == ['when(nonfinite("loss"), stop())']


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG for value in WRONG[key]])
def test_a_value_of_the_wrong_kind_names_the_key(key, value):
    with pytest.raises(HoldfastError) as caught:
        arguments_of({key: value})
    assert str(caught.value).startswith(f"{key}: ")
    assert isinstance(caught.value, InvalidInput)


@pytest.mark.parametrize("word", ["off", "false"])
def test_off_is_no_checks_and_no_watchdog(tmp_path, word):
    """``health: off`` was read as a rule, and refused with words of Python."""
    path = tmp_path / "train.yaml"
    path.write_text(f"holdfast:\n  health: {word}\n  watchdog: {word}\n")
    assert arguments_of(path) == {"health": [], "watchdog": "off"}


def test_an_error_names_the_line_the_value_and_what_is_wanted(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("holdfast:\n  run: gpt2\n  accumulate: two\n")
    with pytest.raises(InvalidInput) as caught:
        arguments_of(path)
    assert str(caught.value) == "accumulate (train.yaml, line 3): wants an integer above 0, not the text 'two'"


@pytest.mark.parametrize(
    ("key", "value"), [(key, one) for key in WRONG for one in WRONG[key] if not isinstance(one, bytes | datetime.date)]
)
def test_a_value_of_the_wrong_kind_is_named_with_its_line(tmp_path, key, value):
    """Of some keys the value was looked at later, and where the line was not known."""
    path = tmp_path / "train.yaml"
    path.write_text(f"holdfast:\n  {key}: {json.dumps(value)}\n")
    with pytest.raises(InvalidInput) as caught:
        arguments_of(path)
    assert str(caught.value).startswith(f"{key} (train.yaml, line 2): ")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sav", "save"),
        ("signal", "signals"),
        ("save_step", "save_steps"),
        ("keep_last", "keep_last_n"),
        ("Grace", "grace"),
    ],
)
def test_a_key_that_is_not_known_is_refused_with_the_one_that_was_meant(key, meant):
    with pytest.raises(InvalidInput, match=re.escape(f"unknown key {key!r}, did you mean {meant!r}?")):
        arguments_of({key: 1})


def test_all_keys_that_are_not_known_are_named_with_their_lines(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text('save = "every(steps=5)"\nlearning_rate = 0.1\nkep = 3\n')
    with pytest.raises(InvalidInput) as caught:
        arguments_of(path)
    text = str(caught.value)
    assert "'learning_rate' (train.toml, line 2)" in text
    assert "'kep' (train.toml, line 3), did you mean 'keep'?" in text
    assert "under holdfast" in text


def test_a_null_is_as_if_the_key_were_not_there():
    assert arguments_of({"save": None, "save_steps": None, "run": None}) == {}


def test_a_list_of_policies_is_all_of_them():
    assert arguments_of({"save": ["every(steps=5)", "every(minutes=30)"]})["save"] == every(steps=5) | every(minutes=30)


def test_what_python_says_counts_by_whatever_name_it_is_in_the_file():
    source = {"save_strategy": "epoch", "run_name": "a", "keep_last_n": 2}
    found = arguments_of(source, {"save": every(steps=7), "run": "b"})
    assert (found["save"], found["run"], found["keep"]) == (every(steps=7), "b", latest(2))
    assert arguments_of(source, {"save_steps": 9})["save"] == every(steps=9)


@pytest.mark.parametrize(
    ("source", "python", "save", "keep"),
    [
        ({"metric_for_best_model": "f1"}, {"greater_is_better": False}, None, 'latest(3) | best("f1")'),
        ({"monitor": "f1", "keep_last_n": 2}, {"mode": "max"}, None, 'latest(2) | best("f1", mode="max")'),
        ({"monitor": "f1", "mode": "max"}, {"save_strategy": "best"}, 'best("f1", mode="max")', None),
        ({"save_steps": 5, "monitor": "f1"}, {"save_strategy": "best"}, 'best("f1")', None),
        ({"save_strategy": "best"}, {"monitor": "f1"}, 'best("f1")', 'latest(3) | best("f1")'),
        ({"greater_is_better": True}, {"monitor": "f1"}, None, 'latest(3) | best("f1", mode="max")'),
        ({"metric_for_best_model": "f1", "save_total_limit": 2}, {"monitor": "a"}, None, 'latest(2) | best("a")'),
        ({"save_total_limit": 2, "monitor": "a"}, {"keep_last_n": 4}, None, 'latest(4) | best("a")'),
        ({"save_strategy": "epoch"}, {"save_steps": 9}, "every(steps=9)", None),
        ({"save_strategy": "steps", "save_steps": 9}, {"save_strategy": "epoch"}, "every(epochs=1)", None),
        ({"save_strategy": "epoch", "save_steps": None}, {"save_strategy": "steps"}, "every(steps=500)", None),
        ({"save_steps": 9}, {"save_strategy": "steps"}, "every(steps=9)", None),
        ({"save": "every(steps=5)"}, {"save_steps": 9}, "every(steps=9)", None),
        (
            {"keep": 'latest(3) | best("f1")', "monitor": "f1"},
            {"mode": "max"},
            None,
            'latest(3) | best("f1", mode="max")',
        ),
        ({"monitor": "f1", "save_strategy": "best"}, {"keep": "latest(5)"}, 'best("f1")', "latest(5)"),
    ],
)
def test_names_from_elsewhere_in_python_go_together_with_those_of_the_file(source, python, save, keep):
    """Each of these was refused, for want of a metric that the file has, or forgot what the file says."""
    found = arguments_of(source, python)
    if save is not None:
        assert str(found["save"]) == save
    if keep is not None:
        assert str(found["keep"]) == keep


@pytest.mark.parametrize(
    ("source", "python", "keep"),
    [
        (
            {"metric_for_best_model": "f1", "greater_is_better": True},
            {"metric_for_best_model": "loss"},
            'latest(3) | best("loss")',
        ),
        ({"monitor": "acc", "mode": "max"}, {"metric_for_best_model": "val_loss"}, 'latest(3) | best("val_loss")'),
        ({"monitor": "acc", "mode": "max"}, {"monitor": "f1"}, 'latest(3) | best("f1")'),
        ({"monitor": "acc", "mode": "max"}, {"monitor": "acc"}, 'latest(3) | best("acc", mode="max")'),
    ],
)
def test_another_metric_in_python_does_not_take_the_direction_of_the_files(source, python, keep):
    """The worst checkpoints by the loss were kept."""
    assert str(arguments_of(source, python)["keep"]) == keep


@pytest.mark.parametrize(
    ("source", "python"),
    [
        ({"save_only_model": True, "restore_optimizer_state": True}, {}),
        ({"save_only_model": True}, {"restore_optimizer_state": True}),
        ({"save_optimizer_state": False}, {"restore_optimizer_state": True}),
        ({"restore_optimizer_state": True}, {"save_optimizer_state": False}),
    ],
)
def test_what_is_not_saved_cannot_be_restored_whoever_says_so(source, python):
    """Only the two in one place were refused."""
    with pytest.raises(
        InvalidInput, match=r"save_.* and restore_optimizer_state.*: what is not saved cannot be restored"
    ):
        arguments_of(source, python)


def test_what_python_says_the_file_does_not_say(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("overwrite_output_dir: true\nsave_only_model: true\nrun_number: 3\n")
    model = torch.nn.Linear(2, 1)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters())}
    found = arguments_of(path, {"overwrite_output_dir": False, "save_only_model": False, "state": state})
    assert (found["run"], found["state"]) == (NumberedRun(RunNumber(3), "run_number (train.yaml, line 3)"), state)
    found = arguments_of(path, {"run_name": "a", "save_optimizer_state": True, "state": state})
    assert (found["run"], found["state"]) == (new_run("a"), state)
    assert list(arguments_of(path, {"run_name": "a", "state": state})["state"]) == ["model"]


def test_two_of_python_still_contradict_each_other_and_so_do_two_of_the_file():
    with pytest.raises(InvalidInput, match=r"save \(from Python\) is .*, and save_steps \(from Python\) means"):
        arguments_of({}, {"save": every(steps=3), "save_steps": 9})
    with pytest.raises(InvalidInput, match=r"^save is .*, and save_steps means"):
        arguments_of({"save": "every(steps=3)", "save_steps": 9}, {"mode": "max", "monitor": "a"})


def test_an_alias_that_cannot_be_right_is_named_with_its_line(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text("\nrun_name = 'a b'\n")
    with pytest.raises(InvalidInput, match=r"^run_name \(train.toml, line 2\): not a run name: 'a b'"):
        arguments_of(path)


def test_objects_from_python_are_taken_as_they_are():
    rule, hook = when(nonfinite("loss")), print
    found = arguments_of({"health": [rule]}, {"run": new_run("x"), "on_preempt": hook})
    assert (found["health"], found["run"], found["on_preempt"]) == ([rule], new_run("x"), hook)


def test_a_mistake_in_python_is_refused_too():
    with pytest.raises(InvalidInput, match=r"unknown key 'sve' \(from Python\), did you mean 'save'"):
        arguments_of({}, {"sve": 1})


def parts() -> dict[str, object]:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "opt": optimizer, "sched": torch.optim.lr_scheduler.ConstantLR(optimizer)}


def test_a_name_of_not_restored_that_is_in_no_state_is_refused_with_its_line(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("run: a\nnot_restored: [shed]\n")
    said = (
        r"^not_restored \(train.yaml, line 2\): 'shed' is not in state, which has model, opt, sched; did you mean sched"
    )
    with pytest.raises(InvalidInput, match=said):
        arguments_of(path, {"state": parts()})


@pytest.mark.parametrize(
    ("source", "python", "left"),
    [
        ({"not_restored": ["opt"], "restore_optimizer_state": False}, {}, ("opt",)),
        ({"not_restored": ["sched"], "restore_optimizer_state": True}, {}, ("sched",)),
        ({"not_restored": ["opt"]}, {"not_restored": ["sched"]}, ("sched",)),
        ({"restore_optimizer_state": False}, {"not_restored": ["sched"]}, ("sched",)),
        ({"not_restored": ["sched"]}, {"restore_optimizer_state": False}, ("opt",)),
        ({"restore_optimizer_state": False}, {"restore_optimizer_state": True}, ()),
        ({"restore_optimizer_state": False}, {"restore_scheduler_state": False}, ("opt", "sched")),
        ({"not_restored": ["opt", "sched"], "save_optimizer_state": False}, {}, ("sched",)),
    ],
)
def test_what_is_not_restored_is_said_once(source, python, left):
    assert arguments_of(source, {"state": parts(), **python}).get("not_restored", ()) == left


@pytest.mark.parametrize(
    "said",
    [
        {"not_restored": ["sched"], "restore_optimizer_state": False},
        {"not_restored": ["sched", "opt"], "restore_optimizer_state": False},
        {"not_restored": ["opt"], "restore_optimizer_state": True},
    ],
)
def test_a_list_of_what_is_not_restored_that_says_something_else_is_refused(said):
    """The alias won in silence, and the scheduler was restored."""
    for source, python in ((said, {}), ({}, said)):
        with pytest.raises(
            InvalidInput, match=r"not_restored.* is .*, and restore_optimizer_state.* means .*contradict"
        ):
            arguments_of(source, {"state": parts(), **python})


def test_a_training_runs_from_a_file(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(f"store: {tmp_path / 'store'}\nrun_name: toy\nsave_steps: 2\nkeep_last_n: 2\nsaver: inline\n")
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer.from_config(path, state=state) as ckpt:
        for _ in ckpt.steps(6):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert ckpt.last.step == 6


def test_the_page_has_every_key_and_what_it_wants():
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text().partition("## Names from elsewhere")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    wants = {key: re.sub(r"[`'\"\\]", "", text) for key, text in rows}
    assert wants == {name: re.sub(r"[`'\"\\]", "", key.wants) for name, key in KEYS.items()}


def test_a_state_in_a_file_is_answered_with_where_it_is_given(tmp_path):
    """The answer was: did you mean 'stage'?"""
    path = tmp_path / "train.yaml"
    path.write_text("save_steps: 5\nstate: {model: model}\n")
    with pytest.raises(InvalidInput, match=r"^'state' \(train.yaml, line 2\): its objects are given in Python"):
        arguments_of(path)
