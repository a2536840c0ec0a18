"""The audit names what has state and is not captured. Users-ask 30, hazards 47."""

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler

from holdfast.state import audit


def setup():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    return model, optimizer, lr_scheduler.StepLR(optimizer, 1)


def found(objects, namespace=None):
    return {finding.name: finding.serious for finding in audit(objects, namespace)}


def test_a_forgotten_average_scheduler_scaler_and_generator_are_named():
    model, optimizer, scheduler = setup()
    namespace = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "ema": copy.deepcopy(model),
        "scaler": torch.amp.GradScaler("cpu"),
        "gen": torch.Generator(),
        "rng": np.random.default_rng(0),
        "py": random.Random(0),
        "lr": 0.1,
        "nn": nn,
        "Linear": nn.Linear,
        "loss": nn.MSELoss(),
        "fn": setup,
    }
    assert found({"model": model, "optimizer": optimizer}, namespace) == dict.fromkeys(
        ["scheduler", "ema", "scaler", "gen", "rng", "py"], True
    )


def test_nothing_is_said_when_everything_is_captured():
    model, optimizer, scheduler = setup()
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    assert audit(objects, objects | {"layer": model, "wrapped": [model], "again": {"o": optimizer}}) == []


def test_parts_of_captured_objects_and_wrapped_ones_are_no_finding():
    model = nn.Sequential(nn.Linear(2, 2))
    wrapped = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    inner = [lr_scheduler.LinearLR(optimizer), lr_scheduler.StepLR(optimizer, 1)]
    chain = lr_scheduler.SequentialLR(optimizer, inner, [2])
    namespace = {"model": model, "first": model[0], "warmup": inner[0]}
    assert audit({"model": wrapped, "optimizer": optimizer, "scheduler": chain}, namespace) == []


def test_state_inside_an_object_of_the_program_is_found_with_its_path():
    model, optimizer, scheduler = setup()

    class Trainer:
        def __init__(self):
            self.ema = copy.deepcopy(model)
            self.parts = {"scheduler": scheduler}
            self.me = self

    findings = found({"model": model, "optimizer": optimizer}, {"trainer": Trainer()})
    assert findings == {"trainer.ema": True, "trainer.parts['scheduler']": True}


def test_a_generator_on_a_captured_model_is_found():
    model, optimizer, _ = setup()
    model.noise = torch.Generator()
    assert found({"model": model, "optimizer": optimizer}) == {"model.noise": True}


def test_an_optimizer_of_a_replaced_model_is_found():
    _, optimizer, _ = setup()
    assert found({"model": nn.Linear(2, 2), "optimizer": optimizer}) == {"optimizer": True, "model": False}


def test_trainable_parameters_in_no_optimizer_are_worth_knowing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=1)
    (finding,) = audit({"model": model, "optimizer": optimizer})
    assert not finding.serious
    assert str(finding) == "model (Sequential) has 2 trainable parameters that no captured optimizer updates"


def test_nothing_of_what_is_found_is_called():
    class Trap:
        def state_dict(self):
            raise AssertionError("called")

        load_state_dict = state_dict

        @property
        def expensive(self):
            raise AssertionError("called")

    assert found({}, {"trap": Trap()}) == {"trap": True}
