"""Old packs that new checkpoints rely on are read back in turn, and healed from the live tensors if they are rotten."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from staged_kit import awaited
from tiny_training import records_of
from torch import nn

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import SaveFailed, StorageUnavailable
from holdfast.ids import ObjectName
from holdfast.records import Record
from holdfast.saver import rereading, starting
from holdfast.saver.readback import quarantined_packs
from holdfast.saver.rereading import Rereading
from holdfast.testing.faults import flip_bit

SOON = 2
"""In these tests a pack is read again after so many saves."""


@pytest.fixture(params=["process", "inline"])
def saver(request, monkeypatch):
    monkeypatch.setattr(rereading.Rereading.__init__, "__kwdefaults__", {**REREADING, "every": SOON})
    request.getfixturevalue("caplog").set_level(logging.WARNING, "holdfast")
    lines = "import holdfast.saver.rereading as r", f"r.Rereading.__init__.__kwdefaults__['every'] = {SOON}"
    monkeypatch.setattr(starting, "prelude", "\n".join(lines))
    return request.param


REREADING = dict(rereading.Rereading.__init__.__kwdefaults__)


def settled(ckpt):
    ckpt._training._checkpoints.drain()


def model_of(seed=1):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    model[0].requires_grad_(False)
    return model, torch.optim.SGD(model[1].parameters(), lr=0.1)


def trained(store, steps, *, saver, then=lambda step, ckpt: None, **options):
    model, optimizer = model_of()
    settings = {"run": "r", "save": every(steps=1), "keep": latest(99), "saver": saver} | options
    with Checkpointer(store, state={"model": model, "optimizer": optimizer}, **settings) as ckpt:
        for step in ckpt.steps(steps):
            settled(ckpt)
            then(step, ckpt)
            model(torch.randn(4, 64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def shared_packs(store):
    return {path.name for path in Path(store).glob("data/shared/*.pack")}


def rot(store):
    """One bit of the base flips, behind the back of whoever wrote it."""
    (pack,) = Path(store).glob("data/shared/*.pack")
    flip_bit(pack, 8 * 5000)
    return pack.name


def loads(store, step):
    model, optimizer = model_of(seed=9)
    with Checkpointer(
        store, run=holdfast.new_run("other"), state={"model": model, "optimizer": optimizer}, save=every(steps=99)
    ) as ckpt:
        ckpt.restore(f"run-001@{step}", only=["model"])
    return model


def rotting(store, caplog):
    """For ``then``: the base rots before the third save, and that is heard of after it."""

    def heard(ckpt):
        settled(ckpt)
        return "the next save writes it again" in caplog.text

    def then(step, ckpt):
        if step == 2:
            rot(store)
        if step == 3:
            awaited(lambda: heard(ckpt), "the rotten pack is found")

    return then


def test_a_rotten_base_is_found_and_written_again_and_all_checkpoints_load(tmp_path, saver, caplog):
    model = trained(tmp_path / "s", 6, saver=saver, then=rotting(tmp_path / "s", caplog))
    assert caplog.text.count("the next save writes it again") == 1
    assert "has failed" not in caplog.text
    bases = [[name for name in record.packs if "shared" in name] for record in records_of(tmp_path / "s")]
    assert bases[:3] == [bases[0]] * 3
    assert bases[3:] == [bases[3]] * 3, "once is enough"
    assert bases[0] != bases[3]
    for record in records_of(tmp_path / "s"):
        assert torch.equal(loads(tmp_path / "s", record.step)[0].weight, model[0].weight)


def test_a_training_that_ends_before_the_base_is_healed_does_not_end_well(tmp_path, saver, caplog):
    """And the next launch, if it can read the pack again, does not rely on it until it finds out by itself."""
    with pytest.raises(SaveFailed, match="was damaged when it was read back"):
        stopped(tmp_path / "s", saver, rotting(tmp_path / "s", caplog))
    (pack,) = quarantined_packs(holdfast.open(tmp_path / "s"))
    rot(tmp_path / "s")  # a bit that is flipped twice is right
    trained(tmp_path / "s", 4, saver=saver)
    *_, last = records_of(tmp_path / "s")
    assert pack not in last.packs
    assert len(shared_packs(tmp_path / "s")) == 2


def stopped(store, saver, then):
    """Ends after three steps, without a final checkpoint."""
    model, optimizer = model_of()
    with Checkpointer(
        store, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=1), saver=saver
    ) as ckpt:
        for step in ckpt.steps(9):
            settled(ckpt)
            then(step, ckpt)
            if step == 3:
                break
            model(torch.randn(4, 64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def test_a_pack_that_cannot_be_read_right_now_is_not_taken_for_rotten(tmp_path, saver, monkeypatch, caplog):
    broken = "raise StorageUnavailable('the disk does not answer')"
    lines = "from holdfast.errors import StorageUnavailable", f"def no(*a, **k): {broken}", "r.verify_pack = no"
    monkeypatch.setattr(starting, "prelude", "\n".join([starting.prelude, *lines]))

    def no(*given, **options):
        raise StorageUnavailable("the disk does not answer")

    monkeypatch.setattr(rereading, "verify_pack", no)
    trained(tmp_path / "s", 6, saver=saver)
    assert "could not be read back: the disk does not answer" in caplog.text
    assert len(shared_packs(tmp_path / "s")) == 1
    assert verify(holdfast.open(tmp_path / "s"), deep=True).ok


# Whose turn it is


def record(tmp_path, packs):
    (found,) = records_of(tmp_path / "s")
    return Record(**{name: getattr(found, name) for name in found.__struct_fields__ if name != "packs"}, packs=packs)


@pytest.fixture
def turns(tmp_path):
    trained(tmp_path / "s", 1, saver="inline")
    return Rereading(store=holdfast.open(tmp_path / "s"), every=3)


def test_a_pack_is_due_after_so_many_saves_that_relied_on_it(tmp_path, turns):
    due = []
    for _ in range(5):
        turns.committed(record(tmp_path, ["data/shared/a.pack"]), ["data/shared/a.pack"])
        due.append(turns.turn())
    assert due == [None, None, None, "data/shared/a.pack", "data/shared/a.pack"]


def test_a_pack_that_is_in_no_new_checkpoint_any_more_is_not_read(tmp_path, turns):
    for _ in range(4):
        turns.committed(record(tmp_path, ["data/shared/a.pack"]), ["data/shared/a.pack"])
    turns.committed(record(tmp_path, ["data/shared/b.pack"]), ["data/shared/b.pack"])
    assert turns.turn() is None


def test_the_one_that_waited_longest_comes_first_and_then_the_others(tmp_path, turns):
    (old,) = shared_packs(tmp_path / "s")
    old = ObjectName(f"data/shared/{old}")
    turns.committed(record(tmp_path, [old]), [old])
    for _ in range(4):
        turns.committed(record(tmp_path, [old, "data/shared/new.pack"]), [old, "data/shared/new.pack"])
    assert turns.turn() == old
    assert turns.read(old) == []
    assert turns.turn() == "data/shared/new.pack"
    assert [problem.kind for problem in turns.read(ObjectName("data/shared/new.pack"))] == ["missing"]
    assert turns.turn() is None
