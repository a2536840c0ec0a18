"""Every legal state of the disk after a power cut, and the proof that each single sync is needed (hazards 12)."""

import pytest

from holdfast.errors import ObjectExists, ObjectMissing
from holdfast.ids import ObjectName
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage
from holdfast.testing.crashes import RecordingFiles, crash_states, materialise, without_sync
from holdfast.testing.faults import DropSync, FailAt, Op
from holdfast.testing.storage import pattern

SEED = 20_260_101

A, B, P = ObjectName("catalog/runs/a.json"), ObjectName("catalog/runs/b.json"), ObjectName("data/runs/p")
DATA = {str(A): pattern(5_000, 1), str(B): pattern(300, 2), str(P): pattern(30_000, 3)}


def create(storage, note):
    for name in (A, B):
        storage.create(name, DATA[name])
        note(f"+{name}")


def fill(storage, note):
    data = DATA[P]
    with storage.sink(P, 1 << 16) as sink:
        for start, end in [(20_000, 30_000), (0, 4096), (4096, 8192), (8192, 20_000)]:
            sink.write(start, data[start:end])
        sink.commit(len(data))
    note(f"+{P}")


def delete(storage, note):
    create(storage, note)
    fill(storage, note)
    for names in ([A], [P, B]):
        for name in names:
            note(f"~{name}")
        storage.delete(names)
        for name in names:
            note(f"-{name}")


WORKS = {"create": create, "sink": fill, "delete": delete}


def record(place, work, wrap=lambda files: files):
    place.mkdir()
    files = RecordingFiles(place)
    work(LocalStorage(place / "store", wrap(files)), files.trace.note)
    return files.trace


def objects(state):
    paths = {path.removeprefix("store/"): content for path, content in state.files.items()}
    return {path: content for path, content in paths.items() if not path.rpartition("/")[2].startswith(".")}


def violations(trace, limit=3000):
    """What is wrong in which state: acknowledged and gone, deleted and back, there and not whole."""
    found = []
    for state in crash_states(trace, seed=SEED, limit=limit):
        there = objects(state)
        created, deleting, deleted = ({note[1:] for note in state.notes if note[0] == mark} for mark in "+~-")
        wrong = [f"{name} is lost" for name in created - deleting - set(there)]
        wrong += [f"{name} is back" for name in deleted & set(there)]
        wrong += [f"{name} is torn" for name, content in there.items() if content != DATA[name]]
        found += [f"after step {state.position}, {what}: {state.story}" for what in wrong]
    return found


@pytest.mark.parametrize("work", WORKS)
def test_what_was_acknowledged_survives_every_power_cut(tmp_path, work):
    assert violations(record(tmp_path / "disk", WORKS[work])) == []


def test_without_links_too(tmp_path):
    def without_links(files):
        return FailAt(1, 1, persistent=True, ops=frozenset({Op.LINK}), inner=files)

    assert violations(record(tmp_path / "disk", create, without_links)) == []


def test_the_last_resort_tears_as_its_docstring_says(tmp_path):
    """Hazards 20 and 13: O_EXCL alone may tear what was not acknowledged; the seal judges."""

    def without_anything(files):
        files = FailAt(1, 1, persistent=True, ops=frozenset({Op.LINK}), inner=files)
        return FailAt(1, 22, persistent=True, ops=frozenset({Op.RENAME_NEW}), inner=files)

    found = violations(record(tmp_path / "disk", create, without_anything))
    assert found
    assert all(" is torn" in what for what in found)
    for state in crash_states(record(tmp_path / "again", create, without_anything), seed=SEED):
        assert all(objects(state)[name[1:]] == DATA[name[1:]] for name in state.notes)


def syncs(work):
    return {"create": 7, "sink": 5, "delete": 14}[work]


@pytest.mark.parametrize(("work", "number"), [(work, number) for work in WORKS for number in range(1, syncs(work) + 1)])
def test_each_single_sync_is_needed(tmp_path, work, number):
    """The deliberate break: files, folders and the chain of new folders; without any one of them something is lost."""
    trace = record(tmp_path / "disk", WORKS[work])
    assert trace.barriers == syncs(work)
    assert violations(without_sync(trace, number)) != []


def test_a_disk_that_lies_about_one_sync_is_found_out(tmp_path):
    """The same with a sync that is really not done."""
    trace = record(tmp_path / "disk", create, lambda files: DropSync(files, at=4))
    assert violations(trace) != []


def test_stores_reopen_and_go_on_after_every_power_cut(tmp_path):
    """Through the storage itself: left-overs are swept, and what is not there can be made."""
    trace = record(tmp_path / "disk", create)
    for number, state in enumerate(crash_states(trace, seed=SEED, limit=300)):
        place = tmp_path / f"{number}"
        materialise(state, place)
        storage = LocalStorage(place / "store")
        storage.sweep_unfinished()
        for name in (A, B):
            try:
                assert storage.read(name) == DATA[name], state.story
            except ObjectMissing:
                assert f"+{name}" not in state.notes, state.story
                storage.create(name, DATA[name])
        assert {item.name for item in storage.list("")} == {A, B}
        assert not list(place.rglob(".*"))


def test_folders_that_others_made_are_synced_too(tmp_path):
    """Another process may have made the folder an instant ago and not synced it."""
    (tmp_path / "store").mkdir()
    files = RecordingFiles(tmp_path)
    storage = LocalStorage(tmp_path / "store", files)
    files.make_folder(tmp_path / "store" / "catalog")
    files.make_folder(tmp_path / "store" / "catalog" / "runs")
    create(storage, files.trace.note)
    assert violations(files.trace) == []


def test_who_loses_a_name_finds_an_object_that_stays(tmp_path):
    """The winner is between giving the name and syncing the folder; the loser acts on what it reads."""
    (tmp_path / "store" / "catalog" / "runs").mkdir(parents=True)
    files = RecordingFiles(tmp_path)
    path = tmp_path / "store" / ".winner"
    descriptor = files.create(path)
    files.write(descriptor, memoryview(DATA[A]), 0)
    files.sync(descriptor)
    files.link(path, tmp_path / "store" / A)
    files.close(descriptor)
    with pytest.raises(ObjectExists):
        LocalStorage(tmp_path / "store", files).create(A, b"loser")
    files.trace.note(f"+{A}")
    assert violations(files.trace) == []


def test_the_real_filesystem_is_untouched_by_recording(tmp_path):
    assert issubclass(RecordingFiles, Files)
    record(tmp_path / "disk", delete)
    assert list(LocalStorage(tmp_path / "disk" / "store", create=False).list("")) == []
