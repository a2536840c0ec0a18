"""What one checkpoint holds: lazy modules before their first forward pass, shared values, generators of a replay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from holdfast.errors import HoldfastError, UnsupportedTensor
from holdfast.recovery.restoring.whole import Whole


def whole(**objects: object) -> Whole:
    return Whole(objects=objects, values={}, files={})


def test_lazy_modules_may_wait_for_their_first_forward_pass() -> None:
    """A fresh start was refused for parameters that the first batch would have made."""
    model = nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4))
    state = whole(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    state.check()
    with pytest.raises(UnsupportedTensor):
        state.snapshot(rng={}, data=None)
    model(torch.ones(3, 2))
    assert state.snapshot(rng={}, data=None).logical_bytes


def test_beside_a_lazy_module_everything_else_is_checked() -> None:
    with pytest.raises(HoldfastError, match="cannot be put back"):
        whole(model=nn.LazyLinear(4), odd=object()).check()
    with pytest.raises(HoldfastError, match="meta"):
        whole(model=nn.LazyLinear(4), other=nn.Linear(2, 2, device="meta")).check()


def test_a_value_that_is_a_parameter_is_noted() -> None:
    """After a restore it is a copy: the weight goes on without it."""
    model = nn.Linear(2, 2)
    state = whole(model=model)
    state.values.update({"best": model.weight.detach(), "apart": model.weight.detach().clone()})
    (note,) = state.snapshot(rng={}, data=None).anomalies
    assert note.startswith("values/user/best is model/weight itself")


def test_generators_stay_where_they_are_when_a_replay_fails() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    with pytest.raises(ValueError, match="replay"), whole(generator=generator).generators_kept():
        torch.rand(3, generator=generator)
        raise ValueError("replay")
    assert torch.equal(generator.get_state(), before)
