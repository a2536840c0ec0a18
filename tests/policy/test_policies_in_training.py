"""Policies where they work: in a training, with its saver."""

from __future__ import annotations

import importlib

import pytest
import torch

import holdfast
from holdfast import at, at_most, auto, best, every, latest
from holdfast.errors import InvalidPolicy


def train(place, steps: int, *, wait: bool = False, **policies) -> list[holdfast.records.Record]:
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    with holdfast.Checkpointer(place, run="r", state={"model": model, "optimizer": optimizer}, **policies) as ckpt:
        for step in ckpt.steps(steps):
            model(torch.ones(4, 300)).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if wait and step % 5 == 4:
                ckpt.save(wait="durable")
    return holdfast.open(place).run(1).records()


@pytest.mark.parametrize("saver", ["inline", "process"])
def test_a_limit_holds_while_a_training_saves(tmp_path, saver):
    """Three weights and moments of 360 kB each: three checkpoints of 1.1 MB fit."""
    found = train(tmp_path, 40, wait=True, save=every(steps=5), keep=at_most("3.5MB"), saver=saver)
    assert [one.step for one in found] == [30, 35, 40]
    assert sum(one.stat().st_size for one in (tmp_path / "data/runs/001").rglob("*.pack")) < 3_500_000


def test_at_saves_at_the_listed_steps(tmp_path):
    found = train(tmp_path, 20, save=at(steps=[3, 7]), keep=at(steps=[3]) | latest(1))
    assert [one.step for one in found] == [3, 20]


def test_auto_goes_by_what_the_saves_of_this_very_training_cost(tmp_path, monkeypatch):
    module = importlib.import_module("holdfast.policy.auto")
    monkeypatch.setattr(module, "FIRST", 0.0)
    monkeypatch.setattr(module, "SHORTEST", 0.0)
    found = train(tmp_path, 120, save=auto(max_overhead=0.9), keep=latest(1000))
    assert "no save was measured yet" in found[0].reason
    assert "a save costs" in found[1].reason


def test_auto_remembers_what_earlier_launches_paid(tmp_path, monkeypatch):
    """It would wait for ever for its first save if it knew of none."""
    module = importlib.import_module("holdfast.policy.auto")
    monkeypatch.setattr(module, "FIRST", 1e9)
    monkeypatch.setattr(module, "SHORTEST", 0.0)
    train(tmp_path, 5, save=every(steps=1), keep=latest(1000))
    found = train(tmp_path, 120, save=auto(max_overhead=0.9), keep=latest(1000))
    assert any("a save costs" in one.reason for one in found if one.launch == 2)


@pytest.mark.parametrize("use", ["save", "keep"])
def test_a_policy_of_two_thousand_steps_reaches_the_saver(tmp_path, use):
    """The saver could not read more than 10,000 characters, and every save of the training failed."""
    policies = {"save": every(steps=5), use: latest(3) | at(steps=range(500, 1_000_001, 500))}
    policies = {"save": every(steps=5) | at(steps=range(5, 23_000, 5))} if use == "save" else policies
    assert [one.step for one in train(tmp_path, 10, **policies)] == [5, 10]


@pytest.mark.parametrize("use", ["save", "keep"])
def test_a_policy_that_nobody_could_read_back_is_refused_before_the_training(tmp_path, use):
    with pytest.raises(InvalidPolicy, match=rf"{use}= cannot be read back .* every\(steps=500\) instead"):
        train(tmp_path / "store", 10, **{use: at(steps=range(1, 20_000))})
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("save", "left"),
    [
        (every(steps=1) | best("loss"), [2, 6, 7, 8]),
        (every(steps=1) | best("loss", 2, mode="max", min_delta=0.1), [1, 6, 7, 8]),
        (every(steps=1) | at(steps=[3]), [3, 6, 7, 8]),
        (every(steps=1), [6, 7, 8]),
    ],
    ids=str,
)
def test_where_nobody_says_what_to_keep_the_best_and_the_milestones_stay(tmp_path, save, left):
    """Users-ask 28: ``save=best("loss")`` lost the best one to three later ones."""
    model = torch.nn.Linear(2, 1)
    with holdfast.Checkpointer(tmp_path, run="r", state={"model": model}, save=save, saver="inline") as ckpt:
        for index in ckpt.steps(8):
            ckpt.log(loss=(3.0, 1.0, 2.0, 2.5, 2.6, 2.7, 2.8, 2.9)[index])
    assert [one.step for one in holdfast.open(tmp_path).run(1).records()] == left
