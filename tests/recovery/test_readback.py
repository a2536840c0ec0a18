"""What a save wrote is read back, and what does not survive the disk is written again."""

from __future__ import annotations

import logging

import pytest
import torch
from toy_training import newest

import holdfast
from holdfast import every, latest
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.marks import read_record_marks
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import SaveFailed, StorageUnavailable
from holdfast.saver.following import Following
from holdfast.storage import opening
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import flip_bit


class RottenDisk(Files):
    """The first shared pack loses a bit as soon as it has its name."""

    def __init__(self):
        self.victims = []

    def link(self, source, target):
        super().link(source, target)
        if target.suffix == ".pack" and "shared" in target.parts and not self.victims:
            self.victims.append(target)
            flip_bit(target, 8 * 5000)


def train(folder, steps):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with holdfast.Checkpointer(
        folder, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=1), keep=latest(9)
    ) as ckpt:
        for _ in ckpt.steps(steps):
            model(torch.ones(1, 64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def test_a_base_that_rots_on_the_way_to_the_disk_is_written_again_by_the_next_save(tmp_path, monkeypatch, caplog):
    """Hazards 3: the good bytes are in memory at every save, so one rotten segment must not cost all checkpoints."""
    disk = RottenDisk()
    monkeypatch.setattr(opening, "LocalStorage", lambda root, **options: LocalStorage(root, files=disk, **options))
    with caplog.at_level(logging.ERROR):
        train(tmp_path / "s", 3)
    store = holdfast.open(tmp_path / "s")
    first, second, third = store.run(1).records()
    rotten = f"data/shared/{disk.victims[0].name}"
    assert rotten in first.packs
    assert rotten not in second.packs + third.packs
    assert [read_record_marks(store, one.address).quarantined for one in (first, second, third)] == [True, False, False]
    assert second.packs[-1] in third.packs, "the base was written a third time"
    assert "the next save writes it again" in caplog.text
    assert {problem.object for problem in verify(store, deep=True).problems} == {rotten}


def test_a_later_launch_does_not_reuse_it_either(tmp_path, monkeypatch):
    disk = RottenDisk()
    monkeypatch.setattr(opening, "LocalStorage", lambda root, **options: LocalStorage(root, files=disk, **options))
    train(tmp_path / "s", 2)
    model = train(tmp_path / "s", 4)
    record = newest(tmp_path / "s")
    assert record.step == 4
    assert f"data/shared/{disk.victims[0].name}" not in record.packs
    again = train(tmp_path / "s", 4)
    assert torch.equal(again[1].weight, model[1].weight)


def test_a_training_whose_last_checkpoint_rotted_does_not_end_well(tmp_path, monkeypatch):
    """I7: there is no next save that could write it again, so the exit code has to say it."""
    monkeypatch.setattr(opening, "LocalStorage", lambda root, **o: LocalStorage(root, files=RottenDisk(), **o))
    with pytest.raises(SaveFailed, match=r"run-001@1 .*was damaged when it was read back"):
        train(tmp_path / "s", 1)


def test_what_was_never_read_back_is_read_back_with_the_next_save(tmp_path, monkeypatch):
    """The read-back of a save failed, or was killed: a later record must not be called verified in spite of it."""
    disk = RottenDisk()
    monkeypatch.setattr(opening, "LocalStorage", lambda root, **options: LocalStorage(root, files=disk, **options))
    follow = Following.follow

    def not_the_first(self, record, packs, **options):
        if record.step == 1:
            raise StorageUnavailable("the disk does not answer")
        return follow(self, record, packs, **options)

    monkeypatch.setattr(Following, "follow", not_the_first)
    train(tmp_path / "s", 3)
    store = holdfast.open(tmp_path / "s")
    first, second, third = store.run(1).records()
    marks = [read_record_marks(store, one.address) for one in (first, second, third)]
    assert [one.verified for one in marks] == [False, False, True]
    assert marks[1].quarantined
    assert f"data/shared/{disk.victims[0].name}" not in third.packs


def test_a_checkpoint_that_somebody_deletes_at_once_does_not_end_the_training(tmp_path, monkeypatch, caplog):
    follow = Following.follow

    def deleted(self, record, packs, **options):
        store = holdfast.open(tmp_path / "s")
        if record.step == 1:
            execute(store, plan_sweep(store, store.run(1), [record.address]))
        return follow(self, record, packs, **options)

    monkeypatch.setattr(Following, "follow", deleted)
    train(tmp_path / "s", 2)
    assert "after the save of run-001@1" in caplog.text
