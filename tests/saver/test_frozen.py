"""Frozen tensors are neither written nor staged again as long as nothing has changed them, by whatever way."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from staged_kit import awaited, check_store
from tiny_training import records_of, steps_of
from torch import nn

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.catalog.manifests import read_manifest
from holdfast.records import Target
from holdfast.saver import starting
from holdfast.state.frozen import FULL_EVERY, FrozenTensors
from holdfast.state.staging import Destination
from holdfast.trees import Lifetime, TensorSpec

LAYERS, WIDTH = 20, 64
BASE = LAYERS * WIDTH * WIDTH * 4
"""Bytes of the frozen weights."""


class Adapted(nn.Module):
    """A frozen base and a small head that is trained."""

    def __init__(self):
        super().__init__()
        self.base = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
        self.base.requires_grad_(False)
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x):
        return self.head(self.base(x))


def adapted(seed=5):
    torch.manual_seed(seed)
    model = Adapted()
    return model, torch.optim.AdamW(model.head.parameters(), lr=0.01, fused=True)


def one_step(model, optimizer):
    model(torch.randn(4, WIDTH)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(store, steps, *, then=lambda step, model: None, **options):
    """Saves after each step, once the one before is durable; gives what the model was at each."""
    model, optimizer = adapted()
    settings = {"run": "r", "save": every(steps=1), "keep": latest(99), "saver": "process"} | options
    states = {}
    with Checkpointer(store, state={"model": model, "optimizer": optimizer}, **settings) as ckpt:
        for step in ckpt.steps(steps):
            ckpt._training._checkpoints.drain()
            one_step(model, optimizer)
            then(step, model)
            states[step + 1] = {name: one.clone() for name, one in model.state_dict().items()}
    return states


def loaded(store, step):
    """The model of a checkpoint, as somebody else reads it."""
    model, optimizer = adapted(seed=6)
    with Checkpointer(
        store, run=holdfast.new_run("other"), state={"model": model, "optimizer": optimizer}, save=every(steps=99)
    ) as ckpt:
        ckpt.restore(f"run-001@{step}", only=["model"])
    return model.state_dict()


def whole(store, states):
    for step, expected in states.items():
        found = loaded(store, step)
        different = [name for name, one in expected.items() if not torch.equal(found[name], one)]
        assert different == [], f"at step {step}"
    check_store(store)
    return True


def recognised(store, record):
    """Names of the tensors of which the saver has not seen the bytes."""
    run = holdfast.open(store).run(record.run)
    skeleton = read_manifest(run, record.manifest_digest).skeleton
    return [skeleton.tensors[place].name for first, last in record.fingerprinted for place in range(first, last + 1)]


def test_a_base_is_stored_once_and_then_recognised_where_it_lives(tmp_path):
    states = trained(tmp_path / "s", 4)
    first, *others = records_of(tmp_path / "s")
    assert first.bytes.new > BASE
    assert recognised(tmp_path / "s", first) == []
    for record in others:
        assert record.bytes.new < BASE / 10
        assert len(recognised(tmp_path / "s", record)) >= LAYERS - 2
        assert all(name.startswith("model/base") for name in recognised(tmp_path / "s", record))
    assert whole(tmp_path / "s", states)


def test_every_tensor_is_hashed_in_full_once_in_so_many_saves(tmp_path):
    trained(tmp_path / "s", FULL_EVERY + 1)
    _, *others = [set(recognised(tmp_path / "s", record)) for record in records_of(tmp_path / "s")]
    assert set.intersection(*others) == set()
    assert all(len(found) >= LAYERS - 2 for found in others), "the work is spread over the saves"


def test_the_fused_optimizer_changes_weights_behind_the_version_counter_and_they_are_saved(tmp_path):
    """`Tensor._version` is no evidence: fused AdamW does not count."""
    versions = []
    states = trained(tmp_path / "s", 3, then=lambda step, model: versions.append(model.head.weight._version))
    heads = [states[step]["head.weight"] for step in states]
    assert not torch.equal(heads[0], heads[1])
    assert versions == [versions[0]] * 3, "it counts by now; this test is about nothing"
    assert whole(tmp_path / "s", states)


def add_through_data(model):
    model.base[3].weight.data.add_(1)


def put_other_data(model):
    model.base[3].weight.data = torch.full((WIDTH, WIDTH), 0.5)


def write_one_bit(model):
    model.base[3].weight.data.view(torch.int32).view(-1)[77] ^= 1


def write_through_numpy(model):
    model.base[3].weight.numpy()[5, 5] = 3.0


def swap_two_rows(model):
    model.base[3].weight.data[[0, 1]] = model.base[3].weight.data[[1, 0]]


def swap_two_layers(model):
    one, other = model.base[3].weight.data, model.base[4].weight.data
    model.base[3].weight.data, model.base[4].weight.data = other, one


@pytest.mark.parametrize(
    "change", [add_through_data, put_other_data, write_one_bit, write_through_numpy, swap_two_rows, swap_two_layers]
)
def test_a_frozen_tensor_that_is_written_to_is_saved_as_it_is_then(tmp_path, change):
    def then(step, model):
        if step == 1:
            change(model)

    states = trained(tmp_path / "s", 3, then=then)
    assert not torch.equal(states[1]["base.3.weight"], states[2]["base.3.weight"])
    assert whole(tmp_path / "s", states)


def test_a_tensor_that_is_trained_from_some_step_on_is_saved_with_the_trained_ones(tmp_path):
    def then(step, model):
        if step == 1:
            model.base[0].requires_grad_(True)
        if step >= 1:
            with torch.no_grad():
                model.base[0].weight.mul_(1.5)

    states = trained(tmp_path / "s", 4, then=then)
    assert whole(tmp_path / "s", states)


def averaged(store, steps, saver):
    """A base that stays, and an average without gradients that moves at every step."""
    model, optimizer = adapted()
    average = copy.deepcopy(model.head).requires_grad_(False)
    settings = {"run": "r", "save": every(steps=1), "keep": latest(1), "saver": saver}
    with Checkpointer(store, state={"model": model, "average": average, "optimizer": optimizer}, **settings) as ckpt:
        for _ in ckpt.steps(steps):
            one_step(model, optimizer)
            with torch.no_grad():
                for mean, one in zip(average.parameters(), model.head.parameters(), strict=True):
                    mean.lerp_(one, 0.1)
    return {name: one.clone() for name, one in average.state_dict().items()}


def bytes_in(folder):
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


@pytest.mark.parametrize("saver", ["inline", "process"])
def test_an_average_that_moves_without_gradients_is_for_the_retention_of_the_run(tmp_path, saver):
    shared, sizes = tmp_path / "s" / "data" / "shared", []
    for steps in (1, 4, 7, 10):
        average = averaged(tmp_path / "s", steps, saver)
        sizes.append((bytes_in(shared), bytes_in(tmp_path / "s" / "data" / "runs")))
    assert sizes[0][0] > BASE
    assert len({size for size, _ in sizes}) == 1, "what is shared is written once"
    assert sizes[2][1] == sizes[3][1], "what is deleted is free"
    model, optimizer = adapted(seed=6)
    found = copy.deepcopy(model.head).requires_grad_(False)
    state = {"model": model, "average": found, "optimizer": optimizer}
    with Checkpointer(tmp_path / "s", run=holdfast.new_run("other"), state=state, save=every(steps=99)) as ckpt:
        ckpt.restore("run-001", only=["average"])
    assert all(torch.equal(one, average[name]) for name, one in found.state_dict().items())
    check_store(tmp_path / "s")


def test_a_shared_pack_that_is_damaged_is_written_again_for_all_runs(tmp_path):
    store = tmp_path / "s"
    averaged(store, 1, "inline")
    (pack,) = [one for one in (store / "data" / "shared").rglob("*") if one.is_file()]
    model, optimizer = adapted()
    average = copy.deepcopy(model.head).requires_grad_(False)
    state = {"model": model, "average": average, "optimizer": optimizer}
    with Checkpointer(store, run="r", state=state, save=every(steps=1), saver="inline") as ckpt:
        for step in ckpt.steps(3):
            if step == 1:
                ckpt._training._checkpoints._saves.trying.saving.damaged.add(f"data/shared/{pack.name}")
            one_step(model, optimizer)
    found = {one.name for one in (store / "data" / "shared").rglob("*") if one.is_file()}
    assert len(found) == 2
    assert pack.name in found


def test_what_is_known_of_a_base_is_forgotten_when_another_checkpoint_is_restored(tmp_path):
    model, optimizer = adapted()
    states = {}
    with Checkpointer(
        tmp_path / "s", run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=1), saver="process"
    ) as ckpt:
        for step in ckpt.steps(2):
            one_step(model, optimizer)
            if step == 1:
                model.base[2].weight.data.add_(1)
        ckpt.restore("run-001@1")
        for _ in ckpt.steps(2):
            one_step(model, optimizer)
        states[2] = {name: one.clone() for name, one in model.state_dict().items()}
    assert whole(tmp_path / "s", states)


def test_frozen_tensors_are_left_to_a_checkpoint_that_retention_removes_meanwhile(tmp_path, monkeypatch, caplog):
    """While a state is copied, the saver commits the one before and deletes the one that has its base."""
    held = "import holdfast.saver.saving as s, pathlib, time; f = s.write_segments"
    hold = "def g(*a, **k):\n  while p.exists(): time.sleep(0.01)\n  return f(*a, **k)\ns.write_segments = g"
    monkeypatch.setattr(starting, "prelude", f"{held}\np = pathlib.Path({str(tmp_path / 'hold')!r})\n{hold}")
    copy = Destination.copy
    staged = []

    def slowly(self, *given, **options):
        staged.append(None)
        if len(staged) == 2:
            (tmp_path / "hold").touch()
        if len(staged) == 3:
            (tmp_path / "hold").unlink()
            awaited(lambda: steps_of(tmp_path / "s") == [2], "the first checkpoint goes")
        return copy(self, *given, **options)

    monkeypatch.setattr(Destination, "copy", slowly)
    model, optimizer = adapted()
    with (
        Checkpointer(
            tmp_path / "s",
            run="r",
            state={"model": model, "optimizer": optimizer},
            save=every(steps=1),
            keep=latest(1),
            saver="process",
        ) as ckpt,
        caplog.at_level(logging.ERROR),
    ):
        for step in ckpt.steps(3):
            if step == 1:
                ckpt._training._checkpoints.drain()
            one_step(model, optimizer)
        states = {3: {name: one.clone() for name, one in model.state_dict().items()}}
    assert caplog.text == ""
    assert steps_of(tmp_path / "s") == [3]
    assert whole(tmp_path / "s", states)


def test_two_saves_in_flight_do_not_both_take_memory_for_the_base(tmp_path, monkeypatch):
    """The second one waits: what was announced as the peak is the peak."""
    slow = "import holdfast.saver.saving as s, time; f = s.write_segments"
    monkeypatch.setattr(
        starting, "prelude", f"{slow}\ns.write_segments = lambda *a, **k: (time.sleep(0.5), f(*a, **k))[1]"
    )
    model, optimizer = adapted()
    seen = []
    with Checkpointer(
        tmp_path / "s", run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=1), saver="process"
    ) as ckpt:
        for _ in ckpt.steps(3):
            one_step(model, optimizer)
            saves = ckpt._training._checkpoints._saves
            if saves.slots.layout is not None:
                seen.append([slot for slot in saves.slots.usable if saves.slots.frozen_elsewhere(1 - slot)])
    assert [0] in seen
    assert [0, 1] not in seen
    assert [len(record.fingerprinted) > 0 for record in records_of(tmp_path / "s")] == [False, True, True]


# The decision alone


def spec(number):
    return TensorSpec(f"model/{number}", "float32", (512,), Lifetime.FROZEN)


def target(step):
    return Target(run=1, launch=1, timeline=0, step=step, id="0123456789abcdef")


SPECS = [spec(number) for number in range(40)]
PRINTS = {place: bytes([place]) * 16 for place in range(40)}


def test_nothing_is_skipped_before_a_checkpoint_has_it():
    assert FrozenTensors().skipped(SPECS, PRINTS, in_turn=True) == set()


def test_what_a_checkpoint_has_is_skipped_but_for_those_whose_turn_it_is():
    frozen = FrozenTensors()
    frozen.committed(target(1), {one.name: PRINTS[place] for place, one in enumerate(SPECS)})
    turns = [set(PRINTS) - frozen.skipped(SPECS, PRINTS, in_turn=True) for _ in range(FULL_EVERY)]
    assert set.union(*turns) == set(PRINTS)
    assert sum(map(len, turns)) == len(PRINTS), "each is staged once"
    assert frozen.skipped(SPECS, PRINTS, in_turn=False) == set(PRINTS)


def test_another_fingerprint_or_another_name_is_staged():
    frozen = FrozenTensors()
    frozen.committed(target(1), {SPECS[0].name: PRINTS[0], SPECS[1].name: PRINTS[0]})
    assert frozen.skipped(SPECS[:3], {0: PRINTS[0], 1: PRINTS[1], 2: PRINTS[0]}, in_turn=False) == {0}


def test_after_forgetting_everything_is_staged():
    frozen = FrozenTensors()
    frozen.committed(target(1), {SPECS[0].name: PRINTS[0]})
    frozen.forget()
    assert frozen.stored_in is None
    assert frozen.skipped(SPECS[:1], {0: PRINTS[0]}, in_turn=False) == set()
