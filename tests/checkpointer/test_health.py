"""A training that looks after itself: it goes back, leaves out what made it ill, and stops aloud if it must."""

from __future__ import annotations

import http.server
import itertools
import json
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from streams_kit import SimStreams
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset, Subset

import holdfast
from holdfast import every, latest
from holdfast.catalog import layout
from holdfast.catalog.journal.journal import read_journal
from holdfast.errors import InvalidInput, Unhealthy
from holdfast.health import (
    Disk,
    disk_low,
    free_space,
    nonfinite,
    notify,
    out_of_memory,
    own,
    rollback,
    save_now,
    shrink_batch,
    spike,
    stop,
    watchdog,
    when,
)
from holdfast.ids import RunNumber
from holdfast.recovery.caring import telling, vitals
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.state import boundary, probing

TOTAL = 160
BATCH = 4
INF = float("inf")


class Data(Dataset):
    """Noisy points of a plane; an item says which one it is."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(BATCH * TOTAL * 2, 8, generator=g)
        self.y = self.x @ torch.randn(8, 1, generator=g) + 0.1 * torch.randn(len(self.x), 1, generator=g)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return i, self.x[i], self.y[i]


DATA = Data()


@dataclass
class Trained:
    """What a training came to."""

    loss: float = 0.0
    """Over all data."""
    seen: list[int] = field(default_factory=list)
    """Numbers of the batches that steps were made with, in the order in which they were."""
    rate: float = 0.0
    weights: list[float] = field(default_factory=list)


class Killed(Exception):
    """Stands for the end of the process."""


def train(
    folder: Path,
    *,
    health=None,
    ill=(),
    spoil=lambda x: x * float("nan"),
    at_step=None,
    total=TOTAL,
    one_epoch=False,
    after=lambda ckpt: None,
    **settings,
):
    """Batches whose numbers are in ``ill`` are spoilt; ``one_epoch`` of so many batches, or so many steps."""
    torch.manual_seed(1)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    found = Trained()
    settings = {"save": every(steps=10), "keep": latest(50), "good_after": 5, **settings}
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    with holdfast.Checkpointer(folder, run="plane", state=state, health=health, **settings) as ckpt:
        data, end = (Subset(DATA, range(BATCH * total)), {"epochs": 1}) if one_epoch else (DATA, {"total_steps": total})
        for step, (index, x, y) in ckpt.batches(DataLoader(data, batch_size=BATCH), **end):
            number = int(index[0]) // BATCH
            x = spoil(x) if number in ill else x
            loss = mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            ckpt.log(loss=loss.detach())
            found.seen.append(number)
            if at_step is not None:
                at_step(step, number, ckpt)
        after(ckpt)
    found.loss = float(mse_loss(model(DATA.x), DATA.y).detach())
    found.rate = optimizer.param_groups[0]["lr"]
    found.weights = model.weight.detach().flatten().tolist()
    return found


def events(folder: Path, *kinds: str) -> list:
    store = holdfast.open(folder)
    found = [entry.event for entry in read_journal(store, store.run(1).number).by_time()]
    return [event for event in found if event.kind in kinds]


CARED_FOR = [when(nonfinite("loss"), rollback()), when(spike("loss", z=8.0), rollback())]


def test_a_training_with_a_poisoned_window_recovers_alone_and_ends_where_a_clean_one_does(tmp_path):
    """Users-ask 35: NaN first, then a spike. Left alone, the same training never has a number again."""
    clean = train(tmp_path / "clean")
    ill = {60, 61, 62}
    recovered = train(tmp_path / "cared", health=CARED_FOR, ill=ill)
    spiked = train(tmp_path / "spiked", health=CARED_FOR, ill={100}, spoil=lambda x: x * 1000)
    alone = train(tmp_path / "alone", ill=ill)
    assert recovered.loss <= 1.02 * clean.loss
    assert spiked.loss <= 1.02 * clean.loss
    assert alone.loss != alone.loss
    assert [event.kind for event in events(tmp_path / "cared", "rollback")] == ["rollback"]


def test_only_the_data_of_the_suspect_steps_is_left_out_the_second_time(tmp_path):
    """Users-ask 35: back, and past the window."""
    found = train(tmp_path / "s", health=CARED_FOR, ill={60})
    again = found.seen[found.seen.index(60) + 1 :]
    (event,) = events(tmp_path / "s", "rollback")
    ((_, first, _, end),) = event.data["left_out"]
    assert first <= 60 < end <= first + 5
    assert 60 not in again
    assert again[0] == event.data["to_step"]
    expected = [n for n in range(event.data["to_step"], again[-1] + 1) if not first <= n < end]
    assert again == expected


def test_what_is_good_was_earned_and_what_has_nan_never_is(tmp_path):
    """Users-ask 35: a checkpoint with NaN never becomes what a rollback goes to."""
    train(tmp_path / "s", ill={60})
    store = holdfast.open(tmp_path / "s")
    run = store.run(1)
    from holdfast.catalog.marks import NO_MARKS, read_marks

    marks = read_marks(store, run.number)
    good = {one.step for one in run.records() if marks.get(one.id, NO_MARKS).good}
    assert good
    assert max(good) <= 60
    assert all(one.anomalies == [] for one in run.records() if one.step in good)


def test_learning_rates_are_scaled_for_good_and_multiply(tmp_path):
    health = [when(nonfinite("loss"), rollback(scale_lr=0.5))]
    assert train(tmp_path / "once", health=health, ill={60}).rate == pytest.approx(0.05)
    assert train(tmp_path / "twice", health=health, ill={60, 100}).rate == pytest.approx(0.025)


def one_rollback(folder: Path, *, lr=0.1, every_step=lambda optimizer: None, scheduler=None, registered=False):
    """Scaled by a half after step 20: the rates of its optimizer at the end, and what the journal says of them."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam([{"params": part.parameters()} for part in model], lr=lr)
    curve = None if scheduler is None else scheduler(optimizer)
    state = {"model": model, "optimizer": optimizer, **({"scheduler": curve} if registered else {})}
    ill = [20]
    options = {"save": every(steps=5), "keep": latest(50), "saver": "inline", "good_after": 5}
    options["health"] = [when(nonfinite("loss"), rollback(scale_lr=0.5))]
    with holdfast.Checkpointer(folder, run="plane", state=state, **options) as ckpt:
        for step in ckpt.steps(30):
            every_step(optimizer)
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            if curve is not None:
                curve.step()
            ckpt.log(loss=float("nan") if step in ill else 1.0)
            ill = [one for one in ill if one != step]
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    return rates, [event.message for event in events(folder, "rate-set-back")]


def test_a_rate_that_all_groups_share_is_scaled_once(tmp_path):
    rates, said = one_rollback(tmp_path / "s", lr=torch.tensor(0.1))
    assert rates == pytest.approx([0.05, 0.05])
    assert said == []


def set_rates(optimizer):
    """As programs do that compute the rate of each step themselves."""
    for group in optimizer.param_groups:
        group["lr"] = 0.1


def flat(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


@pytest.mark.parametrize("sets", [{"every_step": set_rates}, {"scheduler": flat}], ids=["program", "scheduler"])
def test_whoever_sets_a_scaled_rate_back_is_told_once(tmp_path, sets, caplog):
    rates, (said,) = one_rollback(tmp_path / "s", **sets)
    assert rates == [0.1, 0.1]
    assert said.startswith("the learning rates were scaled by 0.5 after a rollback, and 2 steps later they are")
    assert sum(said in line for line in caplog.messages) == 1


def falling(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.99)


@pytest.mark.parametrize("sets", [{"scheduler": flat, "registered": True}, {"scheduler": falling}], ids=["in", "out"])
def test_of_a_rate_that_stays_scaled_nothing_is_said(tmp_path, sets):
    rates, said = one_rollback(tmp_path / "s", **sets)
    assert max(rates) <= 0.0501
    assert said == []


def test_a_training_that_is_killed_right_after_going_back_leaves_out_the_same(tmp_path):
    """No checkpoint says so yet: the journal does."""
    health = [when(nonfinite("loss"), rollback(scale_lr=0.5))]
    undisturbed = train(tmp_path / "a", health=health, ill={60})

    def die(step, number, ckpt):
        if events(tmp_path / "b", "rollback"):
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "b", health=health, ill={60}, at_step=die)
    found = train(tmp_path / "b", health=health, ill={60})
    assert 60 not in found.seen
    assert (found.weights, found.rate) == (undisturbed.weights, undisturbed.rate)
    assert len(events(tmp_path / "b", "rollback")) == 1


def test_a_checkpoint_after_a_rollback_knows_what_was_left_out(tmp_path):
    """Killed and resumed much later, in the same epoch, the training must not meet that data again either."""

    def die(step, number, ckpt):
        if events(tmp_path / "b", "rollback") and step == 75:
            raise Killed

    undisturbed = train(tmp_path / "a", health=CARED_FOR, ill={60})
    with pytest.raises(Killed):
        train(tmp_path / "b", health=CARED_FOR, ill={60}, at_step=die)
    assert train(tmp_path / "b", health=CARED_FOR, ill={60}).weights == undisturbed.weights


def test_data_that_is_bad_for_ever_stops_the_training_and_the_exit_says_so(tmp_path):
    """Endless rollbacks are what a recovery must not make of a NaN; nor must its end look like a success."""
    with pytest.raises(Unhealthy, match=r"run-001@\d+"):
        train(tmp_path / "s", health=[when(nonfinite("loss"), rollback())], ill=set(range(60, 10_000)))
    assert len(events(tmp_path / "s", "rollback")) == 3
    last = holdfast.open(tmp_path / "s").run(1).records()[-1]
    assert last.anomalies == [] or last.step <= 70
    (exit_,) = events(tmp_path / "s", "exit")
    assert exit_.data["how"] == "failed"


def test_budgets_are_not_given_back_by_a_restart(tmp_path):
    health = [when(nonfinite("loss"), rollback(times=1))]
    for launch in range(2):
        with pytest.raises(Unhealthy):
            train(tmp_path / "s", health=health, ill=set(range(60, 10_000)))
        assert len(events(tmp_path / "s", "rollback")) == 1, launch


def test_who_was_told_often_enough_is_not_told_again_after_a_restart(tmp_path):
    """The journal keeps that budget, too: a training that crashes every hour must not write a hundred times each."""
    told = []
    health = [when(nonfinite("loss"), notify(told.append, times=1))]
    for launch in range(3):

        def die(step, number, ckpt, launch=launch):
            if step == 15 + 20 * launch:
                raise Killed

        with pytest.raises(Killed):
            train(tmp_path / "s", health=health, ill=set(range(5, 10_000)), at_step=die, saver="inline")
    assert len(told) == 1


def test_without_a_good_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(Unhealthy, match="nothing to go back to"):
        train(tmp_path / "s", health=CARED_FOR, ill={3})


def test_a_stop_saves_what_is_worth_saving(tmp_path):
    def tired(observation):
        return "enough" if observation.step >= 33 else None

    with pytest.raises(Unhealthy, match="enough"):
        train(tmp_path / "s", health=[when(own(tired), stop())])
    assert holdfast.open(tmp_path / "s").run(1).records()[-1].step == 33


def test_who_leaves_with_the_exit_code_of_a_stop_has_failed_in_the_journal_too(tmp_path):
    """It passed for a pre-emption there, which no protection against crash loops ever counts."""
    with pytest.raises(SystemExit) as left:
        train(
            tmp_path / "s",
            health=[when(nonfinite("loss"), stop())],
            ill={33},
            saver="inline",
            after=lambda ckpt: sys.exit(ckpt.preempted.exit_code),
        )
    assert left.value.code == Unhealthy.exit_code
    (exit_,) = events(tmp_path / "s", "exit")
    assert exit_.data["how"] == "failed"
    assert exit_.data["error"].startswith("Unhealthy: the training was stopped at step 34: nonfinite")


def test_what_is_broken_at_the_very_end_is_not_made_the_result(tmp_path):
    with pytest.raises(Unhealthy, match="loss is nan"):
        train(tmp_path / "s", health=[when(nonfinite("loss"), stop())], ill={39}, total=40, save=every(steps=15))
    last = holdfast.open(tmp_path / "s").run(1).records()[-1]
    assert (last.step, last.kind) == (30, "regular")
    assert events(tmp_path / "s", "exit")[-1].data["how"] == "failed"


@pytest.mark.parametrize(("one_epoch", "last"), [(False, 43), (True, 37)], ids=["steps", "epochs"])
def test_what_breaks_in_the_very_last_step_is_recovered_from(tmp_path, one_epoch, last):
    """A number of steps is reached with later batches, an epoch ends without those that are left out."""
    found = train(tmp_path / "s", health=CARED_FOR, ill={39}, total=40, one_epoch=one_epoch)
    assert found.seen[-1] == last
    assert holdfast.open(tmp_path / "s").run(1).records()[-1].anomalies == [], "an epoch that is over has lost nothing"


def test_who_presses_ctrl_c_does_not_wait_for_somebody_to_be_told(tmp_path):
    answer = threading.Event()

    def interrupt(step, number, ckpt):
        if number == 35:
            raise KeyboardInterrupt

    health = [when(lambda o: "look" if o.step == 33 else None, notify(lambda verdict: answer.wait(9)))]
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "s", health=health, total=60, at_step=interrupt)
        assert [one for one in threading.enumerate() if one.name == "holdfast-notify"], "he has not answered yet"
    finally:
        answer.set()


def test_a_save_of_a_step_that_is_gone_back_from_is_said_not_to_be_made(tmp_path, caplog):
    def ask(step, number, ckpt):
        if number == 33:
            ckpt.save(tag="mine", reason="mine")

    train(tmp_path / "s", health=CARED_FOR, ill={33}, total=60, at_step=ask)
    assert "the training has gone back; a save that was asked for (mine) was not made" in caplog.text


def test_a_check_of_ones_own_can_have_saved_told_and_freed(tmp_path):
    told = []
    health = [when(lambda o: "look" if o.step == 33 else None, save_now(), notify(told.append), free_space())]
    train(tmp_path / "s", health=health, keep=latest(2))
    assert [(one.step, one.message) for one in told] == [(33, "look")]
    assert [event.message.partition(" at ")[0] for event in events(tmp_path / "s", "remedy")] != []
    reasons = [event.message for event in events(tmp_path / "s", "saved")]
    assert any("health" in reason for reason in reasons)


@contextmanager
def listening():
    """A server that keeps what is posted to it."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        server.server_close()


def test_a_webhook_gets_the_verdict(tmp_path, monkeypatch):
    with listening() as (address, got):
        real = telling.post
        monkeypatch.setattr(telling, "post", lambda _, run, verdict: real(address, run, verdict))
        train(tmp_path / "s", health=[when(nonfinite("loss"), notify("https://example.com/x"))], ill={20}, total=30)
    assert got[0]["run"] == "run-001"
    assert "loss is nan" in got[0]["text"]
    assert got[0]["verdict"]["step"] == 21


def test_a_webhook_that_does_not_answer_ends_no_training(tmp_path):
    train(
        tmp_path / "s",
        health=[when(nonfinite("loss"), notify("https://127.0.0.1:9/secret"))],
        ill={20},
        total=30,
    )
    (event,) = events(tmp_path / "s", "not told")
    assert "secret" not in event.message


def test_a_step_without_memory_is_left_out_and_batches_get_smaller(tmp_path):
    sizes, torch_says = [32], "CUDA out of memory. Tried to allocate 2.00 GiB"
    health = [when(out_of_memory(), shrink_batch(lambda verdict: sizes.append(sizes[-1] // 2)))]
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    done = []
    with holdfast.Checkpointer(
        tmp_path / "s", run="r", state={"model": model, "optimizer": optimizer}, health=health, save=every(steps=5)
    ) as ckpt:
        for step in ckpt.steps(8):
            with ckpt.guard():
                model(torch.ones(1, 2)).sum().backward()
                if sizes[-1] > 8:
                    raise torch.OutOfMemoryError(torch_says)
                optimizer.step()
                done.append(step)
                optimizer.zero_grad()
    assert sizes == [32, 16, 8]
    assert done == list(range(8))
    assert [event.kind for event in events(tmp_path / "s", "remedy")] == ["remedy", "remedy"]


def out_of_memory_once(folder: Path, health, at=3):
    """A training with batch norm in which the device has no memory for one step, behind its forward pass."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"state": {"model": model, "optimizer": optimizer}, "save": every(steps=1000), "saver": "inline"}
    lacking = True
    with holdfast.Checkpointer(folder, run="r", health=health, **settings) as ckpt:
        for step in ckpt.steps(6):
            with ckpt.guard():
                optimizer.zero_grad()
                loss = model(torch.randn(4, 3)).sum()
                if step == at and lacking:
                    lacking = False
                    raise torch.OutOfMemoryError("CUDA out of memory")
                loss.backward()
                optimizer.step()
    return model


def counted_by(folder: Path, step: int) -> int:
    """Batches that batch norm has counted, in the checkpoint of a step."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"model": model, "optimizer": optimizer}
    with holdfast.Checkpointer(folder, run="r", state=state, saver="inline") as ckpt:
        ckpt.restore(f"run-001@{step}")
    return int(model[1].num_batches_tracked)


def test_what_is_saved_for_want_of_memory_is_the_state_of_the_boundary(tmp_path):
    """The forward pass that came to nothing has changed buffers: they are put back first."""
    out_of_memory_once(tmp_path / "s", [when(out_of_memory(), save_now(), shrink_batch(lambda verdict: None))])
    assert [one.step for one in holdfast.open(tmp_path / "s").run(1).records()] == [3, 6]
    assert counted_by(tmp_path / "s", 3) == 3


def test_a_state_that_cannot_be_put_back_is_not_saved_for_want_of_memory(tmp_path, monkeypatch):
    """Buffers of which no copy is kept; the training goes on all the same."""
    monkeypatch.setattr(boundary, "KEPT", 0)
    out_of_memory_once(tmp_path / "s", [when(out_of_memory(), save_now(), shrink_batch(lambda verdict: None))])
    assert [one.step for one in holdfast.open(tmp_path / "s").run(1).records()] == [6]
    said = [event.message for event in events(tmp_path / "s", "remedy", "not saved")]
    assert len(said) == 2
    assert any("buffers had changed" in text for text in said)


def test_where_no_batch_can_be_made_smaller_nothing_is_spent_and_the_journal_knows(tmp_path):
    told = []
    with pytest.raises(torch.OutOfMemoryError):
        out_of_memory_once(tmp_path / "s", [when(out_of_memory(), notify(told.append))])
    (verdict,) = events(tmp_path / "s", "verdict")
    assert verdict.data["check"] == "out_of_memory()"
    assert verdict.data["actions"] == []
    assert (told, events(tmp_path / "s", "notify")) == ([], [])


def test_what_no_rule_is_for_goes_on_its_way(tmp_path):
    model = torch.nn.Linear(2, 1)
    with (
        pytest.raises(torch.OutOfMemoryError),
        holdfast.Checkpointer(tmp_path / "s", run="r", state={"model": model}, accumulate=1) as ckpt,
    ):
        for _ in ckpt.steps(3):
            with ckpt.guard():
                raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_checks_at_all_are_no_checks_at_all(tmp_path):
    train(tmp_path / "s", health=[], ill={20}, total=30)
    assert events(tmp_path / "s", "verdict") == []


def test_a_scaler_that_skips_every_step_does_not_hide_a_nan(tmp_path):
    """No step is made any more, so there is no boundary either: the checks look all the same."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    skipped = 0
    with holdfast.Checkpointer(
        tmp_path / "s",
        run="r",
        state={"model": model, "optimizer": optimizer},
        save=every(steps=5),
        keep=latest(50),
        good_after=3,
        health=[when(nonfinite("loss"), rollback(skip_data=False))],
    ) as ckpt:
        for step in ckpt.steps(40):
            if step == 20 and not skipped:
                with torch.no_grad():
                    model.weight.fill_(float("nan"))
            loss = model(torch.ones(1, 2)).sum()
            loss.backward()
            if torch.isfinite(loss):
                optimizer.step()
            else:
                skipped += 1
            optimizer.zero_grad()
            ckpt.log(loss=loss.detach())
    assert 0 < skipped <= 150
    assert ckpt.step == 40
    assert [event.data["to_step"] < 20 for event in events(tmp_path / "s", "rollback")] == [True]


def test_nothing_is_saved_where_a_scaler_skips_every_step(tmp_path):
    """Batch norm has counted a hundred batches since the boundary, and the data has moved on."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state, skipped = {"model": model, "optimizer": optimizer}, 0
    options = {"save": every(steps=5), "saver": "inline", "health": [when(own(odd), save_now())]}
    with holdfast.Checkpointer(tmp_path / "s", run="r", state=state, **options) as ckpt:
        for step in ckpt.steps(12):
            model(torch.ones(1, 2)).sum().backward()
            skips = step == 7 and skipped < 150
            skipped += skips
            if not skips:
                optimizer.step()
            optimizer.zero_grad()
            ckpt.log(odd=skips)
    assert [one.step for one in holdfast.open(tmp_path / "s").run(1).records()] == [5, 10, 12]
    (event,) = events(tmp_path / "s", "not saved")
    assert "step 7 was not saved" in event.message


def odd(observation):
    return "odd" if observation.metrics.get("odd") else None


def test_retention_leaves_a_checkpoint_the_time_to_become_good(tmp_path):
    """Three that are kept live for thirty steps, and it takes fifty to become good."""
    found = train(tmp_path / "s", health=CARED_FOR, ill={140}, keep=latest(3), good_after=50)
    assert len(found.seen) > TOTAL
    assert [event.kind for event in events(tmp_path / "s", "rollback")] == ["rollback"]
    assert len(holdfast.open(tmp_path / "s").run(1).records()) <= 6


def test_a_target_that_is_damaged_is_no_way_out_of_what_was_decided(tmp_path):
    """An older checkpoint is taken; the data is left out and the rate scaled from there."""
    flipped = []

    def flip(step, number, ckpt):
        if step == 58 and not flipped:
            newest = next(one for one in holdfast.open(tmp_path / "s").run(1).records() if one.step == 50)
            (tmp_path / "s" / layout.tree(RunNumber(1), newest.manifest_digest)).unlink()
            flipped.append(newest.step)

    health = [when(nonfinite("loss"), rollback(to=str(50), scale_lr=0.5))]
    found = train(tmp_path / "s", health=health, ill={60}, at_step=flip, saver="inline")
    assert found.rate == pytest.approx(0.05)
    to = [event.data["to_step"] for event in events(tmp_path / "s", "rollback")]
    assert to[0] == 50
    assert found.seen.count(60) == 1


def test_a_rollback_to_a_checkpoint_of_an_earlier_process_leaves_its_data_out(tmp_path):
    """The second one to it leaves out all since: nobody knew where that lay, and it went the same way again."""

    def end(step, number, ckpt):
        if step == 38 and events(tmp_path / "s", "rollback"):
            raise Killed

    health = [when(nonfinite("loss"), rollback(times=9))]
    settings = {"health": health, "ill": {45, 50}, "good_after": 30, "saver": "inline"}
    with pytest.raises(Killed):
        train(tmp_path / "s", at_step=end, **settings)
    found = train(tmp_path / "s", **settings)
    first, second = events(tmp_path / "s", "rollback")
    assert first.data["to_step"] == second.data["to_step"] == 10
    ((_, begin, _, behind),) = second.data["left_out"]
    assert begin == 10
    assert behind > 51
    assert found.seen.count(50) == 1


def test_a_rate_is_scaled_once_for_each_rollback_wherever_it_lands(tmp_path):
    """The first one lands where it wanted to, the second one on the same checkpoint, for its own target is damaged."""
    broken = []

    def damage(step, number, ckpt):
        if step == 84 and not broken:
            records = holdfast.open(tmp_path / "s").run(1).records()
            newest = max((one for one in records if one.step == 80), key=lambda one: one.timeline)
            (tmp_path / "s" / layout.tree(RunNumber(1), newest.manifest_digest)).unlink()
            broken.append(newest.step)

    health = [when(nonfinite("loss"), rollback(to="last", scale_lr=0.5))]
    ill = {75, 90}
    found = train(tmp_path / "s", health=health, ill=ill, at_step=damage, saver="inline", total=100)
    to = [event.data["to_step"] for event in events(tmp_path / "s", "rollback")]
    assert to == [70, 80, 70]
    assert found.rate == pytest.approx(0.025)
    assert [found.seen.count(number) for number in sorted(ill)] == [1, 1]


@pytest.mark.parametrize(("then", "now"), [(8, 4), (4, 8)])
def test_the_right_data_is_left_out_where_batches_have_another_size_than_in_the_checkpoint(tmp_path, then, now):
    """What was left out is counted in the batches of today, the checkpoint in those of its time."""
    bad = set(range(200, 204))

    def launch(size, stop_at=None):
        torch.manual_seed(1)
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        loader = DataLoader(
            torch.arange(4000), batch_sampler=holdfast.Sampler(4000, seed=1, batch_size=size, shuffle=False)
        )
        options = {"save": every(steps=20), "saver": "inline", "keep": latest(50)}
        options["health"] = [when(nonfinite("loss"), rollback(to="last"))]
        state, seen = {"model": model, "optimizer": optimizer}, []
        with holdfast.Checkpointer(tmp_path / "s", run="r", state=state, **options) as ckpt:
            for step, batch in ckpt.batches(loader, total_steps=70):
                optimizer.zero_grad()
                model(batch.float()[:, None]).mean().backward()
                optimizer.step()
                ill = bad & set(batch.tolist())
                ckpt.log(loss=float("nan") if ill else 1.0)
                seen += batch.tolist()
                if step == stop_at:
                    raise Killed
        return seen

    with pytest.raises(Killed):
        launch(then, stop_at=24)
    seen = launch(now)
    (event,) = events(tmp_path / "s", "rollback")
    after = seen[seen.index(max(bad & set(seen))) + 1 :]
    after = after[now - 1 - max(bad & set(seen)) % now :]  # what was in the batch behind it
    assert not bad & set(after)
    left_out = set(range(after[0], after[-1] + 1)) - set(after)
    ((_, first, _, end),) = event.data["left_out"]
    assert bad <= left_out
    assert len(left_out) == (end - first) * now


def test_a_disk_without_room_for_the_first_checkpoint_ends_the_training_before_its_first_step(tmp_path, monkeypatch):
    """Else hours of training end in a save that fails."""
    monkeypatch.setattr(vitals, "disk", lambda folder: Disk(where=str(folder), free_bytes=1 << 20, free_inodes=1000))
    model = torch.nn.Linear(1000, 1000)
    state = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    options = {"save": every(steps=5), "saver": "inline", "health": [when(disk_low(), stop())]}
    made = []
    with (
        pytest.raises(Unhealthy, match=r"1\.0 MiB are free on .*, too little for the next 2 checkpoints of 13\.\d MiB"),
        holdfast.Checkpointer(tmp_path / "s", run="r", state=state, **options) as ckpt,
    ):
        made += ckpt.steps(6)
    assert made == []


def test_room_is_needed_for_what_a_checkpoint_writes_and_not_for_what_it_shares(tmp_path, monkeypatch):
    """A frozen base of 4 MiB is written once; the adapter, of some bytes, each time."""
    monkeypatch.setattr(vitals, "SHORTEST", 0.0)
    monkeypatch.setattr(vitals, "disk", lambda folder: Disk(where=str(folder), free_bytes=1 << 40, free_inodes=1 << 20))
    base, adapter = torch.nn.Linear(1000, 1000), torch.nn.Linear(10, 1)
    base.requires_grad_(False)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    needed: dict[int, set] = {}
    made: list[int] = []

    def look(observation):
        disk = observation.machine.disk
        needed.setdefault(len(made), set()).add((disk.next_bytes, disk.next_files))

    state = {"base": base, "adapter": adapter, "optimizer": optimizer}
    options = {"save": every(steps=100), "saver": "inline", "keep": latest(50), "health": [own(look, wants=["disk"])]}
    with holdfast.Checkpointer(tmp_path / "s", run="r", state=state, **options) as ckpt:
        for step in ckpt.steps(2000):
            adapter(torch.ones(1, 10)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 100 == 1:
                made.append(sum(1 for _ in (tmp_path / "s").rglob("*")))
            if len(made) >= 4 and len(needed) >= 4:
                break
            time.sleep(0.0005 if len(made) in needed else 0.02)  # no stage is over before it was looked at
    expected = {size for size, _ in needed.pop(1)}
    assert all(size < 3 << 20 for size in expected), "what is frozen is no part of each"
    later = [need for some in needed.values() for need in some if need[0] is not None]
    assert later
    assert all(size < 3 << 20 for size, _ in later)
    assert all(max(b - a for a, b in itertools.pairwise(made[1:])) <= files < 40 for _, files in later)


def fused_or_not(folder: Path, fused: bool, ill=()):
    """The norms of gradients and the verdicts on them, of a training with a loss scaler that doubles now and then."""
    torch.manual_seed(1)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10)
    norms = {}

    def look(observation):
        norms.update({one.step: one.norm for one in observation.probes if one.norm is not None})

    watch = [nonfinite("gradients", every=every(steps=1)), own(look, wants=["gradients"])]
    state = {"model": model, "optimizer": optimizer, "scaler": scaler}
    with holdfast.Checkpointer(folder, run="r", state=state, health=watch, saver="inline") as ckpt:
        for step in ckpt.steps(40):
            at, factor = BATCH * step, float("inf") if step in ill else 1.0
            loss = mse_loss(model(DATA.x[at : at + BATCH]), DATA.y[at : at + BATCH])
            scaler.scale(loss * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return norms, events(folder, "verdict")


def test_a_scaler_that_leaves_the_gradients_to_the_optimizer_changes_no_norm(tmp_path):
    """Fused optimizers divide by the scale themselves: what is seen before that is twice as much when it doubles."""
    plain, _ = fused_or_not(tmp_path / "plain", False)
    fused, _ = fused_or_not(tmp_path / "fused", True)
    assert len(plain) == 39, "the first one is asked for behind the first step"
    assert fused == pytest.approx(plain, rel=1e-3)


def test_a_step_that_a_scaler_skips_is_no_verdict_on_a_fused_optimizer_either(tmp_path):
    """It overflows now and then by design, and is not seen with any other optimizer."""
    norms, verdicts = fused_or_not(tmp_path / "s", True, ill={20, 30})
    assert verdicts == []
    assert len(norms) == 37


class Behind(SimStreams):
    """Everything is done in time, and known some looks later."""

    def finished(self, event):
        event.asked += 1
        return event.asked > 9 and super().finished(event)


def test_what_a_device_says_late_is_waited_for_before_the_end(tmp_path, monkeypatch):
    """The very last step breaks the parameters, and the device is some steps behind: that must not be the result."""
    streams = Behind(everywhere=0, prompt=True)
    monkeypatch.setattr(probing, "streams_in_use", lambda: streams)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"model": model, "optimizer": optimizer}
    options = {"save": every(steps=1000), "health": [when(nonfinite("parameters", every=every(steps=1)), stop())]}
    with (
        pytest.raises(Unhealthy, match="parameters are not finite"),
        holdfast.Checkpointer(tmp_path / "s", run="r", state=state, saver="inline", **options) as ckpt,
    ):
        for step in ckpt.steps(40):
            factor = float("nan") if step == 39 else 1.0
            (model(torch.ones(1, 2)).sum() * factor).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert holdfast.open(tmp_path / "s").run(1).records() == []


def leaping(model, loss):
    return loss * 1e6


def overflowing(model, loss):
    model.weight.data.fill_(INF)
    return loss


@pytest.mark.parametrize(
    ("check", "spoil"),
    [(spike("grad_norm", window=5), leaping), (nonfinite("parameters", every=every(steps=1)), overflowing)],
    ids=["spike", "infinity"],
)
def test_last_is_from_before_what_a_device_has_said_late(tmp_path, monkeypatch, check, spoil):
    """The checkpoint that was made meanwhile has what was found: the training would go back to that again and again."""
    monkeypatch.setattr(probing, "streams_in_use", lambda: Behind(everywhere=0, prompt=True))
    torch.manual_seed(1)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    ill = [80]
    options = {
        "save": every(steps=2),
        "keep": latest(99),
        "saver": "inline",
        "health": [when(check, rollback(to="last"))],
    }
    state = {"model": model, "optimizer": optimizer}
    with holdfast.Checkpointer(tmp_path / "s", run="r", state=state, **options) as ckpt:
        for step in ckpt.steps(100):
            optimizer.zero_grad()
            loss = model(torch.ones(1, 8) * (1 + step % 7 / 100)).sum()
            if step in ill:
                ill.remove(step)
                loss = spoil(model, loss)
            loss.backward()
            optimizer.step()
    verdict, event = events(tmp_path / "s", "verdict")[0].data, events(tmp_path / "s", "rollback")[0].data
    assert verdict["step"] - verdict["last"] > 2, "it was known late"
    assert 0 < verdict["last"] - event["to_step"] <= 2


def test_what_happens_is_in_the_journal_while_the_training_runs(tmp_path, monkeypatch):
    """Not only at its end: a training that is killed has to leave a trace."""
    from holdfast.recovery.saving import afterwards

    monkeypatch.setattr(afterwards, "JOURNAL_SECONDS", 0.0)

    def look(step, number, ckpt):
        if step == 40:
            assert events(tmp_path / "s", "verdict")

    train(tmp_path / "s", ill={20}, total=50, at_step=look, saver="process")


@pytest.mark.parametrize("saver", ["process", "inline"])
@pytest.mark.parametrize("good_after", [30, 100], ids=["at that moment", "long ago"])
def test_of_checkpoints_that_retention_has_deleted_before_they_were_good_nothing_is_said(
    tmp_path, saver, good_after, caplog
):
    def save(step, number, ckpt):
        if step % 10 == 0:
            ckpt.save(wait="durable")  # so what retention deletes is gone before anything is marked

    train(tmp_path / "s", keep=latest(3), good_after=good_after, saver=saver, save=every(steps=1000), at_step=save)
    assert len(holdfast.open(tmp_path / "s").run(1).records()) <= 4, "three, and the newest good one"
    assert [event.message for event in events(tmp_path / "s", "not noted")] == []
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_no_mark_is_asked_for_once_it_is_known_that_the_checkpoint_is_gone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Checkpoints, "add_mark", lambda self, target, kind: asked.append(target.step))
    train(tmp_path / "s", keep=latest(3), good_after=100, saver="inline")
    assert asked == []


def test_where_nothing_is_good_yet_the_stop_says_what_is_needed_and_what_another_rollback_would_do(tmp_path):
    needed = r"no checkpoint is good yet \(good_after=100 steps without a doubt after it are needed\)"
    health = [when(nonfinite("loss"), rollback())]
    with pytest.raises(Unhealthy, match=needed + r'; rollback\(to="last"\) would go back to run-001@12 '):
        train(tmp_path / "some", health=health, ill={12}, save=every(steps=3), good_after=100)
    with pytest.raises(Unhealthy, match=needed + r', and there is none that rollback\(to="last"\) could go back to'):
        train(tmp_path / "none", health=health, ill={12}, save=every(steps=50), good_after=100)
    (verdict,) = events(tmp_path / "some", "verdict")
    assert verdict.message.endswith("loss is nan; asked for: rollback()"), "not that it was done"


def test_a_stop_before_the_first_step_speaks_of_no_time_that_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(vitals, "disk", lambda folder: Disk(where=str(folder), free_bytes=1, free_inodes=1000))
    with pytest.raises(Unhealthy, match="too little"):
        train(tmp_path / "s", health=[when(disk_low(), stop())], saver="inline")
    assert [event.message for event in events(tmp_path / "s", "stopped")] == [
        "step 0 is not saved; there is no checkpoint"
    ]


@pytest.mark.parametrize("saver", ["process", "inline"])
@pytest.mark.parametrize("given", [600, 600.0, True, False, watchdog, "on"], ids=["s", "f", "yes", "no", "bare", "on"])
def test_what_is_no_watchdog_is_refused_with_what_to_write(tmp_path, given, saver):
    with pytest.raises(InvalidInput, match=r"write watchdog=holdfast\.health\.watchdog\(hung=600\), or watchdog='off'"):
        train(tmp_path / "s", watchdog=given, saver=saver)
    assert not (tmp_path / "s").exists(), "refused before anything is touched"


def test_a_rule_alone_is_a_list_of_one(tmp_path):
    with pytest.raises(Unhealthy, match="loss is nan"):
        train(tmp_path / "s", health=when(nonfinite("loss"), stop()), ill={3})
