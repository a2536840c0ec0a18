"""Every storage keeps the contract, on every filesystem that is at hand."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from holdfast.storage.faults import FaultyStorage
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage
from holdfast.storage.memory import memory_storage
from holdfast.storage.tracing import TracingStorage
from holdfast.testing.faults import FailAt, Op, ShortWrites
from holdfast.testing.storage import StorageContract


class LocalContract(StorageContract):
    def raw(self, storage, name):
        path = Path(storage.url) / name
        return path.read_bytes() if path.exists() else None

    def put_raw(self, storage, name, data):
        path = Path(storage.url) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def url_elsewhere(self, storage):
        return storage.url


class FaultyContract(LocalContract):
    """Other processes open the directory without the fault, so their race is that of `TestOnDisk`."""

    test_create_has_one_winner_among_processes = None


class TestOnDisk(LocalContract):
    @pytest.fixture
    def storage(self, tmp_path):
        return LocalStorage(tmp_path / "store")


class TestOnMemoryDisk(LocalContract):
    @pytest.fixture
    def storage(self):
        if not os.path.isdir("/dev/shm"):
            pytest.skip("no memory disk here")
        folder = tempfile.mkdtemp(dir="/dev/shm", prefix="holdfast-test-")
        yield LocalStorage(Path(folder))
        shutil.rmtree(folder)


class TestInMemory(StorageContract):
    test_create_has_one_winner_among_processes = None  # no other process can reach it

    @pytest.fixture
    def storage(self):
        return memory_storage()

    def raw(self, storage, name):
        try:
            return bytes(storage._store.get(name).bytes())
        except FileNotFoundError:
            return None

    def put_raw(self, storage, name, data):
        storage._store.put(name, data)


def without_links(code):
    return FailAt(1, code, persistent=True, ops=frozenset({Op.LINK}))


def without_links_and_renames():
    return FailAt(1, errno.EINVAL, persistent=True, ops=frozenset({Op.RENAME_NEW}), inner=without_links(errno.EPERM))


class TestWithoutHardLinks(FaultyContract):
    """Hazards 20: exFAT, FUSE, SMB."""

    @pytest.fixture
    def storage(self, fast_disk):
        return LocalStorage(fast_disk / "store", without_links(errno.EPERM))


class TestWithoutAtomicNames(FaultyContract):
    """Hazards 20: neither links nor renames without replacement; O_EXCL is left."""

    # Here a loser may see the winner's object before it is whole; its seal tells.
    test_create_has_one_winner_among_threads = None

    @pytest.fixture
    def storage(self, fast_disk):
        return LocalStorage(fast_disk / "store", without_links_and_renames())


class WithoutDirect(Files):
    def open_direct(self, path):
        raise OSError(errno.EINVAL, "Invalid argument")


class TestWithoutDirectIO(FaultyContract):
    """Hazards 41: the fallback is per file."""

    @pytest.fixture
    def storage(self, fast_disk):
        return LocalStorage(fast_disk / "store", ShortWrites(1_000_001, WithoutDirect()))


class TestTraced(TestInMemory):
    @pytest.fixture
    def storage(self):
        return TracingStorage(memory_storage())

    def raw(self, storage, name):
        return super().raw(storage._inner, name)

    def put_raw(self, storage, name, data):
        super().put_raw(storage._inner, name, data)


class TestFaultyWithoutFaults(TestTraced):
    @pytest.fixture
    def storage(self):
        return FaultyStorage(memory_storage())
