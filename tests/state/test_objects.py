"""Schedulers, scalers, generators and other objects with state: they go on where they were."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as sched

from holdfast.errors import InvalidInput, StateMismatch
from holdfast.state import capture, restore

from .state_roundtrip import digest, save

SCHEDULERS = {
    "StepLR": lambda o: sched.StepLR(o, 2),
    "MultiStepLR": lambda o: sched.MultiStepLR(o, [2, 3, 3, 5]),
    "LambdaLR": lambda o: sched.LambdaLR(o, lambda n: 0.9**n),
    "ConstantLR": lambda o: sched.ConstantLR(o),
    "LinearLR": lambda o: sched.LinearLR(o),
    "ExponentialLR": lambda o: sched.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: sched.PolynomialLR(o, 7),
    "CosineAnnealingLR": lambda o: sched.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: sched.OneCycleLR(o, 0.5, 20),
    "CyclicLR": lambda o: sched.CyclicLR(o, 0.1, 0.5, 3),
    "SequentialLR": lambda o: sched.SequentialLR(o, [sched.LinearLR(o), sched.StepLR(o, 2)], [3]),
    "ChainedScheduler": lambda o: sched.ChainedScheduler([sched.LinearLR(o), sched.StepLR(o, 2)]),
    "ReduceLROnPlateau": lambda o: sched.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_where_it_was(name):
    """Hazards 14: MultiStepLR keeps a Counter with integer keys."""

    def make():
        net = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        return {"m": net, "o": optimizer, "s": SCHEDULERS[name](optimizer)}

    def step(objects, count):
        rates = []
        for i in range(count):
            objects["o"].step()
            objects["s"].step(*([1.0 + i] if name == "ReduceLROnPlateau" else []))
            rates.append(objects["o"].param_groups[0]["lr"])
        return rates

    first, second = make(), make()
    step(first, 4)
    second["o"].step()
    restore(second, save(first))
    assert digest(second) == digest(first)
    assert step(second, 4) == step(first, 4)


def test_a_scheduler_of_another_class_is_refused_before_anything_changes():
    """LRScheduler.load_state_dict would take anything in silence."""

    def make(scheduler):
        optimizer = torch.optim.SGD([nn.Parameter(torch.rand(2))], lr=0.1)
        return {"s": scheduler(optimizer)}

    second = make(SCHEDULERS["CosineAnnealingLR"])
    before = digest(second)
    with pytest.raises(StateMismatch, match="s/T_max: missing in the checkpoint"):
        restore(second, save(make(SCHEDULERS["StepLR"])))
    assert digest(second) == before


def test_private_entries_of_a_newer_library_do_not_stop_a_load():
    class Scheduler:
        def __init__(self, **state):
            self.__dict__.update(state)

        def state_dict(self):
            return dict(self.__dict__)

        def load_state_dict(self, state):
            self.__dict__.update(state)

    second = Scheduler(last=0, _brand_new=1)
    restore({"s": second}, save({"s": Scheduler(last=5)}))
    assert (second.last, second._brand_new) == (5, 1)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_gradient_scaler_goes_on_where_it_was(enabled):
    first, second = (torch.amp.GradScaler("cpu", enabled=enabled, init_scale=s, growth_interval=2) for s in (8.0, 2.0))
    if enabled:
        net = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        first.scale(net(torch.ones(1, 2)).sum()).backward()
        first.step(optimizer)
        first.update()
    restore({"g": second}, save({"g": first}))
    assert digest({"g": second}) == digest({"g": first})


def test_what_a_gradient_scaler_had_is_left_out_where_it_is_switched_off(caplog):
    first, second = (torch.amp.GradScaler("cpu", enabled=enabled, init_scale=8.0) for enabled in (True, False))
    with caplog.at_level("INFO"):
        restore({"g": second}, save({"g": first}))
    assert "g is switched off" in caplog.text
    assert second.state_dict() == {}


def test_a_lazy_object_gets_what_it_does_not_have_yet():
    class Average:
        shadow = None

        def state_dict(self):
            return {} if self.shadow is None else {"shadow": self.shadow}

        def load_state_dict(self, state):
            self.shadow = state.get("shadow")

    first, second = Average(), Average()
    first.shadow = {"w": torch.rand(300)}
    restore({"ema": second}, save({"ema": first}))
    assert torch.equal(second.shadow["w"], first.shadow["w"])


GENERATORS = {
    "torch": lambda s: torch.Generator().manual_seed(s),
    "Python": lambda s: random.Random(s),
    **{
        name: lambda s, name=name: np.random.Generator(getattr(np.random, name)(s))
        for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
    },
    "RandomState": lambda s: np.random.RandomState(s),
    "bit generator": lambda s: np.random.Philox(s),
}


def draw(generator):
    if isinstance(generator, torch.Generator):
        return torch.rand(5, generator=generator).tolist()
    if isinstance(generator, random.Random):
        return [generator.random(), generator.gauss(0, 1)]
    if isinstance(generator, np.random.BitGenerator):
        return generator.random_raw(3).tolist()
    draws = [generator.normal(size=5).tolist()]
    return (
        [*draws, generator.integers(10, size=3, dtype=np.int32).tolist()] if hasattr(generator, "integers") else draws
    )


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_goes_on_where_it_was(name):
    """Hazards 14: the states of NumPy have 128-bit integers."""
    first, second = GENERATORS[name](0), GENERATORS[name](1)
    draw(first)
    restore({"g": second}, save({"g": first}))
    assert [draw(first), draw(first)] == [draw(second), draw(second)]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_among_values_comes_back_as_one(name):
    first = GENERATORS[name](0)
    draw(first)
    found = restore({}, save({}, {"g": [first]})).values["g"][0]
    assert type(found) is type(first)
    assert [draw(first), draw(first)] == [draw(found), draw(found)]


def test_a_generator_of_another_algorithm_is_refused():
    second = GENERATORS["PCG64"](1)
    with pytest.raises(StateMismatch, match=r"of MT19937 generator, is .* of PCG64 now"):
        restore({"g": second}, save({"g": GENERATORS["MT19937"](0)}))


def test_objects_are_restored_in_an_order_that_suits_them_whatever_the_users():
    def make(seed):
        torch.manual_seed(seed)
        net = nn.Linear(20, 20)
        optimizer = torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.1 + seed))
        net(torch.rand(3, 20)).sum().backward()
        optimizer.step()
        return {"g": torch.Generator().manual_seed(seed), "s": sched.StepLR(optimizer, 2), "o": optimizer, "m": net}

    first, second = make(0), make(1)
    restore(second, save(first))
    assert digest(second) == digest(first)
    assert list(capture(second).values_bytes)[:1]


def test_an_object_that_raises_when_it_is_looked_at_is_refused_by_name():
    class AttrDict(dict):
        __getattr__ = dict.__getitem__

    with pytest.raises(InvalidInput, match=r"state\['config'\] is a AttrDict, which cannot be put back"):
        capture({"config": AttrDict(lr=0.1)})
