from __future__ import annotations

import torch

import holdfast
from holdfast import Checkpointer, every
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.layout import launch
from holdfast.catalog.naming.forks import fork
from holdfast.ids import RunNumber
from holdfast.recovery.launching.stored_config import stored_config


def train(store, run: str, steps: int, lr: float) -> None:
    state = {"model": torch.nn.Linear(2, 1)}
    with Checkpointer(store, run=run, state=state, save=every(steps=2), config={"lr": lr}, saver="inline") as ckpt:
        for _ in ckpt.steps(steps):
            pass


def test_the_configuration_is_that_of_the_launch_that_made_the_checkpoint(tmp_path):
    train(tmp_path, "toy", 2, lr=0.1)
    train(tmp_path, "toy", 4, lr=0.2)
    run = holdfast.open(tmp_path).run(1)
    begin_launch(run, config={"lr": 9.9}, deadline=0)  # it ended before it made anything
    assert stored_config(run.store, run.lineage().head).config == {"lr": 0.2}
    first = next(target for target in run.lineage().line() if target.launch == 1)
    found = stored_config(run.store, first)
    assert (found.config, found.what) == ({"lr": 0.1}, str(first.address))


def test_a_fork_is_compared_with_the_checkpoint_that_it_begins_with(tmp_path):
    train(tmp_path, "toy", 2, lr=0.1)
    store = holdfast.open(tmp_path)
    made = fork(store, "run-001@2", "child")
    assert stored_config(store, store.run(made.number).lineage().head).config == {"lr": 0.1}


def test_where_nobody_can_tell_nothing_is_said(tmp_path):
    train(tmp_path, "toy", 2, lr=0.1)
    store = holdfast.open(tmp_path)
    assert stored_config(store, store.create_run("new").lineage().head) is None
    (tmp_path / launch(RunNumber(1), 1)).write_bytes(b"{}")
    assert stored_config(store, store.run(1).lineage().head) is None
