"""Scaling of learning rates: of optimizers, and of the schedulers that would set them back."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from holdfast.state.rates import scale_rates

MAKERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
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
