"""Copies beside a training on a real device: what is sealed is the state of the boundary, whatever comes after it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from holdfast.errors import SaveFailed
from holdfast.packs.buffers import address
from holdfast.saver.memory import Slab
from holdfast.state.step_hook import STEP_HOOK
from holdfast.state.streams import CudaStreams

from .staging_support import Slot, differing, truth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

WIDTH = 512


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm, self.outer = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return self.outer(self.dropout(self.norm(self.inner(x))))


class Trained:
    """A model that is trained on a device, and a slot that is past its first save, so that copies may be late."""

    def __init__(self, make=lambda p: torch.optim.AdamW(p, lr=0.01), *, check=False, **others):
        self.model = Net().cuda()
        self.optimizer = make(self.model.parameters())
        self.objects = {"model": self.model, "optimizer": self.optimizer, **others}
        self.slot = Slot(self.objects, check=check)

    def __enter__(self):
        self.train()
        self.slot.save()
        return self.train(2)

    def __exit__(self, *_):
        self.slot.__exit__()

    def forward(self):
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.model(torch.ones(16, WIDTH, device="cuda")).pow(2).mean()
        loss.backward()
        return loss

    def train(self, steps=1):
        for _ in range(steps):
            self.forward()
            self.optimizer.step()
            self.slot.step += 1
        return self


def test_a_save_returns_first_the_step_waits_and_the_stream_seals():
    with Trained() as one:
        expected = truth(one.objects)
        one.slot.hold_up()
        one.slot.save()
        assert "model/inner.weight" in one.slot.names_under_way
        assert not any("norm.running" in name for name in one.slot.names_under_way)
        assert not one.slot.sealed
        one.train()
        assert not one.slot.sealed, "the host did not wait, only the stream of the training"
        one.slot.await_seal()
        assert differing(one.slot.content(), expected) == []


def test_without_the_hook_such_a_copy_is_torn():
    """That the test above can fail."""
    with Trained() as one:
        expected = truth(one.objects)
        one.slot.hold_up()
        one.slot.save()
        STEP_HOOK.remove(one.slot.staging._before_step)
        one.train()
        one.slot.await_seal()
        assert differing(one.slot.content(), expected) != []


def test_the_copy_waits_for_what_the_training_has_put_on_its_stream():
    with Trained() as one:
        torch.cuda._sleep(500_000_000)
        one.train()
        one.slot.save()
        torch.cuda._sleep(500_000_000)
        one.slot.await_seal()
        assert differing(one.slot.content(), truth(one.objects)) == []


def test_a_training_on_a_stream_of_its_own_is_waited_for_and_waits():
    with Trained() as one, torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        one.train()
        expected = truth(one.objects)
        one.slot.hold_up()
        one.slot.save()
        one.train()
        one.slot.await_seal()
        assert differing(one.slot.content(), expected) == []


def test_a_step_makes_the_host_wait_for_nothing():
    with Trained(lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True)) as one:
        one.forward()
        one.slot.hold_up()
        one.slot.save()
        torch.cuda.set_sync_debug_mode("error")
        try:
            one.optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not one.slot.sealed


@pytest.mark.parametrize("fused", [False, True])
def test_averages_that_are_updated_before_the_step_are_those_of_the_boundary(fused):
    with Trained(lambda p: torch.optim.AdamW(p, lr=0.01, fused=fused)) as one:
        ema = AveragedModel(one.model)
        one.objects["ema"] = ema
        one.slot.save()
        one.train(2)
        expected = truth(one.objects)
        one.slot.hold_up()
        one.slot.save()
        assert not any(name.startswith("ema/") for name in one.slot.names_under_way)
        ema.update_parameters(one.model)
        one.model(torch.ones(16, WIDTH, device="cuda"))  # running means
        one.train()
        one.slot.await_seal()
        assert differing(one.slot.content(), expected) == []


def test_an_optimizer_that_nobody_registered_waits_as_well():
    with Trained() as one:
        other = torch.optim.SGD(one.model.parameters(), lr=0.5)
        expected = truth(one.objects)
        one.forward()
        one.slot.hold_up()
        one.slot.save()
        other.step()
        one.slot.await_seal()
        found = one.slot.content()
        assert [name for name in differing(found, expected) if "norm.running" not in name] == []


def test_an_optimizer_without_the_hook_makes_its_parameters_eager():
    class Foreign:
        def __init__(self, parameters):
            self.parameters = list(parameters)

        def step(self):
            for p in self.parameters:
                p.data.sub_(0.1 * p.grad)

    with Trained() as one:
        foreign = Foreign(one.model.outer.parameters())
        one.optimizer.param_groups[0]["params"] = [*one.model.inner.parameters(), *one.model.norm.parameters()]
        for p in one.model.outer.parameters():
            one.optimizer.state.pop(p)
        one.train()
        one.slot.save()
        one.train(2)
        expected = truth(one.objects)
        one.forward()
        one.slot.hold_up()
        one.slot.save()
        assert one.slot.names_under_way
        assert "model/outer.weight" not in one.slot.names_under_way
        foreign.step()
        one.slot.await_seal()
        assert [name for name in differing(one.slot.content(), expected) if "norm.running" not in name] == []


# CUDA graphs


def captured(one):
    """The whole step as a graph, recorded as the documents of torch say."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            one.forward()
            one.optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one.forward()
        one.optimizer.step()
    return graph


# What torch says where a step of an optimizer that is made for graphs is not in one.
@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")
def test_what_a_graph_steps_is_copied_before_the_save_returns():
    with Trained(lambda p: torch.optim.AdamW(p, lr=0.01, capturable=True)) as one:
        graph = captured(one)
        for _ in range(3):
            graph.replay()
            one.slot.step += 1
            expected = truth(one.objects)
            one.slot.hold_up()
            one.slot.save()
            assert one.slot.names_under_way == set()
            assert one.slot.sealed
            graph.replay()
            torch.cuda.synchronize()
            assert differing(one.slot.content(), expected) == []


def test_a_graph_of_sgd_which_has_no_flag_is_seen_when_it_is_recorded():
    with Trained(lambda p: torch.optim.SGD(p, lr=0.01)) as one:
        expected = truth(one.objects)
        one.slot.hold_up()
        one.slot.save()
        assert one.slot.names_under_way
        graph = captured(one)
        graph.replay()
        one.slot.await_seal()
        assert differing(one.slot.content(), expected) == []
        one.train(2)
        one.slot.save()
        assert one.slot.names_under_way == set()


def test_a_graph_that_is_recorded_while_a_copy_is_under_way_is_good():
    """With no wait of torch's own before it: the hook looks at the seal, and asks CUDA for nothing."""
    with Trained(lambda p: torch.optim.SGD(p, lr=0.01)) as one:
        captured(one)  # everything that is made at the first call is there now
    with Trained(lambda p: torch.optim.SGD(p, lr=0.01)) as one:
        one.forward()
        expected = truth(one.objects)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        one.slot.hold_up()
        one.slot.save()
        assert one.slot.names_under_way
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin()
            one.optimizer.step()
            graph.capture_end()
            graph.replay()
        torch.cuda.synchronize()
        assert one.slot.sealed
        assert [name for name in differing(one.slot.content(), expected) if "norm.running" not in name] == []
        assert one.slot.staging.settle(60)
        assert one.slot.staging.lost() == []


def test_a_save_while_a_graph_is_recorded_is_refused_and_the_graph_is_good():
    with Trained(lambda p: torch.optim.SGD(p, lr=0.01)) as one:
        tensor, graph, stream = torch.zeros(9, device="cuda"), torch.cuda.CUDAGraph(), torch.cuda.Stream()
        places = [0]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin()
            tensor.add_(1)
            with pytest.raises(SaveFailed, match="graph is being recorded"):
                one.slot.staging.copy(one.slot.destination, places, [one.model.inner.weight], step=9, late=True)
            graph.capture_end()
        graph.replay()
        torch.cuda.synchronize()
        assert tensor.tolist() == [1] * 9


# Memory


def test_memory_that_is_let_go_of_is_not_used_again_before_it_was_copied():
    with Trained() as one:
        expected = truth(one.objects)
        one.slot.hold_up()
        one.slot.save()
        one.optimizer.state.clear()
        one.model = one.optimizer = None
        one.objects.clear()
        rubbish = [torch.full((WIDTH, WIDTH), 7.0, device="cuda") for _ in range(50)]
        torch.cuda._sleep(1000)
        one.slot.await_seal()
        assert differing(one.slot.content(), expected) == []
        del rubbish


def test_slots_and_seals_are_pinned_as_long_as_they_are_in_use():
    with Trained() as one:
        slab, control = one.slot.destination.slab, one.slot.control.slab
        layout = one.slot.destination.layout
        pinned = [
            torch.frombuffer(slab.memory, dtype=torch.uint8)[:64],
            torch.frombuffer(control.memory, dtype=torch.uint8),
        ]
        pinned.append(torch.frombuffer(slab.memory, dtype=torch.uint8)[layout.trained - 64 : layout.trained])
        assert all(tensor.is_pinned() for tensor in pinned)
    assert not any(tensor.is_pinned() for tensor in pinned)


def test_a_registration_that_fails_leaves_no_error_behind_for_the_next_kernel():
    streams, slab = CudaStreams(), Slab.make(1 << 20)
    slab.reserve(0, slab.length)
    start = address(slab.memory)
    streams.register(0, start, slab.length)
    try:
        with pytest.raises(RuntimeError):
            streams.register(0, start, slab.length)
        assert torch.ones(3, device="cuda").sum().item() == 3
    finally:
        streams.unregister(0, start)
    with pytest.raises(RuntimeError):
        streams.unregister(0, start)
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_memory_that_cannot_be_pinned_is_copied_while_the_save_waits(monkeypatch):
    def refuse(self, device, start, length):
        raise RuntimeError("operation not supported")

    monkeypatch.setattr(CudaStreams, "register", refuse)
    with Trained() as one:
        for _ in range(3):
            one.train()
            expected = truth(one.objects)
            one.slot.save()
            assert one.slot.sealed
            one.train()
            assert differing(one.slot.content(), expected) == []


DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.int8,
    torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
VIEWS = {
    "rows": lambda t: t,
    "transposed": lambda t: t.T,
    "cut": lambda t: t[:, 5:90],
    "expanded": lambda t: t[:1].expand(300, -1),
    "more than a segment": lambda t: t.repeat(600, 4),
    "one row of more than a segment": lambda t: t.reshape(1, -1).repeat(1, 300),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_every_dtype_and_memory_order_arrives_as_the_host_would_copy_it(dtype, view):
    raw = torch.randint(0, 2 if dtype is torch.bool else 120, (64, 128 * dtype.itemsize), dtype=torch.uint8)
    holder = nn.Module()
    holder.register_buffer("t", VIEWS[view](raw.cuda().view(dtype)))
    with Slot({"holder": holder}) as slot:
        slot.save()
        assert slot.sealed
        assert differing(slot.content(), truth({"holder": holder})) == []


@pytest.mark.parametrize("how", ["conj", "neg", "channels last"])
def test_lazy_signs_and_other_dimension_orders_are_resolved_on_the_way(how):
    tensor = torch.randn(4, 16, 12, 10, dtype=torch.complex64 if how != "channels last" else torch.float32).cuda()
    holder = nn.Module()
    views = {"conj": torch.Tensor.conj, "neg": lambda t: t.conj().imag}
    view = views.get(how, lambda t: t.contiguous(memory_format=torch.channels_last))(tensor)
    holder.register_buffer("t", view)
    with Slot({"holder": holder}) as slot:
        slot.save()
        assert differing(slot.content(), truth({"holder": holder})) == []


# Checking


@pytest.mark.parametrize("write", [False, True])
def test_check_staging_seals_before_the_step_what_nobody_has_written(write):
    with Trained(check=True) as one:
        one.forward()
        one.slot.save()
        assert one.slot.names_under_way
        assert not one.slot.sealed
        if write:
            one.model.inner.weight.data.mul_(1.5)
        one.optimizer.step()
        assert one.slot.sealed is not write
        assert len(one.slot.staging.lost()) == write


def test_the_rate_of_a_pinned_copy(record_property):
    """Nothing is asserted about it: the bus is the machine's. `benchmarks/gpu.py` compares it with the bus."""
    holder = nn.Module()
    holder.register_buffer("t", torch.ones(1 << 28, dtype=torch.uint8, device="cuda"))
    with Slot({"holder": holder}) as slot:
        slot.save()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        side = slot.staging.streams.side(0)
        begin.record(side)
        slot.save()
        end.record(side)
        torch.cuda.synchronize()
        record_property("GB/s", (1 << 28) / begin.elapsed_time(end) / 1e6)
        assert slot.sealed


# More than one device

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA devices")


@TWO
def test_the_seal_comes_after_the_copies_of_all_devices():
    model = nn.ModuleList([nn.Linear(WIDTH, WIDTH).to(device) for device in ("cuda:0", "cuda:1")])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    objects = {"model": model, "optimizer": optimizer}

    def step():
        for part in model:
            part(torch.ones(4, WIDTH, device=part.weight.device)).pow(2).mean().backward()
        optimizer.step()
        slot.step += 1

    with Slot(objects) as slot:
        step()
        slot.save()
        step()
        torch.cuda.synchronize(1)
        expected = truth(objects)
        slot.hold_up(1)
        slot.save()
        step()
        slot.await_seal()
        assert differing(slot.content(), expected) == []
        torch.cuda.synchronize(1)


@TWO
def test_a_device_that_is_not_used_is_not_touched():
    code = """
import torch
from torch import nn
from tests.gpu.staging_support import Slot
model = nn.Linear(512, 512).to("cuda:1")
optimizer = torch.optim.AdamW(model.parameters())
with Slot({"model": model, "optimizer": optimizer}) as slot:
    for slot.step in range(1, 5):
        with torch.cuda.device(1):
            model(torch.ones(4, 512, device="cuda:1")).sum().backward()
            optimizer.step()
        slot.save()
assert torch._C._cuda_hasPrimaryContext(1)
assert not torch._C._cuda_hasPrimaryContext(0), "half a GiB of device 0"
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment)
