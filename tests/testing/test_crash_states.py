"""The replayer's own rules, one by one: what may be lost, what may not (hazards 12)."""

import errno
import os

import pytest

from holdfast.testing.crashes import RecordingFiles, crash_states, materialise, without_sync
from holdfast.testing.faults import FailAt, Op

X, Y = b"x" * 1000, b"y" * 1000


@pytest.fixture
def disk(tmp_path):
    return tmp_path / "disk"


@pytest.fixture
def files(disk):
    disk.mkdir()
    files = RecordingFiles(disk)
    yield files
    for descriptor in files._open:
        os.close(descriptor)


def write(files, path, *pieces):
    descriptor = files.create(path)
    offset = 0
    for piece in pieces:
        offset += files.write(descriptor, memoryview(piece), offset)
    return descriptor


def last_states(files, limit=2000):
    """What may be there at the very end."""
    states = crash_states(files.trace, seed=1, limit=limit)
    found = [state.files for state in states if state.position == len(files.trace.steps)]
    return found or pytest.fail("the end was not visited")


def after(files, text="end"):
    """States in which the note is there: a note makes the end distinct from what came before."""
    files.trace.note(text)
    return last_states(files)


def contents(states, path):
    return {state.get(path) for state in states}


def test_nothing_is_lost_that_was_synced(disk, files):
    descriptor = write(files, disk / "a", X)
    files.sync(descriptor)
    files.sync_folder(disk)
    files.close(descriptor)
    assert after(files) == [{"a": X}]


def test_a_synced_file_may_lose_its_name(disk, files):
    files.sync(write(files, disk / "a", X))
    assert contents(after(files), "a") == {None, X}


def test_a_synced_name_may_lose_its_bytes(disk, files):
    """Missing, zeros, half: all three are what filesystems leave."""
    write(files, disk / "a", X)
    files.sync_folder(disk)
    assert contents(after(files), "a") == {X, b"", bytes(1000), X[:500] + bytes(500)}


def test_unsynced_writes_are_lost_one_by_one(disk, files):
    write(files, disk / "a", X, Y)
    files.sync_folder(disk)
    assert {X, X + Y, bytes(1000) + Y} <= contents(after(files), "a")


def test_a_sync_covers_only_what_came_before(disk, files):
    descriptor = write(files, disk / "a", X)
    files.sync(descriptor)
    files.sync_folder(disk)
    files.write(descriptor, memoryview(Y), 1000)
    found = contents(after(files), "a")
    assert {X, X + Y} <= found
    assert all(content.startswith(X) for content in found)


def test_a_folder_takes_all_below_it_along(disk, files):
    files.make_folder(disk / "d")
    files.sync(write(files, disk / "d" / "a", X))
    files.sync_folder(disk / "d")
    assert contents(after(files), "d/a") == {None, X}
    files.sync_folder(disk)
    assert after(files, "later") == [{"d/a": X}]


def test_links_and_unlinks_are_lost_independently(disk, files):
    files.sync(write(files, disk / "a", X))
    files.sync_folder(disk)
    files.link(disk / "a", disk / "b")
    files.unlink(disk / "a")
    assert sorted(map(sorted, after(files))) == [[], ["a"], ["a", "b"], ["b"]]


def test_a_rename_is_one_change(disk, files):
    files.sync(write(files, disk / "a", X))
    files.sync_folder(disk)
    files.rename_new(disk / "a", disk / "b")
    assert sorted(map(sorted, after(files))) == [["a"], ["b"]]


def test_reserved_and_cut_lengths_are_lost_too(disk, files):
    descriptor = files.create(disk / "a")
    files.sync_folder(disk)
    files.reserve(descriptor, 10)
    files.truncate(descriptor, 4)
    assert contents(after(files), "a") == {b"", bytes(4), bytes(10)}


def test_what_was_there_before_is_durable(disk):
    (disk / "d").mkdir(parents=True)
    (disk / "d" / "a").write_bytes(X)
    files = RecordingFiles(disk)
    write(files, disk / "b", Y)
    files.unlink(disk / "d" / "a")
    found = after(files)
    assert contents(found, "d/a") == {None, X}
    assert Y in contents(found, "b")


def test_what_failed_is_not_recorded(disk):
    disk.mkdir()
    files = RecordingFiles(disk, FailAt(1, errno.EIO, persistent=True, ops=frozenset({Op.SYNC, Op.UNLINK})))
    descriptor = write(files, disk / "a", X)
    files.sync_folder(disk)
    with pytest.raises(OSError, match="Input/output error"):
        files.sync(descriptor)
    with pytest.raises(OSError, match="Input/output error"):
        files.unlink(disk / "a")
    assert files.trace.barriers == 1
    assert contents(after(files), "a") >= {b"", X}


def test_equal_states_come_once_and_seeds_repeat(disk, files):
    for name in "abcdefghijklmnop":
        write(files, disk / name, X, Y)
    files.trace.note("end")
    found = [[state.story for state in crash_states(files.trace, seed=seed, limit=500)] for seed in (7, 7, 8)]
    assert found[0] == found[1] != found[2]
    states = list(crash_states(files.trace, seed=7, limit=500))
    keys = {(tuple(sorted(state.files.items())), state.notes) for state in states}
    assert len(keys) == len(states) <= 500


@pytest.mark.parametrize("limit", [8, 100, 1000])
def test_long_traces_are_sampled_within_the_limit_and_to_their_end(disk, files, limit):
    for number in range(60):
        write(files, disk / f"{number}", X)
        files.trace.note(f"{number}")
    states = list(crash_states(files.trace, seed=3, limit=limit))
    assert len(states) <= limit
    assert max(state.position for state in states) == len(files.trace.steps)


def test_states_become_folders(disk, files, tmp_path):
    files.make_folder(disk / "d")
    files.make_folder(disk / "d" / "e")
    for path in ("d/e/a", "b"):
        files.sync(write(files, disk / path, X))
    for folder in ("", "d", "d/e"):
        files.sync_folder(disk / folder)
    files.trace.note("end")
    (state,) = (state for state in crash_states(files.trace, seed=1) if state.notes)
    materialise(state, tmp_path / "copy")
    assert {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")} == {
        "d",
        "d/e",
        "d/e/a",
        "b",
    }
    assert (tmp_path / "copy" / "d/e/a").read_bytes() == X


def test_a_trace_can_lose_any_one_of_its_syncs(disk, files):
    files.sync(write(files, disk / "a", X))
    files.sync_folder(disk)
    files.trace.note("end")
    assert files.trace.barriers == 2
    for number, lost in ((1, b""), (2, None)):
        trace = without_sync(files.trace, number)
        assert trace.barriers == 1
        assert lost in {state.files.get("a") for state in crash_states(trace, seed=1) if state.notes}
    with pytest.raises(IndexError):
        without_sync(files.trace, 3)
