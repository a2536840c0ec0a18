"""Room that is kept back on a disk, for what clears it up."""

from __future__ import annotations

import os

import pytest
from failing_files import fill, small_disk

from holdfast.catalog.launches import begin_launch
from holdfast.catalog.store import create_store, open_store
from holdfast.errors import StorageFull
from holdfast.ids import ObjectName
from holdfast.saver.ballast import BYTES, Ballast, BallastedStorage, with_ballast
from holdfast.storage.local import LocalStorage
from holdfast.storage.memory import memory_storage


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "4m") as mounted:
        if not mounted:
            pytest.skip("this user may not mount anything")
        yield tmp_path / "disk"


def free(disk):
    facts = os.statvfs(disk)
    return facts.f_bavail * facts.f_bsize


@pytest.fixture
def storage(disk):
    return BallastedStorage(LocalStorage(disk / "s"), Ballast(disk / "s"))


def test_it_takes_room_and_has_no_name(disk, storage):
    before = free(disk)
    storage.ballast.hold()
    assert before - free(disk) >= BYTES
    assert list((disk / "s").iterdir()) == []
    assert storage.ballast.drop()
    assert free(disk) >= before - 4096


def test_small_objects_find_room_on_a_full_disk_and_packs_do_not(disk, storage):
    storage.ballast.hold()
    fill(disk / "other")
    with pytest.raises(StorageFull):
        storage.sink(ObjectName("data/pack"), 1 << 19)
    storage.create(ObjectName("catalog/record.json"), b"{}")
    assert storage.read(ObjectName("catalog/record.json")) == b"{}"


def test_without_it_a_full_disk_takes_nothing(disk, storage):
    fill(disk / "other")
    with pytest.raises(StorageFull):
        storage.create(ObjectName("catalog/record.json"), b"{}")


def test_once_it_was_held_nobody_goes_on_without_it(disk, storage):
    """What is left of the room is for those who clear up, not for the next pack."""
    storage.ballast.hold()
    fill(disk / "other")
    storage.create(ObjectName("catalog/hold.json"), b"{}")
    with pytest.raises(StorageFull, match="1024 KiB"):
        storage.ballast.hold()
    (disk / "other").unlink()
    storage.ballast.hold()
    assert storage.ballast.drop()


def test_a_disk_that_never_had_the_room_is_used_as_it_is(disk, storage):
    fill(disk / "other", leave=BYTES // 2)
    storage.ballast.hold()
    storage.create(ObjectName("catalog/record.json"), b"{}")
    assert not storage.ballast.drop()


def test_forked_children_do_not_keep_the_room(disk, storage):
    """A loader worker has all descriptors of the trainer."""
    storage.ballast.hold()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    before = free(disk)
    storage.ballast.drop()
    assert free(disk) - before >= BYTES
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)


def test_a_launch_in_a_folder_gets_one_and_can_do_all_that_it_could_before(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    run = store.create_run("r")
    launch, ballast = with_ballast(begin_launch(run))
    assert ballast is not None
    assert [info.name for info in launch.run.store.runs()] == ["r"]
    assert launch.run.store.claimed() == store.claimed()
    assert not launch.fenced()


def test_a_launch_in_memory_gets_none():
    launch = begin_launch(create_store(memory_storage()).create_run("r"))
    assert with_ballast(launch) == (launch, None)
