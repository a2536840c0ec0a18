"""Copies beside a training, on simulated devices: in whatever order they work, a sealed generation is its own."""

import functools
import gc
import itertools
import logging
import os
import subprocess
import sys
import threading
import weakref

import msgspec
import pytest
import torch
from streams_kit import SimStreams, covered

from holdfast.errors import SaveFailed
from holdfast.saver.arena import Layout
from holdfast.saver.control import LENGTH, Control, Intent
from holdfast.saver.memory import Slab
from holdfast.state import pinning, staging_cuda
from holdfast.state.pinning import Pinning, Range, pinned_ranges
from holdfast.state.stager import Stager
from holdfast.state.staging import Destination
from holdfast.state.staging_cuda import CudaStaging
from holdfast.state.step_hook import STEP_HOOK
from holdfast.trees import Lifetime, TensorSpec, segments

SIZE = 300
"""So that a tensor is larger than what is captured inline."""


@functools.cache
def filled_with(number):
    return memoryview(torch.full((SIZE,), number).numpy().tobytes())


class Steps(torch.optim.Optimizer):
    """Adds one to its parameters and states, on the streams of their devices."""

    def __init__(self, rig, names):
        self.rig, self.names = rig, names
        super().__init__([rig.tensors[name] for name in names], {})
        for name in names:
            self.state[rig.tensors[name]]["momentum"] = rig.add(f"{name}.momentum", rig.home(name))

    def step(self):
        for name in self.names:
            self.rig.write(name)
            self.rig.write(f"{name}.momentum")


class Rig:
    """A training on simulated devices, and slots that it is copied into. ``truth``: what the streams will have made."""

    def __init__(self, seed=0, *, check=False, prompt=False, eager=True, names=()):
        self.sim = SimStreams(seed, eager=eager, prompt=prompt)
        self.control_slab = Slab.make(LENGTH)
        self.control = Control(self.control_slab)
        self.staging = CudaStaging(self.control, self.sim, check)
        self.stager = Stager(self.control, check)
        self.stager._devices = self.staging
        self.tensors, self.truth, self.lifetimes, self.step = {}, {}, {}, 0
        self.expected, self.generation, self.layout, self.destinations = {}, 0, None, {}
        self.torn = []
        self.sim.after = self.look
        for name, device in names:
            self.add(name, device)

    def add(self, name, device, lifetime=Lifetime.PARAMETER):
        tensor = torch.zeros(SIZE)
        self.tensors[name] = tensor if device is None else self.sim.place(tensor, device)
        self.truth[name], self.lifetimes[name] = 0.0, lifetime
        return self.tensors[name]

    def home(self, name):
        return self.sim.device_of(self.tensors[name])

    def write(self, name):
        """Adds one, in the order of the device that it is on."""
        tensor, home = self.tensors[name], self.home(name)
        self.truth[name] += 1
        if home is None:
            tensor.data.add_(1)
        else:
            self.sim.compute(home, lambda: tensor.data.add_(1))

    def slot(self, number):
        if self.layout is None:
            specs = [
                TensorSpec(name=name, dtype="float32", shape=(SIZE,), lifetime=self.lifetimes[name])
                for name in self.tensors
            ]
            self.layout = Layout(tuple(specs))
        if number not in self.destinations:
            slab = Slab.make(self.layout.slab_bytes())
            slab.reserve(0, self.layout.length)
            self.destinations[number] = Destination(slab, self.layout)
        return self.destinations[number]

    def copy(self, slot=0, *, late=True):
        destination = self.slot(slot)
        assert self.stager.settle(10)
        self.control.unseal(slot)
        places = list(range(len(self.tensors)))
        self.stager.copy(destination, places, list(self.tensors.values()), step=self.step, late=late)
        return destination

    def save(self, slot=0, *, late=True):
        destination = self.copy(slot, late=late)
        self.control.describe(slot, Intent.SAVE, destination.slab.serial, self.layout.length, b"document")
        self.generation += 1
        self.expected[self.generation] = dict(self.truth)
        self.stager.seal(slot, self.generation)
        return self.generation

    def train(self, *optimizers, steps=1):
        for _ in range(steps):
            for optimizer in optimizers:
                optimizer.step()
            self.step += 1
        return self

    def ready(self, *optimizers):
        """Past the first save, which watches."""
        self.train(*optimizers).save()
        return self.train(*optimizers)

    def staged(self, row):
        memory = self.destinations[row.slot].slab.memory
        for name, offset in zip(self.tensors, self.layout.offsets, strict=True):
            yield name, memory[offset : offset + 4 * SIZE]

    def look(self):
        """Whatever is sealed is what the state was at its boundary, at every instant."""
        for row in self.control.rows():
            expected = self.expected.get(row.generation)
            for name, found in self.staged(row) if expected is not None else ():
                if found != filled_with(expected[name]):
                    self.torn.append((row.generation, name, {*found.cast("f")}, expected[name]))

    def sealed(self, generation):
        return any(row.generation == generation for row in self.control.rows())

    def close(self):
        self.stager.close(10)


@pytest.fixture
def rig():
    rigs = []

    def make(*args, **kwargs):
        rigs.append(Rig(*args, **kwargs))
        return rigs[-1]

    yield make
    for one in rigs:
        if one.sim.broken:
            one.sim.streams.clear()  # nothing runs there any more
        one.sim.recording = one.sim.broken = one.sim.stuck = False
        one.close()
    assert not STEP_HOOK.installed


DEVICES = [
    ("a", 0),
    ("b", 0),
    ("c", 1),
    ("buffer", 0),
    ("ema", 1),
    ("foreign", 1),
    ("host", None),
    ("queued", "pinned"),
]


def lived(rig):
    """A random training over two devices and the host: steps, averages, foreign steps, saves, and time that passes."""
    draw = rig.sim.random
    one, two = Steps(rig, ["a", "c"]), Steps(rig, ["b"])
    lazily = 0
    for _ in range(25):
        for name in draw.choices(["buffer", "ema", "foreign", "host"], k=draw.randrange(4)):
            rig.write(name)
        for _ in range(draw.randrange(6)):
            rig.sim.advance()
        rig.train(*([one, two] if draw.random() < 0.9 else [one]))
        for _ in range(draw.randrange(3)):
            rig.sim.advance()
        if draw.random() < 0.5:
            generation = rig.save(draw.randrange(2), late=draw.random() < 0.9)
            lazily += not rig.sealed(generation)
    rig.sim.finish()
    rig.look()
    return lazily


@pytest.mark.parametrize("seed", range(40))
def test_a_sealed_generation_is_the_state_of_its_boundary_whatever_the_devices_do_first(rig, seed):
    one = rig(seed, names=DEVICES)
    lived(one)
    assert one.torn == [], f"seed {seed}"
    assert one.stager.lost() == []


def test_in_such_trainings_copies_are_really_under_way_when_a_save_returns(rig):
    under_way = 0
    for seed in range(10):
        under_way += lived(one := rig(seed, names=DEVICES))
        one.close()
    assert under_way > 10


def _everything(sources, optimizers, *, steps, steady):
    return frozenset(place for place, memory in enumerate(sources) if memory is not None)


def _write_at_once(self, stream, place, number):
    place.fill_(number)
    self.after()


def _wait_for_copies_only(self, stream, event, wait=SimStreams.wait):
    if not (stream is self.side(stream.device) and event.stream is self.current(stream.device)):
        wait(self, stream, event)


BREAKS = {
    "the step does not wait": (CudaStaging, "_hold_back", lambda *_, **__: None),
    "averages and buffers are lazy": (staging_cuda, "lazy_places", _everything),
    "the seal does not wait": (SimStreams, "write", _write_at_once),
    "the copy does not wait for the training": (SimStreams, "wait", _wait_for_copies_only),
    "the save does not wait": (CudaStaging, "_await_all", lambda *_: None),
    "the next save does not wait": (CudaStaging, "settle", lambda *_: True),
}


@pytest.mark.parametrize("what", BREAKS)
def test_the_simulation_finds_each_of_these_mistakes(rig, monkeypatch, what):
    monkeypatch.setattr(*BREAKS[what])
    for seed in range(60):
        one = rig(seed, names=DEVICES)
        lived(one)
        one.close()
        if one.torn:
            return
    pytest.fail("not one torn copy")


# What a save waits for, and what not


def test_a_save_returns_before_lazy_copies_and_the_step_comes_after_them(rig):
    one = rig(eager=False, names=[("a", 0), ("buffer", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    generation = one.save()
    assert not one.sealed(generation)
    assert one.staging.writing(one.destinations[0].slab)
    one.write("buffer")
    asked = one.sim.asked
    one.train(optimizer)
    assert one.sim.asked <= asked + 1, "the host only looks, it does not wait"
    one.sim._run_until(one.sim.record(one.sim.current(0)))
    assert not one.sealed(generation) or one.torn == []
    one.sim.finish()
    assert one.sealed(generation)
    assert one.torn == []
    assert one.stager.settle(0)
    assert not one.staging.writing(one.destinations[0].slab)


def test_a_save_that_must_be_complete_is_sealed_when_it_returns(rig):
    one = rig(eager=False, names=[("a", 0)])
    one.ready(Steps(one, ["a"]))
    assert one.sealed(one.save(late=False))
    assert one.torn == []


def test_the_next_save_waits_for_the_copy_before(rig):
    one = rig(eager=False, names=[("a", 0)])
    optimizer = Steps(one, ["a"])
    first = one.ready(optimizer).save(0)
    second = one.train(optimizer).save(1)
    assert one.sealed(first)
    assert not one.sealed(second)
    assert one.stager.settle(10)
    assert one.sealed(second)


def test_copies_of_the_hosts_own_that_are_under_way_are_waited_for(rig):
    one = rig(eager=False, names=[("a", 0), ("queued", "pinned")])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    queued = one.tensors["queued"]
    one.sim.compute(0, lambda: queued.data.add_(1))  # as ``queued.copy_(device, non_blocking=True)`` does
    one.truth["queued"] += 1
    assert one.save() == 2
    one.sim.finish()
    one.look()
    assert one.torn == []


def test_an_error_between_copy_and_seal_leaves_the_slot_unsealed_and_taken_until_the_copy_is_over(rig):
    one = rig(eager=False, names=[("a", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    destination = one.copy()  # and then the document does not fit
    assert one.staging.writing(destination.slab)
    generation = one.train(optimizer).save()
    assert one.stager.settle(10)
    assert one.sealed(generation)
    assert one.torn == []
    assert one.stager.lost() == []


def test_memory_that_the_program_lets_go_of_is_kept_until_it_was_copied(rig):
    one = rig(eager=False, names=[("a", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    generation = one.save()
    one.sim.after = lambda: None
    gone = weakref.ref(one.tensors.pop("a").untyped_storage())
    optimizer.param_groups.clear()
    optimizer.state.clear()
    gc.collect()
    assert gone() is not None
    assert one.stager.settle(10)
    gc.collect()
    assert one.sealed(generation)
    assert gone() is None


# CUDA graphs


def test_nothing_is_asked_of_cuda_while_a_graph_is_recorded(rig):
    one = rig(eager=False, names=[("a", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    one.sim.recording = True
    with pytest.raises(SaveFailed, match="graph is being recorded"):
        one.save()
    one.train(optimizer)  # the simulation refuses everything
    one.sim.recording = False
    assert one.sealed(one.save()), "its step is in a graph now, so nothing of it is lazy"


def test_a_step_that_is_recorded_waits_for_the_seal_in_memory(rig):
    one = rig(eager=False, names=[("a", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    generation = one.save()
    one.sim.recording = True
    device = threading.Timer(0.05, one.sim.finish)
    device.start()
    STEP_HOOK._before_step(optimizer, (), {})
    assert one.sealed(generation)
    device.join()
    one.sim.recording = False
    assert one.stager.settle(0)
    assert one.stager.lost() == []


@pytest.mark.parametrize("check", [False, True])
def test_a_copy_that_a_recorded_step_does_not_see_complete_is_lost_and_named(rig, monkeypatch, check):
    monkeypatch.setattr(staging_cuda, "CAPTURE_SECONDS", 0.01)
    one = rig(eager=False, check=check, names=[("a", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    assert one.stager.lost() == []
    generation = one.save()
    one.sim.recording = True
    STEP_HOOK._before_step(optimizer, (), {})
    one.sim.recording = False
    assert one.stager.settle(10)
    assert [(lost.generation, "graph was recorded" in lost.why) for lost in one.stager.lost()] == [(generation, True)]


# Who writes all the same


@pytest.mark.parametrize("landed", ["by the step", "without a step"])
def test_a_write_that_can_be_seen_loses_the_generation_and_names_the_tensor(rig, landed):
    one = rig(eager=False, names=[("a", 0), ("b", 0)])
    optimizer = Steps(one, ["a", "b"])
    one.ready(optimizer)
    generation = one.save()
    one.tensors["b"].add_(0)
    if landed == "by the step":
        one.train(optimizer)
    assert one.stager.settle(10)
    (lost,) = one.stager.lost()
    assert lost.generation == generation
    assert lost.why.startswith("b changed")
    assert one.stager.lost() == []
    one.train(*([optimizer] if landed == "by the step" else [optimizer, optimizer]))
    one.save()
    assert {one.layout.specs[place].name for place in one.staging._flight.lazy} == {"a", "a.momentum", "b.momentum"}


@pytest.mark.parametrize("moment", ["before the step", "never a step"])
def test_with_check_staging_a_write_that_leaves_no_trace_is_found_and_nothing_is_sealed(rig, moment):
    one = rig(check=True, prompt=True, eager=False, names=[("a", 0), ("buffer", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    generation = one.save()
    assert not one.sealed(generation)
    one.tensors["a"].data.add_(5)
    if moment == "before the step":
        one.train(optimizer)
    else:
        assert one.stager.settle(10)
    (lost,) = one.stager.lost()
    assert lost.generation == generation
    assert "a changed during the copy" in lost.why
    assert not one.sealed(generation)


def test_with_check_staging_an_unchanged_state_is_sealed_before_the_step(rig):
    one = rig(check=True, prompt=True, eager=False, names=[("a", 0), ("buffer", 0), ("host", None)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    generation = one.save()
    one.write("buffer")
    one.write("host")
    assert not one.sealed(generation)
    one.train(optimizer)
    assert one.sealed(generation)
    assert one.stager.lost() == []
    assert one.torn == []


# Devices that fail


def test_a_device_that_fails_loses_what_it_was_copying_and_nothing_hangs(rig):
    one = rig(eager=False, names=[("a", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    generation = one.save()
    one.sim.broken = True
    assert one.stager.settle(10)
    (lost,) = one.stager.lost()
    assert lost.generation == generation
    assert "illegal memory access" in lost.why
    assert not one.sealed(generation)
    with pytest.raises(SaveFailed, match="illegal memory access"):
        one.save()
    STEP_HOOK._before_step(optimizer, (), {})  # the step itself will say what is wrong


def test_a_device_that_fails_after_a_copy_was_complete_does_not_cost_it(rig):
    one = rig(eager=False, names=[("a", 0)])
    generation = one.ready(Steps(one, ["a"])).save()
    one.sim.finish()
    one.sim.broken = True
    assert one.stager.settle(10)
    assert one.stager.lost() == []
    assert one.sealed(generation)


def test_a_device_that_hangs_is_not_waited_for_for_ever(rig, monkeypatch):
    one = rig(eager=False, names=[("a", 0), ("buffer", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    one.sim.stuck = True
    one.write("a")
    with monkeypatch.context() as hasty:
        hasty.setattr(staging_cuda, "COPY_SECONDS", 0.01)
        with pytest.raises(SaveFailed, match="does it hang"):
            one.save()
        assert one.staging.writing(one.destinations[0].slab), "it may still write there"
        assert not one.stager.settle(0.01)
        with pytest.raises(SaveFailed, match="not copied the checkpoint before"):
            one.staging.copy(one.slot(1), [0], [one.tensors["a"]], step=9, late=True)
    one.sim.stuck = False
    assert one.stager.settle(10)
    generation = one.train(optimizer).save()
    assert one.stager.settle(10)
    assert one.sealed(generation)
    assert one.torn == []


# Memory


def test_a_slab_is_pinned_in_one_call_however_many_tensors_there_are(rig):
    one = rig(names=[(f"t{n}", 0) for n in range(300)])
    one.save()
    assert one.sim.registrations == 2, "the slot and the control words"
    one.save()
    assert one.sim.registrations == 2
    one.save(1)
    assert one.sim.registrations == 3
    assert all(covered(one.sim, one.slot(n).slab, 0, one.layout.trained) for n in (0, 1))
    one.close()
    assert one.sim.registered == {}


def test_memory_that_is_given_back_between_saves_is_never_pinned(rig):
    one = rig(names=[("a", 0)])
    one.add("base", 0, Lifetime.FROZEN)
    optimizer = Steps(one, ["a", "base"])
    one.ready(optimizer)
    one.save()
    assert {one.layout.specs[place].name for place in one.staging._flight.lazy} >= {"a", "a.momentum"}
    assert 1 not in one.staging._flight.lazy
    slab = one.slot(0).slab
    assert covered(one.sim, slab, 0, one.layout.trained)
    assert one.layout.offsets[1] >= one.layout.trained
    assert not covered(one.sim, slab, one.layout.offsets[1], 1)


def test_what_cannot_be_pinned_is_said_once_and_copied_while_the_save_waits(rig, caplog):
    one = rig(eager=False, names=[("a", 0)])
    one.sim.refuses = lambda length: length > LENGTH
    optimizer = Steps(one, ["a"])
    with caplog.at_level(logging.WARNING):
        one.ready(optimizer)
        for slot in (1, 0, 1):
            assert one.sealed(one.train(optimizer).save(slot))
    assert caplog.text.count("could not be pinned") == 1
    assert one.torn == []
    assert one.stager.lost() == []


def test_a_slab_is_pinned_as_a_whole_or_not_at_all():
    sim, slab = SimStreams(), Slab.make(3 * 4096)
    sim.refuses = lambda length: length == 8192
    assert not Pinning(sim).pin(slab, [Range(0, 4096), Range(4096, 8192)], 0)
    assert sim.registered == {}


def test_seals_are_written_by_the_host_if_their_memory_cannot_be_pinned(rig, caplog):
    one = rig(eager=False, names=[("a", 0)])
    one.sim.refuses = lambda length: length == LENGTH
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    assert one.sealed(one.save())
    assert "could not be pinned" in caplog.text


def test_another_layout_in_the_same_slab_is_pinned_anew_and_never_what_it_gives_back(rig):
    one = rig(names=[("a", 0), ("base", 0)])
    specs = [
        TensorSpec(name=name, dtype="float32", shape=(SIZE,), lifetime=Lifetime.PARAMETER) for name in ("a", "base")
    ]
    slab, sources = Slab.make(128 << 20), list(one.tensors.values())
    frozen = msgspec.structs.replace(specs[1], lifetime=Lifetime.FROZEN)
    both, trained = Layout(tuple(specs)), Layout((specs[0], frozen))
    for layout in (both, trained):
        slab.reserve(0, layout.length)
        one.staging.copy(Destination(slab, layout), [0, 1], sources, step=0, late=True)
        assert covered(one.sim, slab, 0, layout.trained)
        assert not covered(one.sim, slab, 0, layout.trained + 1)
    one.staging.unpin(slab)
    assert len(one.sim.registered) == 1


@pytest.mark.parametrize("page", [4096, 65536])
def test_cuts_fall_between_segments_on_pages_and_everything_trained_is_covered(page):
    generator = torch.Generator().manual_seed(7)
    for _ in range(30):
        counts = torch.randint(1, 200_000, (20,), generator=generator).tolist()
        kinds = [list(Lifetime)[count % 3] for count in counts]
        specs = [
            TensorSpec(name=str(n), dtype="float32", shape=(count,), lifetime=kind)
            for n, (count, kind) in enumerate(zip(counts, kinds, strict=True))
        ]
        layout = Layout(tuple(specs))
        ranges = pinned_ranges(layout, piece=300_000, page=page)
        assert all(one.start % page == one.length % page == 0 for one in ranges)
        for spec, offset in zip(specs, layout.offsets, strict=True):
            for piece in pinning.placed(spec, offset):
                inside = [r for r in ranges if r.start <= piece.offset and piece.offset + piece.span.length <= sum(r)]
                outside = all(piece.offset >= sum(r) for r in ranges)
                assert outside if spec.lifetime is Lifetime.FROZEN else len(inside) == 1
        assert len(ranges) <= layout.trained // 300_000 + 1
        assert all(sum(a) == b.start for a, b in itertools.pairwise(ranges))


def test_a_huge_tensor_is_cut_between_its_segments():
    spec = TensorSpec(name="t", dtype="uint8", shape=(40 << 20,), lifetime=Lifetime.OPTIMIZER)
    ranges = pinned_ranges(Layout((spec,)), piece=16 << 20, page=65536)
    assert [one.length for one in ranges] == [16 << 20, 16 << 20, 8 << 20]
    assert {one.start for one in ranges} <= {span.start for span in segments(spec)}


def test_a_state_without_trained_tensors_needs_no_pins():
    assert pinned_ranges(Layout(())) == []
    frozen = TensorSpec(name="t", dtype="uint8", shape=(9,), lifetime=Lifetime.FROZEN)
    assert pinned_ranges(Layout((frozen,))) == []


# Where it is none of its business


def test_a_forked_child_steps_without_asking_the_parents_device(rig):
    one = rig(eager=False, names=[("a", 0)])
    optimizer = Steps(one, ["a"])
    one.ready(optimizer)
    one.save()
    child = os.fork()
    if child == 0:
        asked = one.sim.asked
        one.sim.recording = True  # so that any question fails
        try:
            STEP_HOOK._before_step(optimizer, (), {})
            one.close()
        except BaseException:
            os._exit(1)
        os._exit(int(one.sim.asked != asked))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_hook_goes_with_the_last_staging(rig):
    first, second = rig(), rig()
    first.close()
    assert STEP_HOOK.installed
    second.close()
    assert not STEP_HOOK.installed


def test_a_training_on_the_cpu_loads_nothing_of_it(tmp_path):
    code = """
import sys, torch
from torch.optim.optimizer import _global_optimizer_pre_hooks
from holdfast import Checkpointer, every
model = torch.nn.Linear(300, 300)
optimizer = torch.optim.AdamW(model.parameters())
with Checkpointer(sys.argv[1], run="r", state={"m": model, "o": optimizer}, save=every(steps=1)) as ckpt:
    for step in ckpt.steps(3):
        model(torch.ones(1, 300)).sum().backward()
        optimizer.step()
for name in ("staging_cuda", "streams", "step_hook", "lazy", "pinning"):
    assert f"holdfast.state.{name}" not in sys.modules, name
assert not torch.cuda.is_initialized()
assert not _global_optimizer_pre_hooks
assert ckpt.last.step == 3
"""
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300, env=environment)
