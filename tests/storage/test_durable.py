"""The one durable write, at every file event: killed there, failing there (hazards 12, 13, 20; users ask 2)."""

import errno
import gc
import itertools
import os
import signal
import threading
from pathlib import Path

import pytest

from holdfast.errors import ObjectExists, StorageError, StorageFull, StorageReadOnly, StorageUnavailable
from holdfast.ids import ObjectName
from holdfast.storage.blocks import aligned_buffer
from holdfast.storage.durable import PREFIX, Publishing, unfinished_name
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import CountedFiles, FailAt, HookedFiles, KillAt, Op, ShortWrites
from holdfast.testing.storage import pattern

NAME = ObjectName("catalog/runs/a.json")
DATA = pattern(10_000)
BUFFER = aligned_buffer(len(DATA))  # at a fixed alignment, so that a sink has the same events in every process
BUFFER[:] = DATA

WAYS = {
    Publishing.LINK: {},
    Publishing.RENAME: {Op.LINK: errno.EPERM},
    Publishing.EXCLUSIVE: {Op.LINK: errno.EOPNOTSUPP, Op.RENAME_NEW: errno.EINVAL},
}


def lacking(way, inner=None):
    """Files of a filesystem whose best way to give a name is ``way``."""
    files = inner or Files()
    for op, code in WAYS[way].items():
        files = FailAt(1, code, persistent=True, ops=frozenset({op}), inner=files)
    return files


def create(storage):
    storage.create(NAME, DATA)


def fill(storage):
    with storage.sink(NAME, 1 << 20) as sink:
        sink.write(4096, BUFFER[4096:])
        sink.write(0, BUFFER[:4096])
        sink.commit(len(DATA))


WORKS = {"create": create, "sink": fill}


def work_until_killed(work, way, root, number, after):
    WORKS[work](LocalStorage(Path(root), KillAt(number, after=after, inner=lacking(way))))


def kill_everywhere(work, way, place, most):
    """One process for each event and side; the exit code tells how many were not killed by it."""
    survivors = 0
    for number, after in itertools.product(range(1, most + 1), (False, True)):
        if (pid := os.fork()) == 0:
            work_until_killed(work, way, f"{place}/{number}{after}", number, after)
            os._exit(0)
        survivors += os.waitpid(pid, 0)[1] != signal.SIGKILL
    raise SystemExit(survivors)


def events(work, way, root):
    """The file events of an undisturbed piece of work."""
    files = CountedFiles(lacking(way))
    WORKS[work](LocalStorage(root, files))
    return files.seen


def unfinished(root):
    return list(root.rglob(f"{PREFIX}*"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("work", WORKS)
def test_killed_at_any_file_event_leaves_all_or_nothing(processes, fast_disk, work, way):
    """Users ask 2: SIGKILL in the middle of a write; before and after each event, in every way of giving names."""
    most = len(events(work, way, fast_disk / "whole"))
    process = processes.Process(target=kill_everywhere, args=(work, way, str(fast_disk), most))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    roots = [fast_disk / f"{number}{after}" for number in range(1, most + 1) for after in (False, True)]
    assert {None, DATA} <= {left_by_a_dead_writer(root, torn=way is Publishing.EXCLUSIVE) for root in roots}


def left_by_a_dead_writer(root, *, torn):
    storage = LocalStorage(root)
    found = storage.read(NAME) if [item.name for item in storage.list("")] == [NAME] else None
    assert found in ((None, DATA, b"") if torn else (None, DATA))
    storage.sweep_unfinished()
    assert unfinished(root) == []
    if found is None:
        storage.create(NAME, DATA)
        assert storage.read(NAME) == DATA
    else:
        with pytest.raises(ObjectExists):
            storage.create(NAME, b"other")
        assert storage.read(NAME) == found
    return found


def test_the_whole_sequence_of_a_create_in_a_new_folder(tmp_path):
    """The order of the events is the promise; sync before name, name before sync of its folder."""
    assert [event.op for event in events("create", Publishing.LINK, tmp_path / "s")] == [
        *(Op.MAKE_FOLDER, Op.SYNC_FOLDER),  # the root
        *(Op.MAKE_FOLDER, Op.MAKE_FOLDER, Op.SYNC_FOLDER, Op.SYNC_FOLDER),  # catalog, runs
        *(Op.CREATE, Op.WRITE, Op.SYNC, Op.LINK, Op.UNLINK, Op.SYNC_FOLDER, Op.CLOSE),
    ]


def test_a_create_in_a_known_folder_costs_two_syncs(tmp_path):
    files = CountedFiles(ops=frozenset({Op.SYNC, Op.SYNC_FOLDER}))
    storage = LocalStorage(tmp_path, files)
    storage.create(NAME, DATA)
    before = len(files.seen)
    storage.create(ObjectName("catalog/runs/b.json"), DATA)
    assert [event.op for event in files.seen[before:]] == [Op.SYNC, Op.SYNC_FOLDER]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("work", WORKS)
def test_failing_at_any_file_event_leaves_all_or_nothing(fast_disk, work, code, persistent):
    kinds = {errno.EIO: StorageUnavailable, errno.EROFS: StorageReadOnly}
    gc.collect()  # what other tests have left open
    descriptors = os.listdir("/proc/self/fd")
    raised = []
    for number in range(1, len(events(work, Publishing.LINK, fast_disk / "whole")) + 1):
        root = fast_disk / f"{number}"
        error = failure(work, root, FailAt(number, code, persistent=persistent))
        raised += [type(error)] if error else []
        if error is None:
            assert LocalStorage(root).read(NAME) == DATA
        left_by_a_dead_writer(root, torn=False)
    assert set(raised) == {kinds.get(code, StorageFull)}
    assert len(raised) >= 8
    assert os.listdir("/proc/self/fd") == descriptors


def failure(work, root, files):
    try:
        WORKS[work](LocalStorage(root, files))
    except StorageError as error:
        return error
    return None


@pytest.mark.parametrize("work", WORKS)
def test_failing_once_leaves_nothing_behind(fast_disk, work):
    for number, event in enumerate(events(work, Publishing.LINK, fast_disk / "whole"), 1):
        root = fast_disk / f"{number}"
        failure(work, root, FailAt(number, errno.EIO))
        if event.op is not Op.UNLINK:
            assert unfinished(root) == [], event


@pytest.mark.parametrize("work", WORKS)
def test_a_failed_sync_is_never_tried_again(fast_disk, work):
    """Hazards 12: after an error the kernel has marked the lost pages clean, so a second sync would lie."""
    files = FailAt(1, errno.EIO, ops=frozenset({Op.SYNC}))
    storage = LocalStorage(fast_disk, files)
    with pytest.raises(StorageUnavailable, match="Input/output error"):
        WORKS[work](storage)
    assert len(files.seen) == 1
    assert list(storage.list("")) == []
    assert unfinished(fast_disk) == []


def test_the_way_of_giving_names_is_found_once(tmp_path):
    """Hazards 20: probed in order, kept, and told."""
    for way in WAYS:
        files = CountedFiles(lacking(way), ops=frozenset({Op.LINK, Op.RENAME_NEW}))
        storage = LocalStorage(tmp_path / way, files)
        assert storage.publishing is None
        create(storage)
        probed = len(files.seen)
        storage.create(ObjectName("b"), b"x")
        assert storage.publishing is way
        assert len(files.seen) - probed == (0 if way is Publishing.EXCLUSIVE else 1)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.ESTALE])
def test_an_error_is_no_reason_for_a_weaker_way(tmp_path, code):
    storage = LocalStorage(tmp_path, FailAt(1, code, ops=frozenset({Op.LINK})))
    with pytest.raises(StorageError):
        create(storage)
    create(storage)
    assert storage.publishing is Publishing.LINK


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_every_answer_that_means_no_links_is_understood(tmp_path, code):
    """Hazards 20: exFAT, SMB and FUSE filesystems say it differently."""
    storage = LocalStorage(tmp_path, FailAt(1, code, persistent=True, ops=frozenset({Op.LINK})))
    create(storage)
    assert storage.publishing is Publishing.RENAME
    with pytest.raises(ObjectExists):
        create(storage)


class AnswersTwice(HookedFiles):
    """Hazards 20: NFS repeats a request whose answer was lost, and finds its own link."""

    def link(self, source, target):
        super().link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")


def test_the_echo_of_ones_own_link_is_success(tmp_path):
    storage = LocalStorage(tmp_path, AnswersTwice())
    create(storage)
    assert storage.read(NAME) == DATA
    assert unfinished(tmp_path) == []


def test_short_writes_are_continued(tmp_path):
    storage = LocalStorage(tmp_path, ShortWrites(999))
    create(storage)
    assert storage.read(NAME) == DATA


class LosesBytes(Files):
    def write(self, descriptor, data, offset):
        super().write(descriptor, data[:-1], offset)
        return len(data)


def test_the_length_is_checked_before_the_name_is_given(tmp_path):
    storage = LocalStorage(tmp_path, LosesBytes())
    with pytest.raises(StorageUnavailable, match="has 9999 bytes after 10000 were written"):
        create(storage)
    assert list(storage.list("")) == []


def test_permissions_follow_the_umask(tmp_path):
    """Users ask 2: temporary files of others turn 0644 into 0600 without a word."""
    before = os.umask(0o027)
    try:
        storage = LocalStorage(tmp_path / "store")
        create(storage)
        with storage.sink(ObjectName("data/p"), 0) as sink:
            sink.commit(0)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"store": 0o750, "catalog": 0o750, "runs": 0o750, "data": 0o750, "a.json": 0o640, "p": 0o640}


def test_a_folder_removed_behind_our_back_is_made_again(tmp_path):
    storage = LocalStorage(tmp_path)
    create(storage)
    storage.delete([NAME])
    (tmp_path / "catalog" / "runs").rmdir()
    (tmp_path / "catalog").rmdir()
    create(storage)
    assert storage.read(NAME) == DATA


class SweptAtOnce(Files):
    """A sweeper that is quicker than the lock, the first time."""

    swept = 0

    def create(self, path):
        descriptor = super().create(path)
        if self.swept < 1 and path.name.startswith(PREFIX):
            self.swept += 1
            path.unlink()
        return descriptor


def test_a_writer_whose_file_was_swept_before_its_lock_takes_another(tmp_path):
    files = SweptAtOnce()
    storage = LocalStorage(tmp_path, files)
    create(storage)
    assert files.swept == 1
    assert storage.read(NAME) == DATA


def hold_open(root, ready, leave):
    with LocalStorage(Path(root)).sink(NAME, 0) as sink:
        sink.write(0, DATA)
        ready.set()
        leave.wait(300)
        sink.commit(len(DATA))


def test_a_sweep_spares_the_writers_of_other_processes(processes, tmp_path):
    """The lock tells the living from the dead; no clock, no process numbers."""
    storage = LocalStorage(tmp_path)
    (tmp_path / unfinished_name()).write_bytes(b"12345")
    ready, leave = processes.Event(), processes.Event()
    process = processes.Process(target=hold_open, args=(str(tmp_path), ready, leave))
    process.start()
    assert ready.wait(300)
    assert storage.unfinished() == 5
    assert storage.sweep_unfinished() == 5
    assert len(unfinished(tmp_path)) == 1
    leave.set()
    process.join(60)
    assert process.exitcode == 0
    assert storage.read(NAME) == DATA


def test_a_sweep_counts_only_bytes_that_become_free(tmp_path):
    """A writer that died between the two names left a second name, not a second copy."""
    storage = LocalStorage(tmp_path)
    create(storage)
    (tmp_path / unfinished_name()).hardlink_to(tmp_path / NAME)
    assert storage.unfinished() == 0
    assert storage.sweep_unfinished() == 0
    assert unfinished(tmp_path) == []
    assert storage.read(NAME) == DATA


def test_a_sweep_leaves_the_files_of_other_hosts(tmp_path, caplog):
    """On NFS with local locks every file of another host looks like one of a dead writer."""
    storage = LocalStorage(tmp_path)
    foreign = [tmp_path / f"{PREFIX}{'0' * 12}-{'1' * 12}-00ff00ff00ff00ff", tmp_path / f"{PREFIX}00ff00ff00ff00ff"]
    for path in foreign:
        path.write_bytes(b"another host is writing this")
    (tmp_path / unfinished_name()).write_bytes(b"12345")
    assert (storage.unfinished(), len(unfinished(tmp_path))) == (5, 3)
    assert storage.sweep_unfinished() == 5
    assert sorted(unfinished(tmp_path)) == sorted(foreign)
    assert "2 unfinished files" in caplog.text


def test_a_sweep_knows_files_of_an_earlier_boot_and_of_another_container(tmp_path):
    """A machine that was started again keeps its name; containers on one machine share the kernel that holds locks."""
    host, boot = unfinished_name().removeprefix(PREFIX).split("-")[:2]
    for name in (f"{PREFIX}{host}-{'0' * 12}-00ff00ff00ff00ff", f"{PREFIX}{'0' * 12}-{boot}-00ff00ff00ff00ff"):
        (tmp_path / name).write_bytes(b"12345")
    assert LocalStorage(tmp_path).sweep_unfinished() == 10


class WaitsInWrite(HookedFiles):
    def __init__(self):
        super().__init__()
        self.writing, self.go_on = threading.Event(), threading.Event()

    def write(self, descriptor, data, offset):
        self.writing.set()
        assert self.go_on.wait(300)
        return super().write(descriptor, data, offset)


def test_a_descriptor_is_not_closed_under_a_writing_thread(tmp_path):
    """Its number would be given to the next file, and the write would go there."""
    files = WaitsInWrite()
    sink = LocalStorage(tmp_path, files).sink(NAME, 0)
    thread = threading.Thread(target=sink.write, args=(0, b"late"))
    thread.start()
    assert files.writing.wait(300)
    sink.abort()
    victim = os.open(tmp_path / "victim", os.O_RDWR | os.O_CREAT)
    files.go_on.set()
    thread.join(60)
    assert os.fstat(victim).st_size == 0
    os.close(victim)
    assert unfinished(tmp_path) == []
