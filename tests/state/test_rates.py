"""Scaling of learning rates: of optimizers, and of the schedulers that would set them back."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from holdfast.state.rates import scale_rates

MAKERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "weight averaging": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=10),
    "weight averaging at its end": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=3),
}


def rates(maker, *, scaled_at=None, factor=1.0, steps=16):
    """The rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = maker(optimizer)
    found = []
    for step in range(steps):
        if step == scaled_at:
            scale_rates([optimizer, scheduler, object()], factor)
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", MAKERS)
def test_a_scheduler_goes_on_with_the_same_curve_that_much_lower(kind):
    before, after = rates(MAKERS[kind]), rates(MAKERS[kind], scaled_at=6, factor=0.25)
    assert after[:6] == before[:6]
    assert after[6:] == pytest.approx([0.25 * rate for rate in before[6:]], rel=1e-6)


def test_a_rate_that_is_a_tensor_is_scaled_where_it_lies():
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=rate, capturable=False, foreach=False)
    assert scale_rates([optimizer], 0.5) == [0.25]
    assert optimizer.param_groups[0]["lr"] is rate


def test_a_tensor_that_all_groups_have_for_their_rate_is_scaled_once():
    """Torch gives every group the very tensor that it was given."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": [one]} for one in weights], lr=torch.tensor(0.5))
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    assert optimizer.param_groups[0]["lr"] is optimizer.param_groups[1]["lr"]
    assert scale_rates([optimizer, scheduler], 0.5) == [0.25, 0.25]
    assert [float(rate) for rate in (*scheduler.base_lrs, *scheduler.get_last_lr())] == [0.25] * 4


def test_what_is_registered_under_two_names_is_scaled_once():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    scale_rates([optimizer, scheduler, optimizer, scheduler], 0.5)
    assert scheduler.base_lrs == [0.25]
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_part_of_a_chain_that_is_registered_as_well_is_scaled_once():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    part = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    chain = lr_scheduler.ChainedScheduler([part])
    scale_rates([part, optimizer, chain], 0.5)
    assert part.base_lrs == [0.25]
