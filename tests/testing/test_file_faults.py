"""Each fault does what its name says, at its event and no other."""

import errno
import gc
import os
import signal

import pytest

from holdfast.errors import StorageUnavailable
from holdfast.ids import ObjectName
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import (
    CountedFiles,
    DropSync,
    FailAt,
    HookedFiles,
    KillAt,
    Op,
    ShortWrites,
    cut,
    flip_bit,
    tear,
)

A = ObjectName("a")


def test_every_operation_of_files_can_be_hooked():
    """A new method of Files that no fault sees would be a hole in every kill test."""
    public = {name for name in vars(Files) if not name.startswith("_")}
    assert public == {op.value for op in Op}
    assert public <= set(vars(HookedFiles))


def test_events_are_counted_without_their_data(tmp_path):
    files = CountedFiles()
    LocalStorage(tmp_path, files, create=False).create(A, b"abc")
    assert [event.op for event in files.seen] == ["create", "write", "sync", "link", "unlink", "sync_folder", "close"]
    assert (files.seen[1].length, files.seen[1].data) == (3, None)
    assert files.seen[3].target == tmp_path / A


@pytest.mark.parametrize(("after", "there"), [(False, False), (True, True)])
def test_kills_come_before_or_after_the_event(tmp_path, after, there):
    if (pid := os.fork()) == 0:
        LocalStorage(tmp_path, KillAt(4, after=after), create=False).create(A, b"abc")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert (tmp_path / A).exists() is there


def attempts(storage, count):
    found = []
    for number in range(count):
        try:
            storage.create(ObjectName(f"{number}"), b"x")
            found.append(True)
        except StorageUnavailable:
            found.append(False)
    return found


@pytest.mark.parametrize(("persistent", "expected"), [(False, [True, False, True]), (True, [True, False, False])])
def test_failures_pass_or_stay(tmp_path, persistent, expected):
    files = FailAt(2, errno.EIO, persistent=persistent, ops=frozenset({Op.SYNC}))
    assert attempts(LocalStorage(tmp_path, files), 3) == expected


def test_a_failing_close_closes(tmp_path):
    gc.collect()  # what other tests have left open
    before = os.listdir("/proc/self/fd")
    LocalStorage(tmp_path, FailAt(1, errno.EIO, ops=frozenset({Op.CLOSE}))).create(A, b"abc")
    assert os.listdir("/proc/self/fd") == before


def test_short_writes_say_how_short(tmp_path):
    files = ShortWrites(2)
    descriptor = files.create(tmp_path / "a")
    assert files.write(descriptor, memoryview(b"abc"), 0) == 2
    files.close(descriptor)
    assert (tmp_path / "a").read_bytes() == b"ab"


def test_a_dropped_sync_does_not_reach_the_disk(tmp_path):
    inner = CountedFiles(ops=frozenset({Op.SYNC, Op.SYNC_FOLDER}))
    LocalStorage(tmp_path, DropSync(inner, at=1), create=False).create(A, b"abc")
    assert [event.op for event in inner.seen] == [Op.SYNC_FOLDER]


def test_bytes_are_damaged_where_they_lie(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(4))
    flip_bit(path, 9)
    assert path.read_bytes() == b"\0\2\0\0"
    flip_bit(path, 9 + 32)
    assert path.read_bytes() == bytes(4)
    path.write_bytes(b"abcdef")
    tear(path, 2, 2)
    assert path.read_bytes() == b"ab\0\0ef"
    cut(path, 3)
    assert path.read_bytes() == b"ab\0"
