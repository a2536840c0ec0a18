"""How much memory staging takes: said before the first save, kept to, and given back."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading

import pytest
import torch
from staged_kit import awaited, check_store, staging_memory
from tiny_training import records_of, steps_of
from torch import nn

import holdfast
from holdfast import Checkpointer, every
from holdfast.errors import SaveFailed
from holdfast.ids import Digest
from holdfast.recovery.handover.slots import Slots
from holdfast.saver import starting
from holdfast.saver.handle import SaverProcess
from holdfast.saver.planning import plan_memory
from holdfast.state.staging import Destination

MIB = 1 << 20


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "holdfast")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # as users have it


@pytest.fixture
def hold(tmp_path, monkeypatch):
    """As long as this file is there, the saver does not begin to write."""
    path = tmp_path / "hold"
    lines = (
        "import holdfast.saver.saving as s, pathlib, time; f = s.write_segments",
        f"p = pathlib.Path({str(path)!r})",
        "def g(*a, **k):\n  while p.exists(): time.sleep(0.01)\n  return f(*a, **k)",
        "s.write_segments = g",
    )
    monkeypatch.setattr(starting, "prelude", "\n".join(lines))
    return path


class Wide(nn.Module):
    """4 MB that are frozen, and 4 MB that are trained, for which Adam keeps 8 MB."""

    def __init__(self, *, frozen=1):
        super().__init__()
        self.base = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(frozen)).requires_grad_(False)
        self.layers = nn.ModuleList([nn.Linear(1024, 1024, bias=False)])

    def step(self, optimizer):
        sum(layer(torch.randn(2, 1024)).square().mean() for layer in self.layers).backward()
        optimizer.step()
        optimizer.zero_grad()


def made(**options):
    torch.manual_seed(2)
    model = Wide(**options)
    return model, torch.optim.Adam(model.layers.parameters(), lr=0.01)


def opened(store, model, optimizer, **options):
    settings = {"run": "r", "save": every(steps=1), "saver": "process"} | options
    return Checkpointer(store, state={"model": model, "optimizer": optimizer}, **settings)


def saves_of(ckpt):
    return ckpt._training._checkpoints._saves


def taken(ckpt):
    """Bytes of staging memory that the kernel has given out."""
    return sum(os.fstat(slab.descriptor).st_blocks * 512 for slab in saves_of(ckpt).process.slabs.values())


def settled(ckpt):
    ckpt._training._checkpoints.drain()
    saves_of(ckpt).slots.settle()


def loaded(store, step, model, optimizer):
    with opened(store, model, optimizer, run=holdfast.new_run("other"), saver="inline") as ckpt:
        ckpt.restore(f"run-001@{step}")


# The budget


def test_what_is_taken_is_what_was_said_and_not_more(tmp_path, monkeypatch, caplog, hold):
    model, optimizer = made(frozen=6)
    found = []
    copy = Slots.copy

    def copied(self, *given, **options):
        copy(self, *given, **options)
        found.append(sum(os.fstat(slab.descriptor).st_blocks * 512 for slab in self.process.slabs.values()))

    monkeypatch.setattr(Slots, "copy", copied)
    with opened(tmp_path / "s", model, optimizer) as ckpt:
        for step in ckpt.steps(6):
            if step == 2:
                settled(ckpt)
                hold.touch()
            if step == 4:
                hold.unlink()  # two of them are in flight
            model.step(optimizer)
        peak = saves_of(ckpt).slots.plan.peak
    assert len(found) == 6
    assert 2 * 12 * MIB < max(found) <= peak
    assert peak < 2 * 12 * MIB + 24 * MIB + 16 * MIB, "the sum of what is needed, and a little more"
    assert f"staging takes {peak / MIB:.1f} MiB of memory at most" in caplog.text
    assert caplog.text.index("staging takes") < caplog.text.index("saved run-001@1")


def test_with_memory_for_two_a_save_does_not_wait_for_the_one_before(tmp_path, hold):
    model, optimizer = made(frozen=0)
    with opened(tmp_path / "s", model, optimizer, ram_budget="40MB") as ckpt:
        hold.touch()
        for _ in ckpt.steps(2):
            assert steps_of(tmp_path / "s") == []
            model.step(optimizer)
        assert steps_of(tmp_path / "s") == []
        assert taken(ckpt) <= 40_000_000
        hold.unlink()
    assert steps_of(tmp_path / "s") == [1, 2]


def test_with_memory_for_one_a_save_waits_for_the_one_before(tmp_path, hold, monkeypatch, caplog):
    waits = threading.Event()
    wait = SaverProcess.wait

    def noted(self, seconds):
        if seconds == 0.5 and self.ready and not waits.is_set():  # back-pressure
            waits.set()
            hold.unlink()
        wait(self, seconds)

    model, optimizer = made(frozen=0)
    with opened(tmp_path / "s", model, optimizer, ram_budget="20MB") as ckpt:
        for step in ckpt.steps(3):
            if step == 1:
                settled(ckpt)
                hold.touch()
                monkeypatch.setattr(SaverProcess, "wait", noted)
            model.step(optimizer)
            if step == 2:
                assert not waits.is_set()
        assert waits.is_set(), "the third save had to wait for the second one"
        assert taken(ckpt) <= 20_000_000
    assert steps_of(tmp_path / "s") == [1, 2, 3]
    assert "a save waits until the one before is durable" in caplog.text
    assert records_of(tmp_path / "s")[-1].survives == "process"


def test_a_save_that_waits_for_memory_when_a_signal_comes_waits_no_longer_than_there_is_time(tmp_path, hold, caplog):
    """Otherwise the process is killed in the wait, and nobody says what stands."""
    model, optimizer = made(frozen=0)
    with opened(tmp_path / "s", model, optimizer, ram_budget="20MB", grace=4.0) as ckpt:
        for step in ckpt.steps(9):
            if step == 1:
                settled(ckpt)
                hold.touch()
            if step == 2:  # whose save holds all memory, and does not get on
                os.kill(os.getpid(), signal.SIGTERM)
            model.step(optimizer)
        facts = ckpt.preempted
        hold.unlink()
    assert (facts.step, facts.durable, facts.exit_code) == (3, False, 75)
    assert facts.left <= 0
    assert "step 3 is not saved: earlier saves hold all staging memory" in caplog.text
    assert "the time that was left is over" in caplog.text


def test_with_memory_for_none_saves_are_made_in_the_loop_and_survive_nothing(tmp_path, caplog):
    model, optimizer = made()
    with opened(tmp_path / "s", model, optimizer, ram_budget="10MB") as ckpt:
        for step in ckpt.steps(2):
            assert len(steps_of(tmp_path / "s")) == step
            model.step(optimizer)
        assert taken(ckpt) == 0
    assert [record.survives for record in records_of(tmp_path / "s")] == ["nothing", "nothing"]
    assert "saves are made in the training loop, piece by piece" in caplog.text
    other, its = made()
    loaded(tmp_path / "s", 2, other, its)
    assert torch.equal(other.layers[0].weight, model.layers[0].weight)
    check_store(tmp_path / "s")


# Giving back


def test_the_memory_of_frozen_tensors_is_given_back_once_they_are_stored(tmp_path):
    model, optimizer = made(frozen=8)
    with opened(tmp_path / "s", model, optimizer) as ckpt:
        for step in ckpt.steps(2):
            if step == 1:
                settled(ckpt)
                saves_of(ckpt).outcomes()
                assert taken(ckpt) <= 2 * 12 * MIB + 12 * MIB
            model.step(optimizer)
        assert taken(ckpt) < 2 * 12 * MIB + 8 * 4 * MIB


def test_what_says_what_was_saved_is_not_given_back_with_it(tmp_path):
    """A saver that dies while it looks at the last save: its successor could not tell, and that save was waited for."""
    model, optimizer = made(frozen=8)
    with opened(tmp_path / "s", model, optimizer) as ckpt:
        ckpt.save()
        settled(ckpt)
        saves_of(ckpt).outcomes()
        process = saves_of(ckpt).process
        slabs = {slab.serial: slab for slab in process.slabs.values()}
        rows = [row for row in process.control.rows() if row.slab in slabs]
        documents = [bytes(slabs[row.slab].memory[row.offset : row.offset + row.length]) for row in rows]
        assert [Digest.of(document) for document in documents] == [row.digest for row in rows] != []


def test_nothing_is_left_of_it_when_the_training_is_over(tmp_path):
    gc.collect()
    before = staging_memory(os.getpid())  # what other tests have left
    model, optimizer = made()
    with opened(tmp_path / "s", model, optimizer) as ckpt:
        for _ in ckpt.steps(2):
            model.step(optimizer)
        assert len(staging_memory(os.getpid())) > len(before)
    del ckpt
    gc.collect()
    assert staging_memory(os.getpid()) == before


# Growing and shrinking


def test_the_state_of_the_optimizer_may_appear_after_the_first_save(tmp_path, caplog):
    model, optimizer = made(frozen=0)
    with opened(tmp_path / "s", model, optimizer) as ckpt:
        ckpt.save()
        for _ in ckpt.steps(2):
            model.step(optimizer)
        settled(ckpt)
        assert taken(ckpt) <= saves_of(ckpt).slots.plan.peak
    assert steps_of(tmp_path / "s") == [0, 1, 2]
    assert caplog.text.count("staging takes") == 2
    check_store(tmp_path / "s")


def test_layers_may_be_added_and_taken_away(tmp_path):
    model, optimizer = made(frozen=0)
    takes = []
    with opened(tmp_path / "s", model, optimizer) as ckpt:
        for step in ckpt.steps(6):
            settled(ckpt)
            takes.append(taken(ckpt))
            if step == 2:
                model.layers.append(nn.Linear(1024, 2048, bias=False))
                optimizer.add_param_group({"params": model.layers[1].parameters()})
            if step == 4:
                optimizer.param_groups.pop()
                optimizer.state.pop(model.layers[1].weight)
                del model.layers[1]
            model.step(optimizer)
        settled(ckpt)
        takes.append(taken(ckpt))
        assert takes[4] > 2 * 24 * MIB
        assert takes[-1] <= saves_of(ckpt).slots.plan.peak < takes[4]
    assert steps_of(tmp_path / "s")[-3:] == [4, 5, 6]
    check_store(tmp_path / "s")


def test_a_state_that_outgrows_the_budget_goes_on_with_fewer_slots(tmp_path, caplog):
    model, optimizer = made(frozen=0)
    with opened(tmp_path / "s", model, optimizer, ram_budget="44MB") as ckpt:
        for step in ckpt.steps(4):
            settled(ckpt)
            if step == 2:
                model.layers.append(nn.Linear(1024, 2048, bias=False))
                optimizer.add_param_group({"params": model.layers[1].parameters()})
            model.step(optimizer)
        settled(ckpt)
        assert len(saves_of(ckpt).slots.usable) == 1
        assert taken(ckpt) <= 44_000_000
    assert "a save waits until the one before is durable" in caplog.text
    check_store(tmp_path / "s")


def test_values_may_grow_between_two_saves(tmp_path):
    """The document lies behind the tensors, and nobody knows how long it will be."""
    model, optimizer = made(frozen=0)
    with opened(tmp_path / "s", model, optimizer) as ckpt:
        ckpt.values["text"] = ""
        for step in ckpt.steps(3):
            model.step(optimizer)
            ckpt.values["text"] += "x" * (40 * MIB if step == 1 else 10)
        settled(ckpt)
        assert 40 * MIB < taken(ckpt) <= saves_of(ckpt).slots.plan.peak
    assert steps_of(tmp_path / "s") == [1, 2, 3]
    check_store(tmp_path / "s")


# Looking for what changes a tensor under the copy


def test_a_thread_that_trains_while_a_save_copies_is_found(tmp_path, caplog, monkeypatch):
    model, optimizer = made(frozen=0)
    stop, began, rounds = threading.Event(), threading.Event(), [0]

    def meddle():
        while not stop.is_set():
            with torch.no_grad():
                model.layers[0].weight.add_(1)
            rounds[0] += 1
            began.set()

    copy = Destination.copy

    def copied(*args, **options):
        copy(*args, **options)
        if began.is_set():  # one whole round comes between, however busy the machine is
            begun = rounds[0]
            awaited(lambda: rounds[0] > begun + 1, "it trains")

    monkeypatch.setattr(Destination, "copy", copied)

    thread = threading.Thread(target=meddle)

    def train():
        with opened(tmp_path / "s", model, optimizer, check_staging=True, on_save_error="raise") as ckpt:
            for step in ckpt.steps(4):
                model.step(optimizer)
                if step == 1:
                    settled(ckpt)
                    thread.start()
                    began.wait()

    with pytest.raises(SaveFailed, match=r"model/layers\.0\.weight changed during the copy"):
        train()
    stop.set()
    thread.join()
    assert steps_of(tmp_path / "s") == [1]


def test_without_one_nothing_is_found(tmp_path):
    model, optimizer = made()
    with opened(tmp_path / "s", model, optimizer, check_staging=True, on_save_error="raise") as ckpt:
        for _ in ckpt.steps(3):
            model.step(optimizer)
    assert steps_of(tmp_path / "s") == [1, 2, 3]


# The plan alone


@pytest.mark.parametrize(("budget", "slots", "peak"), [(100, 2, 70), (70, 2, 70), (69, 1, 40), (40, 1, 40), (39, 0, 0)])
def test_as_many_slots_as_fit_are_planned_with_one_set_of_frozen_tensors(budget, slots, peak):
    plan = plan_memory(trained=30, frozen=10, budget=budget, wanted=2)
    assert (plan.slots, plan.peak) == (slots, peak)


def test_no_more_slots_than_wanted_are_planned():
    assert plan_memory(trained=1, frozen=0, budget=100, wanted=3).slots == 3


def test_a_plan_says_what_it_means():
    one, none = (plan_memory(trained=3 << 30, frozen=0, budget=budget << 30, wanted=2) for budget in (4, 2))
    assert str(one) == (
        "staging takes 3.00 GiB of memory at most (1 x 3.00 GiB) of 4.00 GiB allowed; "
        "a save waits until the one before is durable"
    )
    assert "the state (3.00 GiB) does not fit into the 2.00 GiB for staging" in str(none)
