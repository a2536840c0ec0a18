"""What becomes of a configuration that has changed, and of state that a new run shall not take over."""

from __future__ import annotations

import pytest
import torch

import holdfast
from holdfast import every
from holdfast.errors import StateMismatch


def trained(folder, config, *, run="a", total=4, rate=0.1, **settings):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    state = {"model": model, "optimizer": optimizer}
    with holdfast.Checkpointer(folder, run=run, state=state, config=config, save=every(steps=2), **settings) as ckpt:
        for _ in ckpt.steps(total):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return ckpt.config, model.weight.detach().clone(), optimizer


def test_what_is_kept_is_given_back_and_stored_again(tmp_path):
    trained(tmp_path, {"lr": 0.1, "batch": 8, "token": "secret"})
    rules = {"batch": "keep", "*": "override"}
    now = {"lr": 0.2, "batch": 16, "token": "secret"}
    for total in (6, 8):
        found, _, _ = trained(tmp_path, now, total=total, on_config_change=rules)
        assert found == {"lr": 0.2, "batch": 8, "token": "secret"}
    assert holdfast.open(tmp_path).run(1).launches()[-1].config["batch"] == 8


def test_what_is_refused_leaves_everything_as_it_is(tmp_path):
    trained(tmp_path, {"lr": 0.1, "seed": 1})
    with pytest.raises(StateMismatch, match=r"seed: 1 -> 2"):
        trained(tmp_path, {"lr": 0.1, "seed": 2}, total=8, on_config_change={"seed": "refuse"})
    assert len(holdfast.open(tmp_path).run(1).launches()) == 1
    trained(tmp_path, {"lr": 0.1, "seed": 1}, total=8, on_config_change={"seed": "refuse"})


def test_a_new_run_takes_the_weights_of_another_one_and_not_its_optimizer(tmp_path):
    _, weights, _ = trained(tmp_path, {})
    _, begun, optimizer = trained(
        tmp_path, {}, run=holdfast.new_run("b"), resume="run-001", total=0, rate=0.5, not_restored=["optimizer"]
    )
    assert torch.equal(begun, weights)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state == {}


def test_a_restart_of_that_run_loses_nothing_of_its_own(tmp_path):
    trained(tmp_path, {})
    again = {"resume": "run-001", "not_restored": ["optimizer"]}
    _, first, one = trained(tmp_path, {}, run=holdfast.new_run("b"), total=4, **again)
    _, second, two = trained(tmp_path, {}, run="b", total=4, not_restored=["optimizer"])
    assert torch.equal(first, second)
    assert str(one.state_dict()) == str(two.state_dict())
