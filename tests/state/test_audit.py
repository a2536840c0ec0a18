"""The audit names what has state and is not captured. Users-ask 30, hazards 47."""

import copy
import random
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

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


class Around(torch.optim.Optimizer):
    """Steps through another optimizer, and saves nothing for it."""

    def __init__(self, params):
        super().__init__(params, {})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=1, momentum=0.9)

    def step(self, closure=None):
        return self.base_optimizer.step(closure)


class SavesForIt(Around):
    def state_dict(self):
        return {"base": self.base_optimizer.state_dict()}

    def load_state_dict(self, state):
        self.base_optimizer.load_state_dict(state["base"])


class SharesState(Around):
    def __init__(self, params):
        super().__init__(params)
        self.base_optimizer.state = self.state


def test_an_optimizer_inside_one_that_does_not_save_its_state_is_found():
    model = nn.Linear(2, 2)
    around = Around(model.parameters())
    objects = {"model": model, "optimizer": around}
    assert found(objects, objects) == {"optimizer.base_optimizer": True}
    assert found(objects | {"base": around.base_optimizer}, objects) == {}


def test_an_optimizer_whose_outer_one_is_called_like_a_wrapper_is_found_as_well():
    model = nn.Linear(2, 2)
    around = Around(model.parameters())
    around.optimizer = around.__dict__.pop("base_optimizer")
    assert found({"model": model, "optimizer": around}) == {"optimizer.optimizer": True}


@pytest.mark.parametrize("outer", [SavesForIt, SharesState])
def test_an_optimizer_whose_state_is_saved_by_the_outer_one_is_no_finding(outer):
    model = nn.Linear(2, 2)
    objects = {"model": model, "optimizer": outer(model.parameters())}
    assert found(objects, objects) == {}


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


class AttrDict(dict):
    __getattr__ = dict.__getitem__


class NotReady:
    """A proxy of something that is made at first use, and cannot be made here."""

    def __getattr__(self, name):
        raise RuntimeError("not initialised")

    @property
    def __class__(self):
        raise RuntimeError("not initialised")


class NoDict:
    __slots__ = ()

    @property
    def __dict__(self):
        raise RuntimeError("outside of a request")


class Torn(nn.Module):
    """Its __init__ has not come as far as Module's own."""

    def __init__(self):
        pass


class Hostile(list):
    def __iter__(self):
        raise AssertionError("called")

    __getitem__ = __len__ = __iter__


class BadName:
    def __repr__(self):
        raise ValueError("no name")


ODD = {
    "a dictionary with attributes": lambda: AttrDict(lr=0.1),
    "a lazy proxy": NotReady,
    "no dictionary": NoDict,
    "a torn module": Torn,
    "a list that cannot be read": lambda: Hostile([1]),
    "a key without a name": lambda: {BadName(): 1},
    "a proxy in a list": lambda: [NotReady()],
    "a dictionary with attributes in another": lambda: {"a": AttrDict()},
}


@pytest.mark.parametrize("odd", ODD)
def test_whatever_stands_in_the_namespace_the_audit_does_not_raise(odd):
    """The training of a program with lazy proxies must not end because somebody looked at them."""
    model, optimizer, scheduler = setup()
    namespace = {"odd": ODD[odd](), "scheduler": scheduler}
    assert found({"model": model, "optimizer": optimizer}, namespace) == {"scheduler": True}


def test_odd_things_that_are_captured_do_not_end_the_audit_either():
    model, _, scheduler = setup()
    assert found({"model": model, "odd": NotReady(), "torn": Torn()}, {"s": scheduler}) == {"s": True}


def test_a_mock_has_no_state():
    assert found({}, {"logger": MagicMock(), "trainer": [MagicMock(spec=nn.Linear(1, 1))]}) == {}


def test_wrappers_around_captured_modules_are_no_finding():
    model, optimizer, _ = setup()
    namespace = {
        "compiled": torch.compile(model, backend="eager"),
        "parallel": nn.DataParallel(model),
        "with_softmax": nn.Sequential(model, nn.Softmax(-1)),
    }
    objects = {"model": model, "optimizer": optimizer}
    assert found(objects, namespace) == {}
    assert found(objects, namespace | {"more": nn.Sequential(model, nn.Linear(2, 2))}) == {"more": True}


def test_what_holds_constants_only_is_no_finding():
    namespace = {
        "criterion": nn.CrossEntropyLoss(weight=torch.ones(3)),
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "secrets": random.SystemRandom(),
    }
    assert found({}, namespace) == {}


def test_what_hangs_on_a_module_without_tensors_is_found_all_the_same():
    noise = nn.Dropout()
    noise.generator = torch.Generator()
    assert found({}, {"noise": noise}) == {"noise.generator": True}


def test_a_loss_of_the_user_with_a_moving_buffer_is_a_finding():
    class Centred(nn.MSELoss):
        def __init__(self):
            super().__init__()
            self.register_buffer("centre", torch.zeros(2))

    assert found({}, {"criterion": Centred()}) == {"criterion": True}


def test_the_generator_of_the_loader_is_captured_with_its_position():
    model, optimizer, _ = setup()
    generator, other = torch.Generator(), torch.Generator()
    loader = DataLoader([1, 2, 3], shuffle=True, generator=generator)
    objects = {"model": model, "optimizer": optimizer, "loader": loader}
    assert found(objects, {"g": generator, "loader": loader, "other": other}) == {"other": True}


def test_the_objects_of_an_earlier_checkpointer_are_its_own(tmp_path):
    from holdfast import Checkpointer

    model, optimizer, _ = setup()
    with Checkpointer(tmp_path, run="earlier", state={"model": nn.Linear(2, 2)}) as earlier:
        assert found({"model": model, "optimizer": optimizer}, {"earlier": earlier}) == {}
