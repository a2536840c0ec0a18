"""A disk that fails: at each file event of a save, once and for good, and on filesystems that are really full.

What passes is tried again and costs nothing. Else the training ends with a typed error, at once or, where failed saves
are borne, at its end; the next launch goes on from the last good checkpoint and ends as if nothing had happened, and
nothing half-written is left once gc has been there.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_training import expected, launched, steps_of
from toy_training import ended, forked, with_files

import holdfast
from holdfast import Checkpointer
from holdfast.catalog.deleting.sweeps import execute, plan_sweep
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import SaveFailed, StorageError, StorageFull, StorageReadOnly, StorageUnavailable
from holdfast.saver import trying
from holdfast.storage import opening
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage
from holdfast.testing.faults import SYNCS, CountedFiles, Event, FailAt, Op

TOTAL, ARMED = 6, 3
"""The save of step 2 is undisturbed; from the end of step 3 on, events count: that of the save of step 4 is first."""

CLASSES = {
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EIO: StorageUnavailable,
    errno.EROFS: StorageReadOnly,
}


class Armed(FailAt):
    """`FailAt` that counts only from `arm` on."""

    armed = False

    def arm(self, step: int, ckpt: Checkpointer) -> None:
        self.armed = self.armed or step + 1 >= ARMED

    def around(self, event: Event, run: Callable) -> object:
        return super().around(event, run) if self.armed else run()


@contextmanager
def through(files: Files) -> Iterator[None]:
    """Local storages go through ``files``."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(opening, "LocalStorage", lambda root, **options: LocalStorage(root, files=files, **options))
        yield


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> tuple[Event, ...]:
    """The file events from the second save to the end of a training."""
    files = Armed(10**9, errno.EIO)
    with through(files):
        launched(tmp_path_factory.mktemp("counted") / "s", TOTAL, then=files.arm)
    return files.seen


def check_recovery(store: Path, saved: list[int], where: str) -> None:
    """What the next launch makes of it."""
    newest = max(saved, default=0)
    done = launched(store, TOTAL)
    assert done.steps[:1] == ([newest] if newest < TOTAL else []), where
    assert done.digest == expected()[TOTAL], where
    opened = holdfast.open(store)
    execute(opened, plan_sweep(opened, opened.run(1)), run=opened.run(1))
    execute(opened, plan_sweep(opened, None))
    opened.storage.sweep_unfinished()
    assert verify(opened, deep=True).ok, where
    assert not [path for path in store.rglob("*") if path.name.startswith(".tmp")], where
    assert not list((store / "catalog/runs/001/holds").glob("*")), where


def suffer(store: Path, files: Armed, code: int, where: str, **options: Any) -> bool:
    """A training on a disk that fails, in a process of its own; whether the failure reached the user.

    If not, it has ended well, and its last checkpoint is there.
    """

    def work() -> str:
        try:
            launched(store, TOTAL, then=files.arm, **options)
        except (StorageError, SaveFailed) as error:
            return f"{_complaint(error, code)}\n{error}"
        return "nothing\n"

    report = store.with_suffix(".report")
    assert ended(forked(with_files(files, work), report)) == 0, where
    wrong, _, said = report.read_text().partition("\n")
    assert wrong in ("", "nothing"), f"{where}: {wrong}: {said}"
    assert wrong == "" or steps_of(store)[-1] == TOTAL, f"{where}: it ended well, and its last checkpoint is not there"
    return wrong == ""


def _complaint(error: Exception, code: int) -> str:
    """What is wrong with an error that a user sees; nothing, if it has the right type and says where and what to do."""
    if isinstance(error, SaveFailed):
        return ""
    if not isinstance(error, CLASSES[code]) or error.errno != code:
        return f"a {type(error).__name__} with errno {error.errno}"
    return "" if "; " in str(error) and "/" in str(error) else "no path or no remedy"


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("code", CLASSES, ids=errno.errorcode.get)
def test_a_failing_file_event_costs_nothing_that_was_committed(
    tmp_path: Path, events: tuple[Event, ...], code: int, persistent: bool, stride: int
) -> None:
    """Users-ask 2, 11 and 14: full disk, quota, broken disk, read-only remount, at each event from a save to the end.

    Once: it is tried again, and a failed save is borne. For good: it ends a training that bears none.
    """
    failures = 0
    options = {"on_save_error": "raise"} if persistent else {}
    numbers = range(1 + (code + persistent) % stride, len(events) + 1, stride)
    for number in numbers:
        store, where = tmp_path / f"n{number}", f"event {number} of {len(events)}: {events[number - 1]}"
        failures += suffer(store, Armed(number, code, persistent=persistent), code, where, **options)
        check_recovery(store, steps_of(store), where)
    if persistent:
        assert failures >= len(numbers) // 4, "the faults did not reach the saves"
    else:
        assert failures <= len(numbers) // 4, "one fault is enough to end a training"
    print(f"\n{len(numbers)} of {len(events)} file events failed with {errno.errorcode[code]}, {failures} times told")


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_a_failed_sync_never_leaves_a_checkpoint_that_counts_on_it(
    tmp_path: Path, events: tuple[Event, ...], stride: int
) -> None:
    """The kernel forgets which pages a failed fsync has lost: the file is given up, not synced again."""
    syncs = sum(event.op in SYNCS for event in events)
    for number in range(1, syncs + 1, stride):
        store, where = tmp_path / f"y{number}", f"sync {number} of {syncs}"
        suffer(store, Armed(number, errno.EIO, ops=SYNCS), errno.EIO, where)
        check_recovery(store, steps_of(store), where)


def test_a_write_that_fails_ends_the_loop_at_that_very_step(tmp_path: Path) -> None:
    """The user's script hears of it at the step whose save failed, and not at the end (users-ask 11)."""
    seen: list[int] = []
    files = Armed(1, errno.ENOSPC, persistent=True, ops=frozenset({Op.WRITE}))

    def then(step: int, ckpt: Checkpointer) -> None:
        seen.append(step)
        files.arm(step, ckpt)

    with through(files), pytest.raises(StorageFull, match="free some space"):
        launched(tmp_path / "s", TOTAL, then=then, on_save_error="raise")
    assert seen == [0, 1, 2, 3]
    assert steps_of(tmp_path / "s") == [2]
    assert not list((tmp_path / "s").rglob(".tmp*")), "half-written files are removed where that still works"


def test_a_single_fault_is_really_there_where_saves_are_neither_tried_again_nor_borne(
    tmp_path: Path, events: tuple[Event, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The campaign above finds trainings that end well because of that, and not because nothing was hit."""
    monkeypatch.setattr(trying, "ATTEMPTS", 1)
    failures = 0
    numbers = range(1, len(events) + 1, 7)
    for number in numbers:
        store, where = tmp_path / f"n{number}", f"event {number} of {len(events)}: {events[number - 1]}"
        failures += suffer(store, Armed(number, errno.EIO), errno.EIO, where, on_save_error="raise")
    assert failures >= len(numbers) // 4, "the faults did not reach the saves"


def test_the_events_of_a_save_are_seen(events: tuple[Event, ...]) -> None:
    """The campaign above is worth something: it has writes, syncs, links and folders to break."""
    assert {event.op for event in events} >= {Op.CREATE, Op.WRITE, Op.SYNC, Op.LINK, Op.UNLINK, Op.SYNC_FOLDER}
    assert len(events) > 100
    assert issubclass(Armed, CountedFiles)


def in_own_mounts(work: Callable[[], object]) -> None:
    """``work`` in a child with a mount table of its own, which goes when the child does; skipped where not allowed."""
    import ctypes

    def run() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(0x00020000) != 0:  # CLONE_NEWNS
            raise SystemExit(77)
        if subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False).returncode:
            raise SystemExit(77)
        work()

    def guarded() -> None:
        try:
            run()
        except SystemExit as end:
            os._exit(int(end.code or 0))

    code = ended(forked(guarded))
    if code == 77:
        pytest.skip("this user may not mount anything")
    assert code == 0


def mounted(folder: Path, *options: str) -> None:
    """A tmpfs at ``folder``; the child ends where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(77)


def test_a_disk_that_is_really_full_ends_the_training_and_room_lets_it_go_on(tmp_path: Path) -> None:
    """Fault table: a tmpfs of 1 MB, filled by somebody else in the middle of the training."""

    def work() -> None:
        mounted(tmp_path / "disk", "-o", "size=1m")
        ballast, store = tmp_path / "disk/ballast", tmp_path / "disk/s"

        def then(step: int, ckpt: Checkpointer) -> None:
            if step == 2:
                fill(ballast)

        with pytest.raises(StorageFull):
            launched(store, TOTAL, then=then, on_save_error="raise")
        assert steps_of(store) == [2]
        with pytest.raises(StorageFull):  # a launch cannot even announce itself
            launched(store, TOTAL)
        ballast.unlink()
        check_recovery(store, [2], "after the disk was full")

    in_own_mounts(work)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        _write_for_ever(file)


def _write_for_ever(file: io.FileIO) -> None:
    while True:
        file.write(bytes(4096))


def ext4(image: Path, at: Path) -> str:
    """A disk that turns read-only after an error, as most do, mounted at ``at``; the name of its device."""
    if not image.exists():
        at.mkdir()
        with image.open("wb") as file:
            file.truncate(32 << 20)
        if subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True, check=False).returncode:
            raise SystemExit(77)
    words = ["mount", "-o", "loop,errors=remount-ro", str(image), str(at)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        raise SystemExit(77)
    found = subprocess.run(["findmnt", "-no", "SOURCE", str(at)], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip()).name


def test_a_mount_that_turns_read_only_ends_the_training_and_can_still_be_read(tmp_path: Path) -> None:
    """As ext4 does after an error: ``errors=remount-ro``. The kernel asks nobody who has a file open."""

    def work() -> None:
        disk = tmp_path / "disk"
        device = ext4(tmp_path / "image", disk)
        trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
        if not os.access(trigger, os.W_OK):
            raise SystemExit(77)

        def then(step: int, ckpt: Checkpointer) -> None:
            if step == 2:
                trigger.write_text("a test")

        with pytest.raises(StorageReadOnly, match="how it is mounted"):
            launched(disk / "s", TOTAL, then=then, on_save_error="raise")
        assert verify(holdfast.open(disk / "s"), deep=True).ok
        with pytest.raises(StorageReadOnly):
            launched(disk / "s", TOTAL)
        subprocess.run(["umount", str(disk)], check=True)
        ext4(tmp_path / "image", disk)
        check_recovery(disk / "s", [2], "after the disk was read-only")
        subprocess.run(["umount", str(disk)], check=True)

    in_own_mounts(work)


def test_a_mount_that_vanishes_ends_the_training_and_its_empty_place_is_no_fresh_start(tmp_path: Path) -> None:
    """Hazard 28: the folder under a missing mount is an empty local one."""

    def work() -> None:
        disk = tmp_path / "disk"
        mounted(disk)

        def then(step: int, ckpt: Checkpointer) -> None:
            if step == 2:
                subprocess.run(["umount", "-l", str(disk)], check=True)

        with pytest.raises(StorageUnavailable, match="mount"):
            launched(disk / "s", TOTAL, then=then, on_save_error="raise")
        assert list(disk.iterdir()) == [], "nothing may be written below the missing mount"

    in_own_mounts(work)
