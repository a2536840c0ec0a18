"""Opening stores and claiming run numbers."""

from __future__ import annotations

import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toy_training import ended, forked

from holdfast.catalog import layout
from holdfast.catalog.store import create_store, open_store
from holdfast.errors import BeingDeleted, InvalidName, Missing, NotFound, ObjectExists, UnknownFormat, UnknownReference
from holdfast.ids import ObjectName, Order, RecordAddress, RecordId, RunNumber
from holdfast.records import StoreInfo, Sweep
from holdfast.seals import seal
from holdfast.storage.memory import memory_storage


def test_a_store_opened_again_is_the_same_store(tmp_path):
    created = open_store(tmp_path / "checkpoints", create=True)
    assert open_store(tmp_path / "checkpoints").info == created.info
    assert open_store(tmp_path / "checkpoints", create=True).info == created.info


def test_two_who_create_a_store_at_once_get_one_store(tmp_path):
    barrier = threading.Barrier(8)

    def create(_):
        barrier.wait()
        return open_store(tmp_path, create=True).info.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(8)))) == 1


def test_a_missing_folder_is_named_together_with_a_store_nearby(tmp_path):
    open_store(tmp_path / "checkpoints", create=True)
    with pytest.raises(NotFound, match=r"no such folder.*did you mean .*/checkpoints\?"):
        open_store(tmp_path / "chekpoints")


def test_an_empty_folder_is_no_store_and_stays_empty(tmp_path):
    """Hazards 28: a mount that is missing looks like an empty folder."""
    mount = tmp_path / "mnt" / "checkpoints"
    mount.mkdir(parents=True)
    with pytest.raises(NotFound, match=r"has no holdfast\.json.*mounted"):
        open_store(mount)
    assert list(mount.iterdir()) == []


@pytest.mark.parametrize("folder", ["catalog", "data"])
def test_a_folder_with_foreign_catalog_or_data_is_refused_and_untouched(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.txt").write_text("mine")
    with pytest.raises(Missing, match="nothing was changed"):
        open_store(tmp_path, create=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [folder, "mine.txt"]


def test_a_folder_with_other_things_in_it_may_become_a_store(tmp_path):
    (tmp_path / "train.py").write_text("pass")
    open_store(tmp_path, create=True)
    assert (tmp_path / "train.py").read_text() == "pass"


def test_a_store_of_a_newer_format_is_refused(monkeypatch):
    storage = memory_storage()
    monkeypatch.setattr("holdfast.seals.FORMAT", 99)
    storage.create(layout.STORE, seal(layout.STORE, StoreInfo(id="0" * 16, created="")))
    with pytest.raises(UnknownFormat, match="99"):
        create_store(storage)


def test_runs_are_numbered_from_one_and_may_share_a_name(store):
    numbers = [store.create_run(name).number for name in ("gpt2", None, "gpt2")]
    assert numbers == [1, 2, 3]
    assert [info.number for info in store.named("gpt2")] == [1, 3]
    assert store.run(2).info.name is None


def test_two_launches_at_once_never_get_one_number(tmp_path):
    """Hazards 29: with the name in the folder, both would have created run 1."""
    store = open_store(tmp_path, create=True)
    barrier = threading.Barrier(8)

    def create(name):
        barrier.wait()
        return store.create_run(name).number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(create, "abcdefgh"))
    assert sorted(numbers) == list(range(1, 9))


def test_a_lost_answer_does_not_cost_a_number(store, monkeypatch):
    """The create arrived, its answer did not, and the retry says "exists"."""
    create = store.storage.create

    def twice(name, data):
        create(name, data)
        raise ObjectExists(f"{name} exists")

    monkeypatch.setattr(store.storage, "create", twice)
    assert store.create_run("gpt2").number == 1
    monkeypatch.undo()
    assert store.numbers() == [1]


def test_folders_that_no_run_number_is_written_as_are_somebody_elses(store, train):
    """A folder 000, or a copy under 0001, must not hide the runs."""
    train("one").save(1)
    own = store.storage.read(layout.run_info(RunNumber(1)))
    for folder in ("000", "0001", "01"):
        store.storage.create(ObjectName(f"catalog/runs/{folder}/run.json"), own)
    assert [info.number for info in store.runs()] == [1]
    assert store.numbers() == store.claimed() == [1]
    assert store.damaged() == []
    assert store.create_run("two").number == 2


def test_a_run_whose_own_object_is_lost_is_still_claimed(store, train):
    train("one").save(1)
    train("two").save(1)
    store.storage.delete([layout.run_info(RunNumber(1))])
    assert (store.numbers(), store.claimed()) == ([2], [1, 2])


def test_an_unknown_run_is_an_error_that_says_what_there_is(store):
    store.create_run("gpt2")
    with pytest.raises(UnknownReference, match=r"no run-007.*run-001"):
        store.run(7)


def test_a_run_name_with_a_path_in_it_is_refused(store):
    with pytest.raises(InvalidName):
        store.create_run("../escape")
    assert store.numbers() == []


def test_a_damaged_run_json_is_reported_and_hides_no_other_run(store, damage):
    store.create_run("one")
    store.create_run("two")
    damage(store, layout.run_info(RunNumber(1)))
    assert [info.name for info in store.runs()] == ["two"]
    assert [one.name for one in store.damaged()] == [layout.run_info(RunNumber(1))]
    assert store.create_run("three").number == 3


def test_a_fork_of_what_is_being_deleted_is_refused_and_claims_no_number(store, train):
    record = train().save(1)
    sweep = Sweep(id="f" * 16, created="", owner=store.owner, objects=[str(record.name)])
    store.storage.create(layout.sweep(sweep.id), seal(layout.sweep(sweep.id), sweep))
    with pytest.raises(BeingDeleted):
        store.create_run("fork", forked_from=record.address)
    assert store.numbers() == [1]


def test_a_fork_of_what_is_not_there_is_refused(store, train):
    train().save(1)
    nowhere = RecordAddress(RunNumber(1), Order(1, 0, 99), RecordId("0" * 16))
    with pytest.raises(Missing, match="deleted"):
        store.create_run("fork", forked_from=nowhere)


# --- Folders of others around a store


@pytest.fixture
def common():
    """A folder that everybody may use, with somebody's own folder in it, which sorts before all others."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o777)
        (place / "a-private").mkdir(mode=0)
        yield place
        (place / "a-private").chmod(0o700)


def as_somebody(work, report) -> str:
    """What ``work`` gives where its process is not root's."""

    def demoted():
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        return work()

    report.touch(mode=0o666)
    report.chmod(0o666)
    assert ended(forked(demoted, report)) == 0
    return report.read_text()


def test_a_folder_of_somebody_else_beside_the_store_is_in_nobodys_way(common):
    """The first training of an ordinary user in a shared folder died of a PermissionError."""
    assert as_somebody(lambda: open_store(common / "mine", create=True).url, common / "made") != ""
    assert (common / "mine" / layout.STORE).is_file()


def test_a_hint_at_stores_nearby_passes_over_folders_of_others(common):
    open_store(common / "checkpoints", create=True)

    def looking():
        with pytest.raises(NotFound) as raised:
            open_store(common / "chekpoints")
        return raised.value

    assert f"did you mean {common / 'checkpoints'}?" in as_somebody(looking, common / "said")


def test_who_makes_a_store_or_looks_for_one_again_and_again_asks_for_no_hint(tmp_path):
    open_store(tmp_path / "checkpoints", create=True)
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "chekpoints", tmp_path / "empty"):
        with pytest.raises(NotFound) as raised:
            open_store(place, hint=False)
        assert "mean" not in str(raised.value)
