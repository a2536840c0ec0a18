"""What the next checkpoint will need, before there is one to go by."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import holdfast
from holdfast.recovery.caring.needs import BESIDE, SLACK, expected, live_bytes

MIB = 1 << 20


def layers():
    """1 MiB of weights, and a quarter as frozen ones."""
    frozen = nn.Linear(256, 256, bias=False).requires_grad_(False)
    return nn.ModuleDict({"trained": nn.Linear(512, 512, bias=False), "frozen": frozen})


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [
        (lambda weights: AdamW(weights), 2),
        (lambda weights: SGD(weights, lr=0.1, momentum=0.9), 1),
        (lambda weights: SGD(weights, lr=0.1), 0),
    ],
    ids=["adamw", "momentum", "plain"],
)
def test_an_optimizer_without_a_step_will_have_moments_of_what_is_trained(optimizer, moments):
    model = layers()
    assert live_bytes([model, optimizer(model.parameters())]) == MIB + MIB // 4 + moments * MIB


def test_what_an_optimizer_holds_is_counted_as_it_is():
    model = layers()
    optimizer = AdamW(model.parameters(), amsgrad=True)
    model["trained"](torch.ones(1, 512)).sum().backward()
    optimizer.step()
    assert live_bytes([model, optimizer]) == MIB + MIB // 4 + 3 * MIB + 4  # and the number of its step


def test_an_optimizer_may_keep_other_things_beside_its_moments():
    model = layers()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.state["calls"] = 7
    assert live_bytes([model, optimizer]) == MIB + MIB // 4


def test_what_is_there_under_two_names_is_counted_once():
    model = layers()
    optimizer = AdamW(model.parameters())
    once = live_bytes([model, optimizer])
    assert live_bytes([model, optimizer, model["trained"], model, optimizer, model["trained"].weight]) == once


def test_buffers_count_as_far_as_they_are_saved():
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(1000))
    model.register_buffer("made_anew", torch.zeros(1000), persistent=False)
    assert live_bytes([model]) == 4000


def test_a_layer_that_has_no_size_yet_is_passed_over():
    assert live_bytes([nn.LazyLinear(3), object()]) == 0


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_the_first_checkpoint_is_about_as_large_as_was_expected(kind, tmp_path):
    model = nn.Linear(512, 512)
    optimizer = kind(model.parameters(), lr=0.1)
    found = expected([model, optimizer], world=1)
    state = {"model": model, "optimizer": optimizer}
    with holdfast.Checkpointer(tmp_path / "s", run="r", state=state, saver="inline") as ckpt:
        for _ in ckpt.steps(1):
            model(torch.ones(1, 512)).sum().backward()
            optimizer.step()
    (record,) = holdfast.open(tmp_path / "s").run(1).records()
    assert record.bytes.logical < found.bytes < 1.2 * record.bytes.logical + SLACK
    assert len(record.packs) + record.world < found.files < 2 * BESIDE


def test_of_a_sharded_tensor_the_whole_is_counted_for_the_store_takes_it_from_all_ranks():
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        shard = distribute_tensor(torch.zeros(512, 512), DeviceMesh("cpu", list(range(4))), [Shard(0)])
        assert shard.to_local().nbytes == MIB // 4
        assert live_bytes([shard]) == MIB
    finally:
        destroy_process_group()
