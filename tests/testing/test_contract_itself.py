"""The contract finds storages that break it; a suite that cannot fail proves nothing."""

import pytest

from holdfast.errors import ObjectExists, StorageError
from holdfast.ids import ObjectName
from holdfast.storage.local import LocalStorage
from holdfast.testing.storage import StorageContract, pattern


class Contract(StorageContract):
    def raw(self, storage, name):
        path = storage._root / name
        return path.read_bytes() if path.exists() else None

    def put_raw(self, storage, name, data):
        path = storage._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Overwrites(LocalStorage):
    def create(self, name, data):
        self.delete([name])
        super().create(name, data)


class ChecksThenActs(LocalStorage):
    def create(self, name, data):
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise ObjectExists("exists")
        path.write_bytes(bytes(data))


class ListsUnsorted(LocalStorage):
    def list(self, prefix):
        return iter(sorted(super().list(prefix), reverse=True))


class ListsByParts(LocalStorage):
    """Sorted folder by folder, which differs from sorted text where names have dots or dashes."""

    def list(self, prefix):
        return iter(sorted(super().list(prefix), key=lambda item: item.name.split("/")))


class ForgetsTheCut(LocalStorage):
    def sink(self, name, reserve):
        sink = super().sink(name, reserve)
        sink._set_length = lambda length: None
        return sink


class SweepsTheLiving(LocalStorage):
    def sweep_unfinished(self):
        found = list(self._root.rglob(".tmp-*"))
        for path in found:
            path.unlink()
        return len(found)


class WritesInPlace(LocalStorage):
    def sink(self, name, reserve):
        sink = super().sink(name, reserve)
        (self._root / name).write_bytes(b"")
        return sink


BROKEN = [
    (Overwrites, "test_create_loses_to_what_is_there", ()),
    (ChecksThenActs, "test_create_has_one_winner_among_threads", ()),
    (ListsUnsorted, "test_list_is_recursive_and_sorted_as_text", ()),
    (ListsByParts, "test_list_is_recursive_and_sorted_as_text", ()),
    (ForgetsTheCut, "test_sink_cuts_to_the_committed_length", ()),
    (ForgetsTheCut, "test_sink_commits_exactly_these_bytes", (4097, True)),
    (SweepsTheLiving, "test_sweep_never_touches_a_living_writer", ()),
    (WritesInPlace, "test_sink_is_invisible_until_committed", ()),
]


@pytest.mark.parametrize(("broken", "test", "arguments"), BROKEN)
def test_a_broken_storage_is_found(tmp_path, broken, test, arguments):
    with pytest.raises((AssertionError, StorageError, pytest.fail.Exception)):
        run_often(getattr(Contract(), test), lambda number: broken(tmp_path / f"{number}"), arguments)


def run_often(test, make, arguments):
    """A race shows sooner or later."""
    for number in range(20):
        test(make(number), *arguments)


def test_patterns_differ_at_every_offset_and_seed():
    assert len({pattern(4096)[start : start + 16] for start in range(4000)}) == 4000
    assert pattern(100, 1) != pattern(100, 2)
    assert ObjectName("a") == "a"
