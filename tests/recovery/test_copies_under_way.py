"""Saves that return while devices still copy: simulated devices, a real training, a real saver process."""

import logging
import os
import signal

import pytest
import torch
import torch.optim.swa_utils
from staged_kit import Family, awaited, check_store, record_at, resumed
from streams_kit import Failed, SimStreams, touched
from torch import nn
from toy_training import ended, forked

import holdfast
from holdfast import Checkpointer, every
from holdfast.saver.memory import Slab
from holdfast.state.staging_cuda import CudaStaging
from holdfast.state.step_hook import STEP_HOOK

WIDTH, STEPS = 40, 8


class Training:
    """A model with a frozen base, running means and an average of its weights, all of it on one simulated device."""

    def __init__(self, folder, *, devices=True, frozen=False, **options):
        torch.set_num_threads(1)  # forked children have none of the others
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
        if frozen:
            self.model.register_parameter("base", nn.Parameter(torch.rand(WIDTH, WIDTH), requires_grad=False))
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.01)
        self.extra = nn.Module()
        state = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema, "extra": self.extra}
        options = {"save": every(steps=1), "saver": "process"} | options
        self.ckpt = Checkpointer(folder, run="r", state=state, **options)
        self.sim = SimStreams(prompt=True, everywhere=0)
        if devices:
            self.saves = self.ckpt._life.opened()._checkpoints._saves
            stager = self.saves.slots.stager
            self.staging = stager._devices = CudaStaging(stager.control, self.sim, stager.check)

    def forward(self):
        self.ema.update_parameters(self.model)
        self.model(torch.randn(8, WIDTH)).pow(2).mean().backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, steps=STEPS, *, before=lambda step: None, after=lambda step: None):
        with self.ckpt:
            for step in self.ckpt.steps(steps):
                before(step)
                self.forward()
                self.step()
                after(step)
        return self

    @property
    def under_way(self):
        """Whether a save has returned, and not all of its copies are complete."""
        flight = self.staging._flight
        return flight is not None and not all(event.happened for event in flight.events.values())


def digests(folder):
    """What every checkpoint holds."""
    return {one.step: one.manifest_digest for one in holdfast.open(folder).run(1).records()}


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert not STEP_HOOK.installed


WAYS = [{}, {"frozen": True}, {"check_staging": True}, {"stage": every(steps=1), "save": every(steps=3)}]


@pytest.mark.parametrize("options", WAYS)
def test_checkpoints_are_those_of_a_training_that_waits_for_its_copies(tmp_path, options):
    keep = {"keep": every(steps=1)}
    steps = 20 if "frozen" in options else STEPS  # in 16 saves each frozen tensor has its turn to be copied
    Training(tmp_path / "inline", devices=False, **keep, **options, saver="inline").run(steps)
    under_way = []
    one = Training(tmp_path / "late", **keep, **options)
    one.run(steps, before=lambda step: under_way.append(one.under_way))
    assert any(under_way)
    assert digests(tmp_path / "late") == digests(tmp_path / "inline")
    assert len(digests(tmp_path / "late")) >= STEPS // 3
    check_store(tmp_path / "late")
    assert one.sim.registered == {}


def test_a_save_of_a_policy_returns_before_its_copies_and_they_are_complete_when_the_step_begins(tmp_path):
    one = Training(tmp_path)
    noted = []

    def before(step):
        noted.append((one.under_way, len(one.saves.process.control.rows())))

    def after(step):
        noted[-1] += (one.under_way,)

    one.run(before=before, after=after)
    assert [early for early, _, _ in noted[3:]] == [True] * (STEPS - 3)
    assert not any(late for _, _, late in noted)
    assert one.ckpt.last.step == STEPS


def test_a_save_that_is_asked_for_is_complete_when_the_call_returns(tmp_path):
    one = Training(tmp_path, save=every(steps=1000))
    noted = []

    def before(step):
        one.ckpt.save()
        noted.append(one.under_way)

    one.run(before=before)
    assert noted == [False] * STEPS


def test_a_copy_that_somebody_wrote_into_is_given_up_and_the_next_one_is_good(tmp_path, caplog):
    one = Training(tmp_path, keep=every(steps=1), on_save_error=3)

    def before(step):
        if step == 5:
            assert one.under_way
            with torch.no_grad():
                one.model[0].weight.clamp_(-0.01, 0.01)

    one.run(before=before)
    assert sorted(digests(tmp_path)) == [1, 2, 3, 4, 6, 7, 8]
    assert "model/0.weight changed between the boundary and the step" in caplog.text
    check_store(tmp_path)


def test_a_device_that_fails_ends_the_training_and_not_the_checkpoints(tmp_path, caplog):
    one = Training(tmp_path)

    def before(step):
        if step == 5:
            assert one.under_way
            one.sim.broken = True
            raise Failed("an illegal memory access was encountered")

    with pytest.raises(Failed), caplog.at_level(logging.ERROR):
        one.run(before=before)
    assert max(digests(tmp_path)) == 4
    assert "failed before the copy was complete" in caplog.text
    check_store(tmp_path)


def test_a_reserve_whose_copy_is_not_complete_never_replaces_one_that_is(tmp_path):
    """Killed while a device copies: what counts is the reserve before."""

    def lived():
        one = Training(tmp_path, save=every(steps=1000), stage=every(steps=1))

        def before(step):
            if step == 5:
                assert one.under_way
                os.kill(os.getpid(), signal.SIGKILL)

        one.run(before=before)

    family = Family()
    assert ended(forked(family.of(lived))) == -signal.SIGKILL
    family.await_savers_end()
    assert record_at(tmp_path, 4).reason.endswith("staged at step 4")
    assert ended(forked(lambda: Training(tmp_path).run())) == 0
    assert resumed(tmp_path, 2)[0] == 4


def test_a_reserve_is_complete_before_a_rescue(tmp_path):
    one = Training(tmp_path, save=every(steps=1000), stage=every(steps=1))

    def before(step):
        if step == 5:
            assert one.under_way
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        one.run(before=before)
    assert sorted(digests(tmp_path)) == [5]
    check_store(tmp_path)


def test_a_restore_waits_for_copies_that_are_under_way(tmp_path):
    """Else a reserve would be made of two states, and sealed."""
    one = Training(tmp_path, save=every(steps=3), stage=every(steps=1))
    seen = []
    one.sim.after = lambda: seen.append(one.ckpt.step)
    with one.ckpt:
        for step in one.ckpt.steps(STEPS):
            if step == 5:
                assert one.under_way
                break
            one.forward()
            one.step()
        one.ckpt.restore()
        assert not one.under_way
        assert one.saves._reserves() == []
        assert one.ckpt.step == 3
    assert set(seen) <= {1, 2, 3, 4, 5}


def test_a_structure_that_changes_is_pinned_anew_and_nothing_pinned_is_given_back(tmp_path, monkeypatch):
    one = Training(tmp_path, stage=every(steps=1))
    one.extra.register_buffer("more", torch.ones(1 << 20))
    given_back = []

    def release(slab, start, length, release=Slab.release):
        given_back.append(touched(one.sim, slab, start, length))
        release(slab, start, length)

    monkeypatch.setattr(Slab, "release", release)

    def before(step):
        if step == 4:
            assert one.under_way
            rows = one.saves.process.control.rows
            awaited(lambda: not any(row.pending for row in rows()), "the saver is through with all that is sealed")
            del one.extra.more

    one.run(before=before)
    assert given_back == [False] * len(given_back) != []
    assert one.sim.registrations > 3
    assert one.sim.registered == {}
    check_store(tmp_path)
