"""A training that looks after itself: it goes back, leaves out what made it ill, and stops aloud if it must."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

import holdfast
from holdfast import every, latest
from holdfast.catalog import layout
from holdfast.catalog.journal import read_journal
from holdfast.errors import Unhealthy
from holdfast.health import (
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
    when,
)
from holdfast.ids import RunNumber
from holdfast.recovery import telling

TOTAL = 160
BATCH = 4


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
    folder: Path, *, health=None, ill=(), spoil=lambda x: x * float("nan"), at_step=None, total=TOTAL, **settings
):
    """Batches whose numbers are in ``ill`` are spoilt."""
    torch.manual_seed(1)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    found = Trained()
    settings = {"save": every(steps=10), "keep": latest(50), "good_after": 5, **settings}
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    with holdfast.Checkpointer(folder, run="plane", state=state, health=health, **settings) as ckpt:
        for step, (index, x, y) in ckpt.batches(DataLoader(DATA, batch_size=BATCH), total_steps=total):
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
    """NaN first, then a spike. Left alone, the same training never has a number again."""
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


def test_without_a_good_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(Unhealthy, match="nothing to go back to"):
        train(tmp_path / "s", health=CARED_FOR, ill={3})


def test_a_stop_saves_what_is_worth_saving(tmp_path):
    def tired(observation):
        return "enough" if observation.step >= 33 else None

    with pytest.raises(Unhealthy, match="enough"):
        train(tmp_path / "s", health=[when(own(tired), stop())])
    assert holdfast.open(tmp_path / "s").run(1).records()[-1].step == 33


def test_what_is_broken_at_the_very_end_is_not_made_the_result(tmp_path):
    with pytest.raises(Unhealthy, match="loss is nan"):
        train(tmp_path / "s", health=[when(nonfinite("loss"), stop())], ill={39}, total=40, save=every(steps=15))
    last = holdfast.open(tmp_path / "s").run(1).records()[-1]
    assert (last.step, last.kind) == (30, "regular")
    assert events(tmp_path / "s", "exit")[-1].data["how"] == "failed"


def test_what_breaks_in_the_very_last_step_is_recovered_from(tmp_path):
    found = train(tmp_path / "s", health=CARED_FOR, ill={39}, total=40)
    assert found.seen[-1] > 39
    assert holdfast.open(tmp_path / "s").run(1).records()[-1].anomalies == []


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


def test_what_happens_is_in_the_journal_while_the_training_runs(tmp_path, monkeypatch):
    """Not only at its end: a training that is killed has to leave a trace."""
    from holdfast.recovery import afterwards

    monkeypatch.setattr(afterwards, "JOURNAL_SECONDS", 0.0)

    def look(step, number, ckpt):
        if step == 40:
            assert events(tmp_path / "s", "verdict")

    train(tmp_path / "s", ill={20}, total=50, at_step=look, saver="process")
