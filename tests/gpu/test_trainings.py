"""Whole trainings on a real device, with a saver process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import holdfast
from holdfast import Checkpointer, every
from holdfast.catalog.verifying.verify import verify

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

WIDTH = 256


class Training:
    """With dropout, so that it depends on the random numbers of the device; bit for bit the same each time."""

    def __init__(self, folder, **options):
        torch.manual_seed(7)
        self.model = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH)
        ).cuda()
        self.ema = AveragedModel(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, **options.pop("adam", {}))
        state = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema}
        self.ckpt = Checkpointer(folder, run="r", state=state, **{"saver": "process", "save": every(steps=1)} | options)

    def run(self, steps, *, before=lambda step: None):
        with self.ckpt:
            for step in self.ckpt.steps(steps):
                before(step)
                self.ema.update_parameters(self.model)
                self.optimizer.zero_grad()
                loss = self.model(torch.randn(32, WIDTH, device="cuda")).pow(2).mean()
                loss.backward()
                self.optimizer.step()
                self.ckpt.log(loss=loss)
        torch.cuda.synchronize()
        return self

    @property
    def staging(self):
        return self.ckpt._training._checkpoints._saves.slots.stager._devices

    def bits(self):
        return [t.detach().cpu() for t in (*self.model.state_dict().values(), *self.ema.state_dict().values())]


def digests(folder):
    return {one.step: one.manifest_digest for one in holdfast.open(folder).run(1).records()}


@pytest.mark.parametrize("adam", [{}, {"fused": True}, {"foreach": False}], ids=str)
def test_checkpoints_are_those_of_a_training_that_waits_for_each(tmp_path, adam):
    under_way = []
    Training(tmp_path / "inline", saver="inline", keep=every(steps=1), adam=adam).run(12)
    one = Training(tmp_path / "late", keep=every(steps=1), adam=adam)
    one.run(12, before=lambda step: under_way.append(bool(step > 3 and one.staging._flight)))
    assert digests(tmp_path / "late") == digests(tmp_path / "inline")
    assert verify(holdfast.open(tmp_path / "late"), deep=True).ok


def test_a_tensor_among_the_values_stays_on_the_device(tmp_path):
    for steps in (1, 2):
        training = Training(tmp_path / "s")
        training.ckpt.values["mean"] = torch.full((3,), float(steps), device="cuda")
        training.run(steps)
    mean = training.ckpt.values["mean"]
    assert (mean.device.type, mean.tolist()) == ("cuda", [1.0] * 3)


def test_a_resumed_training_draws_the_same_random_numbers(tmp_path):
    whole = Training(tmp_path / "whole", save=every(steps=1000)).run(10).bits()
    Training(tmp_path / "parts").run(5)
    parts = Training(tmp_path / "parts").run(10).bits()
    assert all(map(torch.equal, whole, parts))


def test_logging_a_value_of_the_device_waits_for_nothing(tmp_path):
    one = Training(tmp_path, save=every(steps=1000))
    with one.ckpt:
        for _ in one.ckpt.steps(3):
            loss = one.model(torch.randn(32, WIDTH, device="cuda")).pow(2).mean()
            loss.backward()
            one.optimizer.step()
            torch.cuda.set_sync_debug_mode("error")
            try:
                one.ckpt.log(loss=loss)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert one.ckpt.last.metrics["loss"] == loss.item()


def test_the_saver_has_nothing_of_cuda(tmp_path):
    one, seen = Training(tmp_path), []

    def before(step):
        if step == 4:
            pid = one.ckpt._training._checkpoints._saves.process.pid
            seen.append(Path(f"/proc/{pid}/maps").read_text())
            seen.extend(str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink())

    one.run(6, before=before)
    assert seen
    assert not [line for text in seen for line in text.splitlines() if "nvidia" in line or "libcuda" in line]


def test_check_staging_names_what_was_written_behind_everybodys_back(tmp_path, caplog):
    one = Training(tmp_path, check_staging=True, on_save_error=3, keep=every(steps=1))

    def before(step):
        if step == 6:
            one.model[0].weight.data.mul_(1.5)

    one.run(8, before=before)
    assert 6 not in digests(tmp_path)
    assert digests(tmp_path).keys() >= {5, 7, 8}
    assert "model/0.weight" in caplog.text


KILLED = """
import os, signal, sys, torch
sys.path[:0] = [{root!r}, {kits!r}]
from tests.gpu.test_trainings import Training
from holdfast import every
one = Training({folder!r}, save=every(steps=1000), stage=every(steps=1))
def before(step):
    if step == {step}:
        if {late}:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.cuda.synchronize()
        one.staging.settle(60)
        os.kill(os.getpid(), signal.SIGKILL)
one.run(20, before=before)
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_training_that_is_killed_goes_on_from_a_complete_copy(tmp_path, late):
    """Killed while the device may still copy: from this boundary or from the one before, never from a mixture."""
    root = Path(__file__).parents[2]
    code = KILLED.format(root=str(root), kits=str(root / "tests" / "kits"), folder=str(tmp_path), step=6, late=late)
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    died = subprocess.run([sys.executable, "-c", code], check=False, timeout=300, env=environment)
    assert died.returncode == -signal.SIGKILL
    parts = Training(tmp_path).run(10).bits()
    start = next(one for one in holdfast.open(tmp_path).run(1).starts() if one.launch == 2)
    assert start.resumed_from.step in ((5, 6) if late else (6,))
    whole = Training(tmp_path / "whole", save=every(steps=1000)).run(10).bits()
    assert all(map(torch.equal, whole, parts))
