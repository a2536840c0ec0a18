"""Optimizers: state by parameter name, written where it lives, with its own dtype, and the next step is the same."""

import copy

import pytest
import torch
from torch import nn

from holdfast.errors import RestoreFailed, StateError, StateMismatch, UnsupportedValue
from holdfast.state import capture, restore

from .state_roundtrip import Trained, assert_resumes, digest, save

optim = torch.optim


def model(seed=0, dtype=torch.float32, width=300):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "SGD with momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=0.01),
    "Adam for loops": lambda p: optim.Adam(p, lr=0.01, foreach=False),
    "Adam foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "Adam with a tensor for its rate": lambda p: optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
    "AdamW fused": lambda p: optim.AdamW(p, lr=0.01, fused=True),
    "AdamW amsgrad": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True, maximize=True),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: optim.Adamax(p, lr=0.01),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "Adadelta": lambda p: optim.Adadelta(p),
    "Adafactor": lambda p: optim.Adafactor(p),
    "ASGD": lambda p: optim.ASGD(p),
    "RMSprop": lambda p: optim.RMSprop(p, momentum=0.9, centered=True),
    "Rprop": lambda p: optim.Rprop(p),
    "LBFGS": lambda p: optim.LBFGS(p, history_size=3, max_iter=4),
    "LBFGS with line search": lambda p: optim.LBFGS(p, line_search_fn="strong_wolfe", max_iter=4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_to_the_same_bytes(name):
    def make(seed):
        net = model(seed)
        return Trained(net, OPTIMIZERS[name](list(net.parameters())))

    assert_resumes(make)


@pytest.mark.parametrize("name", ["SGD with momentum", "AdamW fused", "LBFGS"])
def test_training_goes_on_from_an_optimizer_that_has_other_state(name):
    def make(seed):
        net = model(seed)
        return Trained(net, OPTIMIZERS[name](list(net.parameters())))

    assert_resumes(make, restore_into=make(4).steps(5, seed=3))


def test_sparse_adam_goes_on_to_the_same_bytes():
    class Sparse(Trained):
        def steps(self, count, seed=0):
            generator = torch.Generator().manual_seed(seed)
            for _ in range(count):
                self.optimizer.zero_grad()
                self.model(torch.randint(0, 50, (9,), generator=generator)).pow(2).sum().backward()
                self.optimizer.step()
            return self

    def make(seed):
        torch.manual_seed(seed)
        net = nn.Embedding(50, 16, sparse=True)
        return Sparse(net, optim.SparseAdam(net.parameters()))

    assert_resumes(make)


def test_muon_goes_on_to_the_same_bytes():
    def make(seed):
        net = model(seed)
        return Trained(net, optim.Muon([p for p in net.parameters() if p.ndim == 2]))

    if not hasattr(optim, "Muon"):
        pytest.skip("this torch has no Muon")
    assert_resumes(make)


def test_float32_moments_of_bfloat16_parameters_stay_float32():
    """Hazards 8: load_state_dict casts the moments to the dtype of the parameter."""

    def make(seed):
        net = model(seed, torch.bfloat16)
        trained = Trained(net, optim.SGD(net.parameters(), lr=0.1))
        for p in net.parameters():
            trained.optimizer.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.full(p.shape, 1 / 3)}
        return trained

    first = make(0)
    for p in first.model.parameters():
        first.optimizer.state[p]["exp_avg"] += torch.rand(p.shape)
    stored = save(first.objects)

    aliased = make(1)
    aliased.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    assert aliased.optimizer.state[aliased.model[0].weight]["exp_avg"].dtype == torch.bfloat16, "torch has been mended"

    for second in (make(1), Trained(net := model(2, torch.bfloat16), optim.SGD(net.parameters(), lr=0.1))):
        restore(second.objects, stored)
        assert {s["exp_avg"].dtype for s in second.optimizer.state.values()} == {torch.float32}
        assert digest(second.objects) == digest(first.objects)


def test_nothing_is_shared_between_two_optimizers_restored_from_one_checkpoint():
    """Hazards 8: load_state_dict keeps the tensors that it is given."""
    nets = [model(0), model(1), model(2)]
    first, second, third = (Trained(net, optim.AdamW(net.parameters())) for net in nets)
    stored = save(first.steps(2).objects)
    restore(second.objects, stored)
    restore(third.objects, stored)
    second.steps(1)
    third.steps(1)
    assert digest(second.objects) == digest(third.objects)


def test_memory_of_parameters_and_live_state_stays_where_it_is():
    first, second = (Trained(net := model(s), optim.AdamW(net.parameters())).steps(2, seed=s) for s in (0, 1))

    def addresses():
        tensors = [*second.model.parameters(), *(t for s in second.optimizer.state.values() for t in s.values())]
        return [t.data_ptr() for t in tensors]

    before = addresses()
    restore(second.objects, save(first.objects))
    assert addresses() == before


def test_a_tensor_for_the_rate_stays_the_same_object():
    """A captured graph reads the rate from its address."""
    first, second = (
        Trained(net := model(s), optim.AdamW(net.parameters(), lr=torch.tensor(r))) for s, r in ((0, 0.5), (1, 0.1))
    )
    rate = second.optimizer.param_groups[0]["lr"]
    restore(second.objects, save(first.objects))
    assert second.optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.5


def test_an_optimizer_that_never_stepped_is_saved_without_stepping_it():
    """Saving must not run step() to find out what state there would be."""
    net = model()
    optimizer = optim.AdamW(net.parameters())
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    stored = save({"model": net, "optimizer": optimizer})
    second = Trained(other := model(1), optim.AdamW(other.parameters())).steps(3)
    restore(second.objects, stored)
    assert not calls
    assert not optimizer.state
    assert not second.optimizer.state
    assert digest(second.objects) == digest({"model": net, "optimizer": optimizer})


def test_state_of_parameters_that_never_had_a_gradient_may_be_absent():
    """Users-ask 27: such parameters broke the loading of optimizers."""

    def make(seed):
        net = model(seed)
        net.unused = nn.Linear(3, 3)
        return Trained(net, optim.AdamW(net.parameters()))

    def forward(net):
        net.forward = lambda x: net[2](net[1](net[0](x)))
        return net

    first, second = make(0), make(1)
    forward(first.model), forward(second.model)
    first.steps(2)
    assert len(first.optimizer.state) == 4
    restore(second.objects, save(first.objects))
    assert len(second.optimizer.state) == 4
    assert digest(first.steps(2).objects) == digest(second.steps(2).objects)


def test_state_goes_by_name_and_not_by_number():
    """Two groups in another order inside are the same optimizer."""
    nets = [model(s) for s in (0, 1)]
    first = Trained(nets[0], optim.AdamW(list(nets[0].parameters()))).steps(2)
    second = Trained(nets[1], optim.AdamW(list(nets[1].parameters())[::-1]))
    restore(second.objects, save(first.objects))
    for (name, p), q in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(first.optimizer.state[p]["exp_avg"], second.optimizer.state[q]["exp_avg"]), name


def test_lbfgs_refuses_another_order_since_it_lays_parameters_end_to_end():
    nets = [model(s) for s in (0, 1)]
    first = Trained(nets[0], optim.LBFGS(list(nets[0].parameters()))).steps(2)
    second = Trained(nets[1], optim.LBFGS(list(nets[1].parameters())[::-1]))
    with pytest.raises(StateMismatch, match="another order"):
        restore(second.objects, save(first.objects))


def test_parameters_of_no_captured_module_are_all_listed():
    """Hazards 47: the model was replaced after the optimizer was built."""
    stale = model()
    with pytest.raises(
        StateError, match=r"optimizer: 4 of 4 parameters .* group 0 parameter 0 of shape \[300, 8\].*parameter 3"
    ):
        capture({"model": model(), "optimizer": optim.SGD(stale.parameters(), lr=1)})


def test_a_captured_tensor_names_its_parameter():
    def make(seed):
        w = nn.Parameter(torch.rand(400, generator=torch.Generator().manual_seed(seed)))
        return {"w": w, "optimizer": optim.Adam([w])}

    first, second = make(0), make(1)
    first["w"].sum().backward()
    first["optimizer"].step()
    restore(second, save(first))
    assert digest(second) == digest(first)
    assert {s.name for s in capture(second).skeleton.tensors} >= {"w"}


def test_differences_of_the_groups_are_all_named_before_anything_changes():
    first, second, third = model(0), model(1), model(1)
    stored = save({"model": first, "optimizer": optim.SGD(first.parameters(), lr=1)})
    split = optim.SGD([{"params": second[0].parameters()}, {"params": second[2].parameters()}], lr=3)
    before = digest({"model": second, "optimizer": split})
    with pytest.raises(StateMismatch, match=r"stored with 1 parameter groups, has 2 now; .*before it is resumed"):
        restore({"model": second, "optimizer": split}, stored)
    assert digest({"model": second, "optimizer": split}) == before
    less = optim.SGD([third[0].weight], lr=3)
    with pytest.raises(StateMismatch, match=r"model/0.bias was optimised when it was stored(.|\n)*model/2.weight was"):
        restore({"model": third, "optimizer": less}, stored)


def test_a_parameter_that_changed_its_group_is_named():
    first, second = model(0), model(1)

    def optimizer(net, cut):
        params = list(net.parameters())
        return optim.SGD([{"params": params[:cut], "lr": 1}, {"params": params[cut:], "lr": 2}])

    stored = save({"model": first, "optimizer": optimizer(first, 2)})
    with pytest.raises(StateMismatch, match=r"1 differences.*\n.*model/0.bias is in another parameter group"):
        restore({"model": second, "optimizer": optimizer(second, 1)}, stored)


def test_group_values_of_a_newer_torch_stay_as_they_are():
    first, second = model(0), model(1)
    stored = save({"model": first, "optimizer": optim.SGD(first.parameters(), lr=1)})
    newer = optim.SGD(second.parameters(), lr=2)
    newer.param_groups[0]["brand_new"] = "kept"
    restore({"model": second, "optimizer": newer}, stored)
    assert newer.param_groups[0]["brand_new"] == "kept"
    assert newer.param_groups[0]["lr"] == 1


def test_a_value_in_a_group_that_cannot_be_stored_is_named_by_its_path():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=1)
    optimizer.param_groups[0]["callback"] = print
    with pytest.raises(UnsupportedValue, match="optimizer/param_groups/0/callback is a"):
        capture({"model": net, "optimizer": optimizer})


def test_state_under_keys_that_are_no_parameters_comes_back():
    def make(seed):
        net = model(seed)
        return Trained(net, optim.SGD(net.parameters(), lr=1))

    first, second = make(0), make(1)
    first.optimizer.state["global"] = {"calls": 3, "norm": torch.rand(500)}
    second.optimizer.state["stale"] = 1
    restore(second.objects, save(first.objects))
    assert set(second.optimizer.state) == {"global"}
    assert torch.equal(second.optimizer.state["global"]["norm"], first.optimizer.state["global"]["norm"])


class OwnSGD(optim.SGD):
    """Keeps a counter outside of its state."""

    calls = 0

    def step(self, closure=None):
        self.calls += 1
        return super().step(closure)

    def state_dict(self):
        return super().state_dict() | {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state.pop("calls")
        super().load_state_dict(state)


def test_an_optimizer_with_methods_of_its_own_is_asked_through_them():
    def make(seed):
        net = model(seed)
        return Trained(net, OwnSGD(net.parameters(), lr=0.1, momentum=0.9))

    _, second = assert_resumes(make)
    assert second.optimizer.calls == 5


def test_an_optimizer_with_hooks_on_its_state_is_asked_through_them():
    def make(seed):
        net = model(seed)
        trained = Trained(net, optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
        trained.optimizer.register_state_dict_post_hook(lambda _, state: state | {"hooked": True})
        trained.optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append(state.pop("hooked")))
        return trained

    seen = []
    assert_resumes(make)
    assert seen == [True]


def test_an_optimizer_that_casts_what_it_loads_is_an_error_that_names_the_entries():
    """Hazards 8: its own method may cast; the comparison of digests finds it."""

    def make(seed):
        net = model(seed, torch.bfloat16)
        optimizer = OwnSGD(net.parameters(), lr=0.1)
        for p in net.parameters():
            optimizer.state[p] = {"exp_avg": torch.rand(p.shape)}
        return {"model": net, "optimizer": optimizer}

    with pytest.raises(RestoreFailed, match="exp_avg: stored as float32, is bfloat16"):
        restore(make(1), save(make(0)))


def test_an_optimizer_with_methods_of_its_own_refuses_another_order():
    nets = model(0), model(1)
    first, second = OwnSGD(nets[0].parameters(), lr=1), OwnSGD(list(nets[1].parameters())[::-1], lr=1)
    with pytest.raises(StateMismatch, match="another order"):
        restore({"model": nets[1], "optimizer": second}, save({"model": nets[0], "optimizer": first}))


class Around(OwnSGD):
    """Steps through another optimizer, as sharpness-aware minimisation does, and keeps the groups of both one."""

    def __init__(self, params, **options):
        super().__init__(params, lr=0.1)
        self.base_optimizer = optim.SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        return self.base_optimizer.step(closure)

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.base_optimizer.param_groups = self.param_groups


def test_an_optimizer_inside_another_one_goes_on_when_both_are_captured():
    def make(seed):
        net = model(seed)
        around = Around(net.parameters(), lr=0.1, momentum=0.9)
        return {"model": net, "optimizer": around, "base": around.base_optimizer}

    def step(objects):
        for p in objects["model"].parameters():
            p.grad = torch.ones_like(p)
        objects["optimizer"].step()

    first, second = make(0), make(1)
    step(first)
    restore(second, save(first))
    step(first)
    step(second)
    assert digest(second) == digest(first)


def test_two_optimizers_of_one_model_do_not_mix():
    def make(seed):
        net = model(seed)
        pair = optim.AdamW(net[0].parameters()), optim.SGD(net[2].parameters(), lr=0.1, momentum=0.9)
        net(torch.rand(4, 8)).sum().backward()
        for optimizer in pair:
            optimizer.step()
        return {"model": net, "a": pair[0], "b": pair[1]}

    first, second = make(0), make(1)
    restore(second, save(first))
    assert digest(second) == digest(first)


def test_channels_last_moments_are_made_in_the_order_in_which_they_were():
    """Hazards 43: without a live target they would come back row-major."""

    def make(seed):
        torch.manual_seed(seed)
        net = nn.Conv2d(16, 32, 3).to(memory_format=torch.channels_last)
        return Trained(net, optim.AdamW(net.parameters()), (2, 16, 8, 8))

    _, second = assert_resumes(make)
    moment = second.optimizer.state[second.model.weight]["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last)


def test_state_tied_to_a_parameter_is_tied_again():
    """A slow copy of weights that is the parameter itself must not become a copy."""

    def make(seed):
        net = model(seed)
        optimizer = optim.SGD(net.parameters(), lr=1)
        return {"model": net, "optimizer": optimizer}

    first, second = make(0), make(1)
    for p in first["model"].parameters():
        first["optimizer"].state[p] = {"anchor": p.detach(), "again": p.detach(), "buffer": torch.rand(p.shape)}
    restore(second, save(first))
    state = second["optimizer"].state[second["model"][0].weight]
    assert state["anchor"].data_ptr() == state["again"].data_ptr() == second["model"][0].weight.data_ptr()
    assert not state["anchor"].requires_grad
    assert state["buffer"].data_ptr() != state["anchor"].data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["AdamW", "AdamW fused", "SGD with momentum", "LBFGS"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_training_goes_on_on_cuda_from_a_checkpoint_of_either_device(name, device):
    def make(seed, where):
        net = model(seed).to(where)
        return Trained(net, OPTIMIZERS[name](list(net.parameters())))

    def step(trained):
        trained.optimizer.zero_grad()

        def closure():
            loss = trained.model(torch.ones(4, 8, device="cuda")).pow(2).sum()
            loss.backward()
            return loss

        closure()
        trained.optimizer.step(closure)

    first = make(0, device)
    first.model(torch.ones(4, 8, device=device)).pow(2).sum().backward()
    first.optimizer.step(lambda: torch.tensor(1.0))
    second = make(1, "cuda")
    restore(second.objects, save(first.objects))
    assert digest(second.objects) == digest(first.objects)
    step(second)
    devices = {
        t.device.type for s in second.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)
    }
    assert "cuda" in devices
