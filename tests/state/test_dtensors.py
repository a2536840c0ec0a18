"""DTensors outside of modules and of torch's own optimizers come back as they lay on the ranks."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from worlds import free_port

from holdfast.errors import RestoreFailed, StateError, StateMismatch, UnsupportedValue
from holdfast.state import capture, restore
from holdfast.state.restore import like_values

from .state_roundtrip import digest, save


@pytest.fixture(autouse=True)
def alone():
    """A world of one rank."""
    store = torch.distributed.TCPStore("127.0.0.1", free_port(), 1, is_master=True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(40, 40)
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(40, 40)


class Average:
    """Of the parameters of a model, by their names."""

    def __init__(self, model=None):
        self.shadow = {} if model is None else {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model):
        for name, p in model.named_parameters():
            self.shadow[name].lerp_(p.detach(), 0.1)

    def state_dict(self):
        return dict(self.shadow)

    def load_state_dict(self, state):
        self.shadow = dict(state)


class Gathers(Average):
    """Keeps whole tensors, whatever it had."""

    def load_state_dict(self, state):
        self.shadow = {name: one.full_tensor() for name, one in state.items()}


class OwnAdam(torch.optim.AdamW):
    def load_state_dict(self, state):
        super().load_state_dict(state)


class HasExtra(nn.Module):
    def __init__(self, fill):
        super().__init__()
        self.inner = plain()
        mesh = init_device_mesh("cpu", (1,))
        self.extra = DTensor.from_local(torch.full((600,), fill), mesh, [Shard(0)], run_check=False)

    def get_extra_state(self):
        return {"extra": self.extra}

    def set_extra_state(self, state):
        self.extra = state["extra"]


def step(objects):
    objects["model"](torch.ones(2, 40)).sum().backward()
    objects["optimizer"].step()
    objects["optimizer"].zero_grad()


def test_an_average_of_shards_comes_back_as_shards_and_is_updated():
    first, second = sharded(0), sharded(1)
    objects, target = ({"model": one, "average": Average(one)} for one in (first, second))
    restore(target, save(objects))
    found = target["average"].shadow["weight"]
    assert isinstance(found, DTensor)
    assert (found.placements, found.device_mesh) == (second.weight.placements, second.weight.device_mesh)
    target["average"].update(second)
    objects["average"].update(first)
    assert digest(target) == digest(objects)


def test_what_was_saved_whole_becomes_shards_where_the_program_has_them_and_the_reverse():
    whole, shards = Average(plain(0)), Average(sharded(1))
    restore({"a": shards}, save({"a": whole}))
    assert torch.equal(shards.shadow["weight"].full_tensor(), whole.shadow["weight"])
    again = Average(plain(2))
    restore({"a": again}, save({"a": shards}))
    assert type(again.shadow["weight"]) is torch.Tensor
    assert torch.equal(again.shadow["weight"], whole.shadow["weight"])


def test_an_optimizer_with_methods_of_its_own_goes_on_with_shards():
    first, second = ({"model": model, "optimizer": OwnAdam(model.parameters())} for model in (sharded(0), sharded(1)))
    step(first)
    restore(second, save(first))
    moments = [one["exp_avg"] for one in second["optimizer"].state.values()]
    assert all(isinstance(one, DTensor) for one in moments)
    step(first)
    step(second)
    assert digest(second) == digest(first)


def test_extra_state_that_lies_on_ranks_does_so_again():
    second = HasExtra(2.0)
    restore({"m": second}, save({"m": HasExtra(1.0)}))
    assert isinstance(second.extra, DTensor)
    assert second.extra.to_local()[0] == 1


def test_shards_of_which_nothing_tells_how_they_lie_are_refused_before_anything_changes():
    model, before = sharded(1), sharded(1)
    with pytest.raises(StateMismatch, match="average/weight: stored as a DTensor, and nothing tells") as error:
        restore({"model": model, "average": Average()}, save({"model": sharded(0), "average": Average(sharded(0))}))
    assert "average/bias" in str(error.value)
    assert torch.equal(model.weight.to_local(), before.weight.to_local())


def test_an_object_that_makes_whole_tensors_of_shards_is_an_error_that_names_them():
    with pytest.raises(RestoreFailed, match="a/weight: was a DTensor before the load, is a plain tensor after it"):
        restore({"a": Gathers(sharded(1))}, save({"a": Average(sharded(0))}))


def test_a_dtensor_among_plain_values_is_refused_with_its_path():
    with pytest.raises(StateError, match=r"values/mean is a DTensor among plain values.*full_tensor"):
        capture({}, {"mean": sharded().weight.detach()})


def test_a_tensor_among_values_goes_where_the_program_has_the_one_of_its_path():
    mean = torch.ones(3)
    like = like_values({"user": {"mean": mean}})
    assert like("values/user/mean").data_ptr() == mean.data_ptr()
    assert like("values/user/other") is None
    with pytest.raises(UnsupportedValue):
        capture({}, {"odd": object()})
    assert like_values({"user": {"odd": object()}})("values/user/odd") is None
