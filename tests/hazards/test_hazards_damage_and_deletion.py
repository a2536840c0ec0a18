"""Rot, purges, full disks, failing scripts and deletion: what is good stays, and what is not is said."""

from __future__ import annotations

import logging
import random
import shutil
from pathlib import Path

import pytest
import torch
from lives import Death, filled, line, records, stored
from torch import nn

import holdfast
from holdfast import Checkpointer, best, every, latest
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import RefusedFresh, StorageFull, StorageUnavailable, Unusable
from holdfast.ids import RecordId
from holdfast.policy import Policy
from holdfast.storage import opening
from holdfast.storage.faults import Fail, FaultyStorage, When
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import cut, flip_bit

BASE = 64


class Adapted(nn.Module):
    """A frozen base and a small adapter."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.base = nn.Linear(BASE, BASE)
        self.adapter = filled(nn.Linear(20, 20), value)
        for parameter in filled(self.base, 7.0).parameters():
            parameter.requires_grad_(False)


def train(folder, total, *, model=None, die=None, damage=None, **options) -> nn.Module:
    """Step n leaves the adapter at n; ``damage(step)`` comes in the body of a step."""
    model = Adapted() if model is None else model
    optimizer = torch.optim.SGD(model.adapter.parameters(), lr=0.0)
    options = {"save": every(steps=1), "keep": latest(99), **options}
    with Checkpointer(folder, run="r", state={"model": model, "optimizer": optimizer}, **options) as ckpt:
        for step in ckpt.steps(total):
            optimizer.step()
            filled(model.adapter, step + 1.0)
            if damage is not None:
                damage(step)
            if step == die:
                raise Death
    return model


def shared(folder: Path) -> Path:
    """The pack of the frozen base."""
    (pack,) = (path for path in (folder / "data" / "shared").rglob("*") if path.is_file())
    return pack


def private(folder: Path, record) -> Path:
    """A pack that only this run uses."""
    return next(folder / name for name in record.packs if "runs/" in name)


def value(model: nn.Module) -> float:
    return model.adapter.weight[0, 0].item()


# --- One base, many checkpoints


def test_a_base_that_is_purged_during_the_run_is_written_again_from_memory(tmp_path):
    """Hazard 3: "not accessed for 30 days" is true for a base that is only referred to; then the node dies."""

    def purge(step):
        if step == 2:
            shared(tmp_path).unlink()

    with pytest.raises(Death):
        train(tmp_path, 9, die=4, damage=purge)
    model = train(tmp_path, 5, model=Adapted(-1.0))
    assert model.base.weight[0, 0].item() == 7.0
    assert holdfast.open(tmp_path).run(1).starts()[-1].resumed_from.step == 4
    hurt = {address.order.step for address in verify(holdfast.open(tmp_path)).affected}
    assert hurt == set(), "the same content under another name serves the older checkpoints too"


@pytest.mark.parametrize("harm", ["cut", "purge"])
def test_a_base_that_is_lost_between_two_launches_is_not_silently_a_fresh_start(tmp_path, harm):
    """Hazards 3 and 28; users-ask 9: every checkpoint needs it, so nothing can be resumed, and that is said."""
    train(tmp_path, 3)
    pack = shared(tmp_path)
    cut(pack, 100) if harm == "cut" else pack.unlink()
    before = [record.id for record in records(tmp_path)]
    with pytest.raises(RefusedFresh, match="none can be used"):
        train(tmp_path, 4)
    assert [record.id for record in records(tmp_path)] == before
    report = verify(holdfast.open(tmp_path))
    assert {address.order.step for address in report.affected} == {1, 2, 3}


def test_a_flipped_bit_in_a_base_is_never_loaded(tmp_path):
    """Hazard 3; users-ask 5: the newest fails, the next fails, all of them; none gives weights that are wrong."""
    train(tmp_path, 3)
    flip_bit(shared(tmp_path), 8 * 6000)
    with pytest.raises(RefusedFresh, match="none can be used"):
        train(tmp_path, 4)
    assert {a.order.step for a in verify(holdfast.open(tmp_path), deep=True).affected} == {1, 2, 3}


# --- Walking back


def harms(folder, record, kind):
    if kind == "record":
        flip_bit(folder / record.name, 500)
    elif kind == "no record's pack":
        private(folder, record).unlink()
    elif kind == "short pack":
        cut(private(folder, record), 50)
    elif kind == "flipped pack":
        flip_bit(private(folder, record), 8 * 4500)
    else:
        tree = next(p for p in (folder / "catalog").rglob(f"*{record.manifest}*"))
        flip_bit(tree, 100)


@pytest.mark.parametrize("kind", ["record", "no record's pack", "short pack", "flipped pack", "manifest"])
def test_a_damaged_newest_is_passed_over_aloud_and_nothing_of_it_stays(tmp_path, kind, caplog):
    """Hazard 16; users-ask 5 and 9: the load fails half-way; what follows is one whole older state and no mixture."""
    train(tmp_path, 3)
    harms(tmp_path, records(tmp_path)[-1], kind)
    model = Adapted(-1.0)
    with caplog.at_level(logging.WARNING):
        train(tmp_path, 2, model=model)
    assert value(model) == 2.0
    assert torch.equal(model.adapter.bias, torch.full((20,), 2.0))
    assert "step 3" in caplog.text or "@3" in caplog.text or records(tmp_path)[-1].id in caplog.text or kind == "record"
    assert "passed over" in caplog.text or "cannot be used" in caplog.text


def test_when_all_are_damaged_nothing_starts_from_zero_and_the_objects_are_not_used(tmp_path):
    """Hazard 16; users-ask 9: "not making expected progress despite many training runs"."""
    train(tmp_path, 2)
    for record in records(tmp_path):
        private(tmp_path, record).unlink()
    model = Adapted()
    state = {"model": model, "optimizer": torch.optim.SGD(model.adapter.parameters(), lr=0.0)}
    ckpt = Checkpointer(tmp_path, run="r", state=state)
    with pytest.raises(RefusedFresh) as refused:
        ckpt.restore()
    assert all(step in str(refused.value) for step in ("@1", "@2")), "each candidate is named with its reason"
    with pytest.raises((Unusable, RefusedFresh)):
        ckpt.save()
    ckpt.close()
    assert len(records(tmp_path)) == 2


def test_a_script_that_fails_right_after_the_resume_costs_no_checkpoint(tmp_path):
    """Hazard 11: six crashes at the first step had put the five newest checkpoints into quarantine."""
    train(tmp_path, 5)
    for _ in range(6):
        with pytest.raises(Death):
            train(tmp_path, 9, die=5)
    model = train(tmp_path, 5)
    assert value(model) == 5.0
    assert holdfast.open(tmp_path).run(1).starts()[-1].resumed_from.step == 5
    assert line(tmp_path) == [1, 2, 3, 4, 5]


def test_a_disk_that_cannot_be_read_right_now_is_no_reason_to_use_an_older_one(tmp_path, monkeypatch):
    """Hazard 11: an I/O error is not damage; the newest is resumed when the disk is back."""
    train(tmp_path, 3)
    away = Fail(error=StorageUnavailable("EIO"), when=When(verbs=frozenset({"read_into"}), times=None))
    with monkeypatch.context() as patch:
        patch.setattr(opening, "LocalStorage", lambda root, **o: FaultyStorage(LocalStorage(root, **o), away))
        with pytest.raises(StorageUnavailable):
            train(tmp_path, 3, model=Adapted(-1.0))
    assert value(train(tmp_path, 3, model=Adapted(-1.0))) == 3.0
    starts = holdfast.open(tmp_path).run(1).starts()
    assert [start.resumed_from.step for start in starts if start.resumed_from] == [3]


def test_an_exception_in_forward_saves_nothing_of_the_torn_step(tmp_path):
    """Hazard 10: batch norm has moved in forward, one of two optimizers has stepped, a scheduler has moved."""
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    a = torch.optim.SGD(model[0].parameters(), lr=0.1)
    b = torch.optim.SGD(model[2].parameters(), lr=0.1)
    state = {"model": model, "a": a, "b": b}
    kept = {}
    with pytest.raises(Death), Checkpointer(tmp_path, run="r", state=state, save=every(steps=1)) as ckpt:
        for step in ckpt.steps(9):
            model(torch.randn(8, 16)).mean().backward()
            a.step()
            if step == 3:
                raise Death
            b.step()
            kept = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert records(tmp_path)[-1].step == 3
    fresh = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    found = stored(tmp_path, "run-001", fresh).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in kept.items())
    assert any(not torch.equal(model.state_dict()[key], tensor) for key, tensor in kept.items())


# --- Failing saves


def test_a_save_that_fails_reaches_the_loop_and_leaves_the_last_one_in_place(tmp_path, monkeypatch):
    """Users-ask 11 and 23: ENOSPC in the middle of a save; nothing half-written stays, nothing good goes."""
    train(tmp_path, 3, keep=latest(1))
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    full = Fail(error=StorageFull("the disk is full"), when=When(verbs=frozenset({"write"}), times=None))
    with monkeypatch.context() as patch:
        patch.setattr(opening, "LocalStorage", lambda root, **o: FaultyStorage(LocalStorage(root, **o), full))
        with pytest.raises(StorageFull):
            train(tmp_path, 9, keep=latest(1))
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - set(before)
    assert not [path for path in left if "data" in path.relative_to(tmp_path).parts[:1]], "no half-written pack"
    assert line(tmp_path) == [3]
    assert value(train(tmp_path, 4, keep=latest(1))) == 4.0


def test_what_follows_a_save_may_fail_without_failing_the_save(tmp_path, monkeypatch, caplog):
    """Users-ask 3 and 14: the new one is durable; deleting the old one is tried again after the next."""
    stuck = Fail(error=StorageUnavailable("busy"), when=When(verbs=frozenset({"delete"}), prefix="catalog/", times=30))
    monkeypatch.setattr(opening, "LocalStorage", lambda root, **o: FaultyStorage(LocalStorage(root, **o), stuck))
    try:
        train(tmp_path, 8, keep=latest(2))
    except StorageUnavailable:
        pytest.fail("the training was ended by something that came after its checkpoint")
    assert records(tmp_path)[-1].step == 8
    assert verify(holdfast.open(tmp_path), deep=True).ok


# --- Deletion


@pytest.mark.parametrize("keep", [latest(1), latest(2), best("loss", 1), every(steps=1000), latest(1) | best("loss")])
def test_whatever_is_kept_a_good_one_is_there_after_every_step(tmp_path, keep: Policy):
    """Users-ask 4: limit=1 deleted everything; here at each step the newest committed one is whole."""
    seen = []

    def look(step):
        if step:
            store = holdfast.open(tmp_path)
            whole = [r.step for r in records(tmp_path) if verify(store, reference=r.id, deep=True).ok]
            seen.append(max(whole))

    train(tmp_path, 5, keep=keep, damage=look)
    assert seen == [1, 2, 3, 4]


def test_the_parent_that_was_resumed_from_stays_until_the_new_launch_has_proved_itself(tmp_path):
    """Users-ask 4: the checkpoint that was resumed from was removed by the launch that needed it."""
    train(tmp_path, 3, keep=latest(1))
    with pytest.raises(Death):
        train(tmp_path, 9, keep=latest(1), die=5)
    assert 3 in line(tmp_path)
    assert line(tmp_path)[-1] == 5


def test_another_run_is_never_touched(tmp_path):
    """Users-ask 4: a run deleted another run's files; here two runs take turns and share a base."""
    for total in (2, 4):
        train(tmp_path, total, keep=latest(1))
        other = Adapted()
        with Checkpointer(tmp_path, run="other", state={"model": other}, save=every(steps=1), keep=latest(1)) as ckpt:
            for _ in ckpt.steps(total):
                filled(other.adapter, float(total))
    assert line(tmp_path, 1)[-1] == line(tmp_path, 2)[-1] == 4
    assert verify(holdfast.open(tmp_path), deep=True).ok
    assert stored(tmp_path, "r", Adapted()).base.weight[0, 0].item() == 7.0


def test_what_a_person_put_into_the_folder_is_left_alone(tmp_path):
    """Users-ask 4: unknown folders are untouched, by saves, retention and sweeps."""
    train(tmp_path, 2)
    strange = [tmp_path / "notes.txt", tmp_path / "data" / "mine.bin", tmp_path / "catalog" / "runs" / "001" / "x"]
    for path in strange:
        path.write_text("mine")
    train(tmp_path, 6, keep=latest(1))
    store = holdfast.open(tmp_path)
    execute(store, plan_sweep(store, None, []))
    assert [path.read_text() for path in strange] == ["mine"] * 3


def test_a_frozen_base_is_stored_once_however_many_checkpoints_and_runs(tmp_path):
    """Users-ask 12; hazard 40: 88 GiB of base in each checkpoint of a small adapter."""
    train(tmp_path, 4)
    new = [record.bytes.new for record in records(tmp_path)]
    base = BASE * BASE * 4
    assert new[0] >= base
    assert all(0 < later < base for later in new[1:])
    second = Adapted()
    with Checkpointer(tmp_path, run="two", state={"model": second}) as ckpt:
        ckpt.save()
    assert records(tmp_path, 2)[0].bytes.new < base


# --- Copies


def test_a_copy_made_in_sorted_order_while_saves_go_on_has_only_whole_checkpoints(tmp_path):
    """Hazard 32; users-ask 25: rsync lists names, then copies them one by one; saves and deletions come between."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    source = tmp_path / "store"
    train(source, 2, keep=latest(99))
    for number in range(6):
        copy = tmp_path / f"copy{number}"
        names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        pause, done = choice.randrange(len(names)), 2 + number
        later: set[str] = set()
        for at, name in enumerate(names):
            if at == pause:
                train(source, done + 1, keep=latest(99))
                later = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()} - set(names)
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy / name)
        for name in sorted(name for name in later if name > names[pause]):  # a listing that is read as it goes
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy / name)
        report = verify(holdfast.open(copy), deep=True)
        assert not report.affected, f"seed {seed}: {report.affected}"
        assert value(train(copy, done)) >= done


def test_a_copied_store_is_a_store_and_goes_on_by_itself(tmp_path):
    """Users-ask 25: a copied checkpoint looked unfinished elsewhere, and was removed."""
    train(tmp_path / "a", 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert value(train(tmp_path / "b", 4, keep=latest(2))) == 4.0
    assert verify(holdfast.open(tmp_path / "b"), deep=True).ok


def test_an_incomplete_record_in_a_copy_is_passed_over_aloud(tmp_path, caplog):
    """Hazard 32: whoever copies in another order gets a typed state, not a wrong one."""
    train(tmp_path, 3)
    newest = records(tmp_path)[-1]
    private(tmp_path, newest).unlink()
    with caplog.at_level(logging.WARNING):
        assert value(train(tmp_path, 2, model=Adapted(-1.0))) == 2.0
    assert RecordId(newest.id) in caplog.text
