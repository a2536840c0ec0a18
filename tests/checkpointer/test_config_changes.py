"""What becomes of a configuration that has changed, and of state that a new run shall not take over."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.utils.data import DataLoader

import holdfast
from holdfast import every
from holdfast.errors import InvalidInput, StateMismatch
from holdfast.health import nonfinite, rollback, when


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


def test_what_is_refused_leaves_no_empty_fork(tmp_path):
    trained(tmp_path, {"lr": 0.1, "seed": 1})
    again = {"run": holdfast.new_run("b"), "resume": "run-001", "on_config_change": {"seed": "refuse"}}
    with pytest.raises(StateMismatch, match=r"seed: 1 -> 2"):
        trained(tmp_path, {"lr": 0.1, "seed": 2}, total=8, **again)
    assert [info.name for info in holdfast.open(tmp_path).runs()] == ["a"]


SLIP = {"lr": "refuse", "learning_rat": "refuse"}


def test_a_slip_in_a_refused_key_starts_nothing(tmp_path):
    """Both values changed, and the run went on."""
    trained(tmp_path, {"optim": {"lr": 0.1}, "learning_rate": 1})
    with pytest.raises(InvalidInput, match=r"(?s)'lr' .*did you mean optim.lr.*'learning_rat' .*mean learning_rate"):
        trained(tmp_path, {"optim": {"lr": 0.5}, "learning_rate": 2}, total=8, on_config_change=SLIP)
    assert len(holdfast.open(tmp_path).run(1).launches()) == 1


def test_a_slip_is_named_at_the_first_launch(tmp_path):
    config = {"optim": {"lr": 0.1}, "learning_rate": 1}
    with pytest.raises(InvalidInput, match=r"did you mean optim\.lr"):
        trained(tmp_path, config, on_config_change=SLIP)
    assert not list(holdfast.open(tmp_path).runs())
    trained(tmp_path, config, on_config_change={"optim.lr": "refuse", "learning_rate": "refuse"})
    store = holdfast.open(tmp_path)
    assert [len(store.run(info.number).launches()) for info in store.runs()] == [1]


def test_a_key_that_only_the_checkpoint_has_is_known(tmp_path):
    trained(tmp_path, {"lr": 0.1, "old": 3})
    found, _, _ = trained(tmp_path, {"lr": 0.1}, total=6, on_config_change={"old": "keep"})
    assert found == {"lr": 0.1, "old": 3}
    with pytest.raises(StateMismatch, match="old: 3 -> absent"):
        trained(tmp_path, {"lr": 0.1}, total=8, on_config_change={"old": "refuse"})


def test_a_value_is_kept_under_its_own_key_where_that_is_no_text(tmp_path):
    """{1: 0.9, 2: 0.2, '1': 0.1}: the log said that it was kept, and the program read the new one."""
    trained(tmp_path, {"layers": {1: 0.1, 2: 0.2}})
    found, _, _ = trained(tmp_path, {"layers": {1: 0.9, 2: 0.2}}, total=6, on_config_change="keep")
    assert found == {"layers": {1: 0.1, 2: 0.2}}


def test_secrets_are_no_change_and_are_never_kept(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trained(tmp_path, {"lr": 1, "auth": {"token": "OLD"}, "hubs": [{"password": "OLD", "n": 1}]})
    now = {"lr": 2, "auth": {"token": "NEW"}, "hubs": [{"password": "NEW", "n": 2}], "hf_token": "NEW"}
    found, _, _ = trained(tmp_path, now, total=6, on_config_change="keep")
    assert found == {"lr": 1, "auth": {"token": "NEW"}, "hubs": [{"password": "NEW", "n": 1}], "hf_token": "NEW"}
    assert "OLD" not in caplog.text
    assert "NEW" not in caplog.text


def test_secrets_that_an_earlier_version_stored_are_not_shown(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    config = {"lr": 1, "credentials": {"aws": "S3CR"}, "hubs": [{"password": "S3CR"}], "pad_token_id": 3}
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "holdfast.recovery.launching.settings.plain_config", lambda _: config | {"pad_token_id": "<redacted>"}
        )
        trained(tmp_path, config)
    found, _, _ = trained(tmp_path, config | {"lr": 2}, total=6, on_config_change={"lr": "keep", "*": "refuse"})
    assert found == config
    assert "lr: 1 -> 2" in caplog.text
    assert "S3CR" not in caplog.text


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


class Training:
    """Steps that draw shuffled batches and random numbers; the newest line of its log says where it was."""

    def __init__(self, folder, *, rate=0.1, prefix="", momentum=0.9, **settings):
        torch.manual_seed(1)
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=momentum)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3)
        self.state = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.loader = DataLoader(torch.arange(16.0).reshape(8, 2), batch_size=1, shuffle=True)
        self.ckpt = holdfast.Checkpointer(
            folder,
            state=self.state,
            save=every(steps=2),
            keep=every(steps=1),
            saver="inline",
            prefix=prefix,
            **settings,
        )
        self.ckpt.values.setdefault("seen", 0)
        self.made = []
        self.begun = {}

    def run(self, total, broken=()):
        with self.ckpt as ckpt:
            for step, batch in ckpt.batches(self.loader, total_steps=total):
                if not self.made:
                    self.begun = {
                        "momentum": bool(self.optimizer.state),
                        "rate": self.optimizer.param_groups[0]["lr"],
                        "epoch": self.scheduler.last_epoch,
                        "seen": ckpt.values["seen"],
                    }
                self.made.append((step, batch.tolist(), torch.rand(()).item()))
                loss = self.model(batch).sum() * (float("nan") if step in broken else 1e-3)
                loss.backward()
                ckpt.log(loss=loss.item())
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.scheduler.step()
                ckpt.values["seen"] += 1
        return self


@pytest.fixture
def origin(tmp_path):
    """Ten steps of a run, of which the sixth is forked below; its batches and random numbers by step."""
    return {step: rest for step, *rest in Training(tmp_path, run="a").run(10).made}


FORK = {"resume": "run-001@6", "not_restored": ["optimizer"]}


def test_a_fork_that_leaves_the_optimizer_goes_on_with_everything_else(tmp_path, origin, caplog):
    """It began at step 0 with the scheduler of step 6, another place in the data, and random numbers of its own."""
    caplog.set_level(logging.INFO)
    fork = Training(tmp_path, run="b", rate=0.5, **FORK).run(10)
    assert fork.begun == {"momentum": False, "rate": 0.5, "epoch": 6, "seen": 6}
    assert {step: rest for step, *rest in fork.made} == {step: origin[step] for step in range(6, 10)}
    assert "optimizer stays as the program made it" in caplog.text
    (start,) = holdfast.open(tmp_path).run(2).starts()
    assert (start.resumed_from.run, start.resumed_from.step) == (1, 6)
    assert start.why.endswith("without optimizer, as asked for")
    records = holdfast.open(tmp_path).run(2).records()
    assert [record.step for record in records] == [8, 10]
    assert records[0].parent == start.resumed_from
    assert all(record.exactness["rng"].exact and record.exactness["data"].exact for record in records)


def test_what_such_a_fork_saves_is_whole(tmp_path, origin):
    undisturbed = Training(tmp_path, run="b", rate=0.5, **FORK).run(10)
    Training(tmp_path, run="c", rate=0.5, **FORK).run(8)
    resumed = Training(tmp_path, run="c", rate=0.5, **FORK).run(10)
    assert resumed.begun["momentum"]
    assert resumed.made == undisturbed.made[2:]
    assert torch.equal(resumed.model.weight, undisturbed.model.weight)
    assert str(resumed.optimizer.state_dict()) == str(undisturbed.optimizer.state_dict())


def test_a_fork_that_was_killed_before_its_first_save_leaves_the_optimizer_again(tmp_path, origin):
    """Also if the restart says no more than the name of the run."""
    killed = Training(tmp_path, run="b", rate=0.5, **FORK)
    with killed.ckpt as ckpt:
        ckpt.restore()
    again = Training(tmp_path, run="b", rate=0.5, not_restored=["optimizer"]).run(10)
    assert again.begun == {"momentum": False, "rate": 0.5, "epoch": 6, "seen": 6}


def test_a_checkpoint_that_lacks_what_is_left_is_no_obstacle_and_one_that_lacks_more_is(tmp_path):
    trained_model = torch.nn.Linear(2, 1)
    with holdfast.Checkpointer(tmp_path, run="a", state={"model": trained_model}, saver="inline") as ckpt:
        list(ckpt.steps(4))
    left = ["optimizer", "scheduler"]
    fork = Training(tmp_path, run="b", resume="run-001", not_restored=left)
    with fork.ckpt as ckpt:
        ckpt.restore()
        assert (ckpt.step, fork.scheduler.last_epoch) == (4, 0)
        assert torch.equal(fork.model.weight, trained_model.weight)
    with pytest.raises(StateMismatch, match="scheduler: missing in the checkpoint"):
        Training(tmp_path, run="c", resume="run-001", not_restored=["optimizer"]).run(6)


def test_a_prefix_is_no_part_of_the_names(tmp_path):
    """The optimizer was restored all the same: nothing was called optimizer."""
    Training(tmp_path, run="a", prefix="stage0.").run(6)
    fork = Training(tmp_path, run="b", prefix="stage0.", rate=0.5, **FORK).run(7)
    assert fork.begun == {"momentum": False, "rate": 0.5, "epoch": 6, "seen": 6}


def test_what_an_optimizer_that_is_left_does_not_train_stays_frozen(tmp_path, origin):
    """As for parts that are restored by name: who makes the optimizer anew has decided what it trains."""
    for left, trains in ((["optimizer"], False), (["scheduler"], True)):
        fork = Training(tmp_path, run=f"b-{trains}", resume="run-001@6", not_restored=left)
        fork.model.bias.requires_grad_(False)
        with fork.ckpt as ckpt:
            ckpt.restore()
        assert fork.model.bias.requires_grad is trains


def test_a_rollback_behind_the_beginning_is_not_made_with_the_optimizer_of_another_run(tmp_path, origin):
    """As the program made it there is none any more; a restart has one, and makes the rollback that was noted."""
    rules = [when(nonfinite("loss"), rollback(to="last"))]
    fork = Training(tmp_path, run="b", rate=0.5, health=rules, **FORK)
    with pytest.raises(
        StateMismatch, match=r"optimizer is not as the program made it any more.*start the program again"
    ):
        fork.run(10, broken=[6])
    again = Training(tmp_path, run="b", rate=0.5, health=rules, **FORK).run(10)
    assert again.begun == {"momentum": False, "rate": 0.5, "epoch": 6, "seen": 6}
    assert [step for step, *_ in again.made] == [6, 7, 8, 9]
    assert again.made[0][1] != origin[6][0]  # the data of the bad step is left out


def test_a_checkpoint_that_is_named_later_is_restored_with_everything(tmp_path, origin, caplog):
    fork = Training(tmp_path, run="b", rate=0.5, **FORK)
    with fork.ckpt as ckpt:
        ckpt.restore()
        assert not fork.optimizer.state
        ckpt.restore("run-001@8")
        assert fork.optimizer.state
    assert "optimizer is restored, too" in caplog.text


@pytest.mark.parametrize("left", ["optimizer", ["optimzer"], [1], {"optimizer": True}, None])
def test_what_is_not_restored_must_be_names_of_state(tmp_path, left):
    """A slip in a name restored it in silence; a text was taken for its letters."""
    model = torch.nn.Linear(2, 1)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with pytest.raises(InvalidInput, match=r"^not_restored: ") as caught:
        holdfast.Checkpointer(tmp_path / "store", state=state, not_restored=left)
    assert left != ["optimzer"] or "did you mean optimizer?" in str(caught.value)
    assert not (tmp_path / "store").exists()
