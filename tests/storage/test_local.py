"""Directories: missing ones, files in their place, full and read-only disks, foreign files."""

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.errors import ObjectExists, ObjectMissing, StorageFull, StorageReadOnly, StorageUnavailable
from holdfast.ids import ObjectName
from holdfast.storage.durable import unfinished_name
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage
from holdfast.testing.storage import pattern

A = ObjectName("catalog/a.json")


def test_a_missing_root_is_an_error_unless_it_is_to_be_made(tmp_path):
    """Hazards 28: the mount may be missing."""
    with pytest.raises(StorageUnavailable, match="and its disk mounted"):
        LocalStorage(tmp_path / "gone", create=False)
    assert not (tmp_path / "gone").exists()
    LocalStorage(tmp_path / "deep" / "down", create=True)
    LocalStorage(tmp_path / "deep" / "down", create=False)


@pytest.mark.parametrize("create", [True, False])
def test_a_file_is_no_root(tmp_path, create):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="is a file"):
        LocalStorage(tmp_path / "file", create=create)


def test_a_file_on_the_way_is_no_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="Not a directory"):
        LocalStorage(tmp_path / "file" / "store")


def test_a_root_that_goes_away_is_never_made_again(tmp_path):
    """Hazards 28: else the next save would go to the root disk, and reads would say that nothing was ever there."""
    storage = LocalStorage(tmp_path / "store")
    storage.create(A, b"x")
    shutil.rmtree(tmp_path / "store")
    for call in (
        lambda: storage.create(A, b"x"),
        lambda: storage.create(ObjectName("top"), b"x"),
        lambda: storage.read(A),
        lambda: storage.size(A),
        lambda: storage.list(""),
        lambda: storage.delete([A]),
        lambda: storage.sink(A, 0),
        lambda: storage.source(A),
        lambda: storage.sweep_unfinished(),
    ):
        with pytest.raises(StorageUnavailable, match="mount"):
            call()
    assert not (tmp_path / "store").exists()


def test_a_relative_root_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = LocalStorage(Path("store"))
    monkeypatch.chdir("/")
    storage.create(A, b"x")
    assert storage.url == str(tmp_path / "store")
    assert (tmp_path / "store" / A).exists()


def test_foreign_files_are_passed_over(tmp_path):
    """Lost+found, editors' files, sockets: they are not ours, not listed, not swept."""
    storage = LocalStorage(tmp_path)
    storage.create(A, b"x")
    for name in ("README.TXT", "lost+found/x", ".hidden", ".tmp-folder/x", "catalog/.nfs0001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"foreign")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert [item.name for item in storage.list("")] == [A]
    assert storage.sweep_unfinished() == 0
    assert (tmp_path / "catalog/.nfs0001").exists()


def test_a_folder_may_be_a_link_to_another_disk(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data").symlink_to(tmp_path / "big")
    storage = LocalStorage(tmp_path / "store")
    storage.create(ObjectName("data/p"), b"x")
    assert [item.name for item in storage.list("")] == ["data/p"]
    assert (tmp_path / "big" / "p").exists()


def test_an_object_where_a_folder_is_needed_is_said(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.create(ObjectName("a"), b"x")
    with pytest.raises(StorageUnavailable, match="an object lies where a folder is needed"):
        storage.create(ObjectName("a/b"), b"x")
    with pytest.raises(ObjectExists):
        storage.create(ObjectName("a"), b"y")


def test_a_full_disk_is_said_and_left_as_it_was(small_disk):
    """Users ask 23, on a real filesystem."""
    storage = LocalStorage(small_disk)
    storage.create(A, b"x")
    free = os.statvfs(small_disk).f_bavail
    with pytest.raises(StorageFull, match=r"No space left on device.*free some space"):
        storage.create(ObjectName("catalog/b"), bytes(20 << 20))
    assert os.statvfs(small_disk).f_bavail == free
    assert [item.name for item in storage.list("")] == [A]
    storage.create(ObjectName("catalog/b"), bytes(1 << 20))


def test_a_full_disk_is_found_before_the_bytes_are_written(small_disk):
    """Hazards 31: the space of a pack is set aside first."""
    storage = LocalStorage(small_disk)
    free = os.statvfs(small_disk).f_bavail
    with pytest.raises(StorageFull):
        storage.sink(A, 20 << 20)
    # The folder was made; it takes no block here.
    assert os.statvfs(small_disk).f_bavail == free
    assert storage.sweep_unfinished() == 0


def test_a_disk_that_fills_up_under_a_sink(small_disk):
    storage = LocalStorage(small_disk)
    free = os.statvfs(small_disk).f_bavail
    data = pattern(1 << 20)
    with storage.sink(A, 0) as sink:
        for number in range(12):
            sink.write(number << 20, data)
        with pytest.raises(StorageFull):
            sink.write(12 << 20, memoryview(bytes(8 << 20)))
        with pytest.raises(StorageUnavailable, match="an earlier write failed"):
            sink.commit(1 << 20)
    assert os.statvfs(small_disk).f_bavail == free
    assert list(storage.list("")) == []


def test_deleting_works_on_a_full_disk(small_disk):
    """Hazards 31: how else would space become free."""
    storage = LocalStorage(small_disk)
    storage.create(A, bytes(10 << 20))
    with pytest.raises(StorageFull):
        storage.create(ObjectName("b"), bytes(10 << 20))
    storage.delete([A])
    storage.create(ObjectName("b"), bytes(10 << 20))


def test_a_read_only_disk_is_said(small_disk):
    storage = LocalStorage(small_disk)
    storage.create(A, b"x")
    (small_disk / unfinished_name()).write_bytes(b"left over")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    storage = LocalStorage(small_disk, create=False)
    assert storage.read(A) == b"x"
    assert [item.name for item in storage.list("")] == [A]
    for call in (
        lambda: storage.create(ObjectName("b"), b"x"),
        lambda: storage.create(A, b"x"),
        lambda: storage.sink(ObjectName("b/c"), 0),
        lambda: storage.delete([A]),
        lambda: storage.sweep_unfinished(),
    ):
        with pytest.raises(StorageReadOnly, match=r"Read-only file system.*check how it is mounted"):
            call()
    with pytest.raises(StorageReadOnly):
        LocalStorage(small_disk / "new")


def exceed_the_limit(root):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        LocalStorage(Path(root)).create(A, bytes(8192))
    except StorageFull as error:
        raise SystemExit(77 if error.errno == errno.EFBIG else 1) from None


def test_a_file_size_limit_counts_as_full(processes, tmp_path):
    process = processes.Process(target=exceed_the_limit, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == 77
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_missing_object_names_itself_and_the_store(tmp_path):
    with pytest.raises(ObjectMissing) as caught:
        LocalStorage(tmp_path).read(A)
    assert str(caught.value) == f"no object catalog/a.json in {tmp_path}"
    assert caught.value.errno == errno.ENOENT


def test_a_listing_goes_on_when_objects_vanish_under_it(tmp_path):
    storage = LocalStorage(tmp_path)
    for name in ("a/1", "b/1", "b/2", "c/1"):
        storage.create(ObjectName(name), b"x")
    listing = storage.list("")
    assert next(listing).name == "a/1"
    shutil.rmtree(tmp_path / "b")
    assert [item.name for item in listing] == ["c/1"]


class RecordsSyncs(Files):
    """Notes which folders were synced, and refuses those in ``forbidden``."""

    def __init__(self, forbidden=()):
        self.synced, self.forbidden = [], forbidden

    def sync_folder(self, path):
        if path in self.forbidden:
            raise OSError(errno.EACCES, "Permission denied")
        self.synced.append(path)
        super().sync_folder(path)


def test_the_entry_of_a_root_that_somebody_else_made_is_durable_too(tmp_path):
    """Whoever made the folder a moment ago may not have synced it, and everything below it hangs on that entry."""
    files = RecordsSyncs()
    root = tmp_path / "checkpoints"
    root.mkdir()
    LocalStorage(root, files)
    assert files.synced == [tmp_path]


def test_a_root_in_a_folder_that_may_not_be_read_can_be_used(tmp_path):
    root = tmp_path / "checkpoints"
    root.mkdir()
    LocalStorage(root, RecordsSyncs(forbidden=[tmp_path])).create(A, b"x")
    assert LocalStorage(root).read(A) == b"x"


def test_a_store_that_is_only_read_syncs_nothing(tmp_path):
    files = RecordsSyncs()
    LocalStorage(tmp_path, files, create=False)
    assert files.synced == []
