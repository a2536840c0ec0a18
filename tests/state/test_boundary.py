"""What tells that a step was made, or that something has changed since the last one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from holdfast.state.boundary import BufferChanges, OptimizerSteps
from holdfast.state.gradients import clear_gradients


def watching(*objects):
    changes = BufferChanges(objects)
    changes.look()
    changes.note()
    return changes


class Codebook(nn.Module):
    """Averages by assignment, as many do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, x):
        self.cache = x
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x
        return x


@pytest.mark.parametrize("module", [nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))], ids=str)
def test_a_forward_pass_in_training_changes_batch_norm(module):
    changes = watching(module)
    module(torch.randn(8, 4))
    assert changes.any
    changes.note()
    assert not changes.any


def test_an_evaluation_changes_nothing():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Codebook()).eval()
    changes = watching(module)
    with torch.inference_mode():
        module(torch.randn(3, 4))
    assert not changes.any


def test_buffers_that_are_assigned_anew_are_seen_and_caches_are_not():
    module = Codebook()
    changes = watching(module)
    module.eval()(torch.ones(3))
    assert not changes.any
    module.train()(torch.ones(3))
    assert changes.any


def test_objects_without_buffers_never_change():
    changes = watching(nn.Linear(2, 2), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1), object())
    assert not changes.any


def test_steps_of_watched_optimizers_are_counted_and_others_are_not():
    mine, other = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1) for _ in range(2))
    counter = OptimizerSteps([mine])
    with counter:
        mine.step()
        other.step()
        assert counter.taken == 1
        counter.reset()
        assert counter.taken == 0
    mine.step()
    assert counter.taken == 0, "the hook outlived the loop"


class Wrapped(torch.optim.Optimizer):
    """As accelerate wraps an optimizer: an Optimizer by class, whose own constructor never ran."""

    def __init__(self, inner):
        self.optimizer = inner

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        self.optimizer.step(closure)


def sgd(size=1):
    return torch.optim.SGD([torch.zeros(size, requires_grad=True)], lr=1)


def test_steps_of_an_optimizer_within_wrappers_are_counted_once():
    """Three hundred steps were made, and the loop stood at step 0."""
    outer = Wrapped(Wrapped(sgd()))
    with OptimizerSteps([outer, outer.optimizer]) as counter:
        assert counter.sees
        outer.step()
        assert counter.taken == 1


def test_an_optimizer_that_steps_through_another_one_is_counted_by_that():
    """Sharpness-aware minimisation as it is usually written: its own step() is never called."""

    class Around(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})
            self.base_optimizer = torch.optim.SGD(self.param_groups, lr=1)

        def first_step(self):
            self.param_groups[0]["params"][0].data.add_(1)

        def second_step(self):
            self.base_optimizer.step()

    around = Around([torch.zeros(1, requires_grad=True)])
    with OptimizerSteps([around]) as counter:
        around.first_step()
        around.second_step()
        assert counter.taken == 1


def test_an_optimizer_that_contains_itself_is_watched_too():
    odd = sgd()
    odd.optimizer = odd
    with OptimizerSteps([odd]) as counter:
        odd.step()
        assert counter.taken == 1


def test_an_optimizer_that_sums_up_gradients_while_another_steps_is_told():
    """Two optimizers of one loop: a checkpoint between the steps of one is amid the sum of the other."""
    quick, slow, idle = sgd(), sgd(), sgd()
    with OptimizerSteps([quick, Wrapped(slow), idle]) as counter:
        for one in (quick, slow):
            one.param_groups[0]["params"][0].grad = torch.ones(1)
        quick.step()
        assert counter.lagging() == [slow]
        slow.step()
        assert counter.lagging() == []
        counter.reset()
        assert counter.lagging() == [quick, slow]
        for one in (quick, slow):
            one.zero_grad()
        assert counter.lagging() == []


def test_gradients_are_let_go_of_everywhere():
    """Those of a batch that was rolled back would be added to the next ones."""
    model, other, alone = nn.Linear(2, 2), sgd(), nn.Parameter(torch.zeros(1))
    parameters = [*model.parameters(), *other.param_groups[0]["params"], alone]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    clear_gradients([model, Wrapped(other), alone, object(), torch.Generator()])
    assert [parameter.grad for parameter in parameters] == [None] * 4
