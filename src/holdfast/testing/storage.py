"""What every storage must keep to: subclass `StorageContract` in a test module, and pytest runs it.

Three hooks say how to make a storage and how to reach its raw bytes *without*
the storage's own methods, so that a storage cannot vouch for itself::

    class TestMine(StorageContract):
        @pytest.fixture
        def storage(self, tmp_path):
            return LocalStorage(tmp_path / "store")

        def raw(self, storage, name):
            path = Path(storage.url) / name
            return path.read_bytes() if path.exists() else None

        def put_raw(self, storage, name, data):
            path = Path(storage.url) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
"""

# ruff: noqa: D102 -- the names of the tests are sentences
from __future__ import annotations

import itertools
import multiprocessing
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from holdfast.errors import Corrupt, InvalidInput, InvalidName, ObjectExists, ObjectMissing
from holdfast.ids import ObjectName
from holdfast.storage.opening import open_storage
from holdfast.storage.protocol import Storage

ODD_SIZES = (0, 1, 511, 512, 4095, 4096, 4097, (1 << 20) + 1, (8 << 20) + 3)
"""Sizes around the blocks of disks, pages and segments."""

BAD_NAMES = ("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", ".tmp-1", "a/.b", "A", "a b", "a\\b", "a\n", "é")
"""Names that no storage may take."""

_A = ObjectName("catalog/a.json")


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that differ at every offset that a bug could confuse, and between seeds.

    Example:
        >>> len(pattern(5)), pattern(8, 1) == pattern(8, 2)
        (5, False)
    """
    words = length // 8 + 1
    return b"".join((word * 0x9E3779B97F4A7C15 + seed & (1 << 64) - 1).to_bytes(8, "little") for word in range(words))[
        :length
    ]


class StorageContract:
    """The promises of `holdfast.storage.protocol.Storage`, one test each."""

    threads = 8
    processes = 3

    @abstractmethod
    def raw(self, storage: Any, name: str) -> bytes | None:
        """The bytes of an object, read without the storage; None if there is none."""

    @abstractmethod
    def put_raw(self, storage: Any, name: str, data: bytes) -> None:
        """Put an object there without the storage; folders are made as needed."""

    def url_elsewhere(self, storage: Storage) -> str | None:
        """By which URL another process reaches the same storage; None if it cannot."""
        return None

    @pytest.fixture
    def storage(self) -> Storage:
        """A new, empty storage; every subclass has its own."""
        raise TypeError("a subclass of StorageContract has a fixture called storage")

    def test_is_a_storage(self, storage: Storage) -> None:
        assert isinstance(storage, Storage)
        assert storage.url

    @pytest.mark.parametrize("size", ODD_SIZES)
    def test_create_puts_exactly_these_bytes(self, storage: Storage, size: int) -> None:
        data = pattern(size)
        storage.create(_A, data)
        assert self.raw(storage, _A) == data
        assert storage.read(_A) == data
        assert storage.size(_A) == size

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_create_takes_every_buffer(self, storage: Storage, kind: Callable[[bytes], Any]) -> None:
        storage.create(_A, kind(b"abc"))
        assert self.raw(storage, _A) == b"abc"

    def test_create_loses_to_what_is_there(self, storage: Storage) -> None:
        storage.create(_A, b"old")
        with pytest.raises(ObjectExists, match=r"catalog/a\.json"):
            storage.create(_A, b"new, longer")
        assert self.raw(storage, _A) == b"old"

    def test_create_loses_to_what_others_put(self, storage: Storage) -> None:
        self.put_raw(storage, _A, b"theirs")
        with pytest.raises(ObjectExists):
            storage.create(_A, b"mine")
        assert storage.read(_A) == b"theirs"

    def test_create_has_one_winner_among_threads(self, storage: Storage) -> None:
        names = [ObjectName(f"race/{number}") for number in range(20)]
        start = threading.Barrier(self.threads)

        def run(who: int) -> list[str]:
            start.wait(60)
            return _win(storage, names, who)

        with ThreadPoolExecutor(self.threads) as pool:
            won = list(pool.map(run, range(self.threads)))
        self._check_race(storage, names, won)

    def test_create_has_one_winner_among_processes(self, storage: Storage) -> None:
        url = self.url_elsewhere(storage)
        if url is None:
            pytest.skip("no other process can reach this storage")
        names = [f"race/{number}" for number in range(20)]
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager, context.Pool(self.processes) as pool:
            start = manager.Barrier(self.processes)
            won = pool.starmap(_win_elsewhere, [(url, names, who, start) for who in range(self.processes)], chunksize=1)
        self._check_race(storage, names, won)

    def test_read_and_size_miss_what_is_not_there(self, storage: Storage) -> None:
        storage.create(ObjectName("catalog/b.json"), b"")
        for name in (_A, ObjectName("catalog"), ObjectName("catalog/b.json/c")):
            for look in (storage.read, storage.size, storage.source):
                with pytest.raises(ObjectMissing):
                    look(name)

    @pytest.mark.parametrize("text", BAD_NAMES)
    def test_bad_names_are_refused(self, storage: Storage, text: str) -> None:
        calls: list[Callable[[Any], object]] = [
            lambda name: storage.create(name, b""),
            storage.read,
            storage.size,
            lambda name: storage.delete([name]),
            lambda name: storage.sink(name, 0),
            storage.source,
        ]
        for call in calls:
            with pytest.raises(InvalidName):
                call(text)
        assert list(storage.list("")) == []

    @pytest.mark.parametrize("prefix", ["catalog", "/", "../", "Catalog/", "a//"])
    def test_only_folders_are_listed(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(InvalidName):
            storage.list(prefix)

    def test_list_is_recursive_and_sorted_as_text(self, storage: Storage) -> None:
        names = sorted(["a", "b/c", "b/c.d", "b-c", "b.c", "b/c-d/e", "b/c0", "b/a/z/y/x", "b0", "bb/c", "0"])
        for name in reversed(names):
            storage.create(ObjectName(name), name.encode())
        assert [(item.name, item.size) for item in storage.list("")] == [(name, len(name)) for name in names]

    def test_list_stays_below_its_prefix(self, storage: Storage) -> None:
        for name in ("b/c", "b/d/e", "bb/c", "a"):
            storage.create(ObjectName(name), b"")
        assert [item.name for item in storage.list("b/")] == ["b/c", "b/d/e"]
        assert list(storage.list("c/")) == []
        assert list(storage.list("a/")) == []

    def test_list_gives_object_names(self, storage: Storage) -> None:
        self.put_raw(storage, _A, b"abc")
        assert [(type(item.name), item) for item in storage.list("")] == [(ObjectName, (_A, 3))]

    def test_delete_removes_and_is_idempotent(self, storage: Storage) -> None:
        other = ObjectName("data/b")
        for name in (_A, other):
            storage.create(name, b"x")
        storage.delete([_A, ObjectName("never/was")])
        storage.delete([_A])
        storage.delete([])
        assert self.raw(storage, _A) is None
        assert [item.name for item in storage.list("")] == [other]

    def test_a_deleted_name_can_be_created_again(self, storage: Storage) -> None:
        storage.create(_A, b"first")
        storage.delete([_A])
        storage.create(_A, b"second")
        assert self.raw(storage, _A) == b"second"

    def test_folders_are_no_objects(self, storage: Storage) -> None:
        storage.create(_A, b"x")
        storage.delete([ObjectName("catalog")])
        assert self.raw(storage, _A) == b"x"

    @pytest.mark.parametrize("size", ODD_SIZES)
    @pytest.mark.parametrize("reserved", [False, True])
    def test_sink_commits_exactly_these_bytes(self, storage: Storage, size: int, reserved: bool) -> None:
        data = pattern(size)
        with storage.sink(_A, 2 * size if reserved else 0) as sink:
            sink.write(0, data)
            sink.commit(size)
        assert self.raw(storage, _A) == data
        with storage.source(_A) as source:
            assert source.size == size
            assert _fetch(source, 0, size) == data

    def test_sink_is_invisible_until_committed(self, storage: Storage) -> None:
        with storage.sink(_A, 8192) as sink:
            sink.write(0, pattern(8192))
            assert list(storage.list("")) == []
            assert self.raw(storage, _A) is None
            with pytest.raises(ObjectMissing):
                storage.read(_A)
            sink.commit(8192)
        assert [item.name for item in storage.list("")] == [_A]

    def test_sink_cuts_to_the_committed_length(self, storage: Storage) -> None:
        with storage.sink(_A, 1 << 20) as sink:
            sink.write(0, pattern(10_000))
            sink.commit(5_000)
        assert self.raw(storage, _A) == pattern(10_000)[:5_000]

    def test_sink_does_not_invent_bytes(self, storage: Storage) -> None:
        with storage.sink(_A, 1 << 20) as sink:
            sink.write(0, b"abc")
            with pytest.raises(InvalidInput, match="only 3 were written"):
                sink.commit(4)
        assert self.raw(storage, _A) is None

    def test_sink_leaves_nothing_behind_when_aborted(self, storage: Storage) -> None:
        with storage.sink(_A, 0) as sink:
            sink.write(0, b"abc")
            sink.abort()
            sink.abort()
        with pytest.raises(InvalidInput), storage.sink(_A, 0) as sink:
            sink.commit(1)
        assert list(storage.list("")) == []
        assert storage.sweep_unfinished() == 0
        storage.create(_A, b"free")

    def test_sink_is_over_after_commit_and_abort(self, storage: Storage) -> None:
        sink = storage.sink(_A, 0)
        sink.write(0, b"abc")
        sink.commit(3)
        sink.abort()
        assert self.raw(storage, _A) == b"abc"
        with pytest.raises(InvalidInput):
            sink.write(0, b"x")
        with pytest.raises(InvalidInput):
            sink.commit(3)

    def test_sink_loses_to_what_is_there(self, storage: Storage) -> None:
        with storage.sink(_A, 0) as sink:
            sink.write(0, b"mine")
            self.put_raw(storage, _A, b"theirs")
            with pytest.raises(ObjectExists):
                sink.commit(4)
        assert self.raw(storage, _A) == b"theirs"
        assert storage.sweep_unfinished() == 0

    def test_sinks_of_one_name_have_one_winner(self, storage: Storage) -> None:
        start = threading.Barrier(self.threads)

        def run(who: int) -> bool:
            with storage.sink(_A, 0) as sink:
                sink.write(0, pattern(10_000, who))
                start.wait(60)
                try:
                    sink.commit(10_000)
                except ObjectExists:
                    return False
            return True

        with ThreadPoolExecutor(self.threads) as pool:
            won = list(pool.map(run, range(self.threads)))
        assert won.count(True) == 1
        assert self.raw(storage, _A) == pattern(10_000, won.index(True))

    def test_sink_takes_odd_pieces_from_many_threads(self, storage: Storage) -> None:
        data = pattern(1_500_000)
        edges = [0, 1, 4095, 4096, 4097, 8192, 20_000, 24_576, 300_001, 1_000_000, 1_048_576, 1_400_000, len(data)]
        pieces = list(itertools.pairwise(edges))
        with storage.sink(_A, len(data)) as sink, ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(lambda piece: sink.write(piece[0], data[piece[0] : piece[1]]), reversed(pieces)))
            sink.commit(len(data))
        assert self.raw(storage, _A) == data

    def test_source_reads_odd_pieces_from_many_threads(self, storage: Storage) -> None:
        data = pattern(1_500_000)
        self.put_raw(storage, _A, data)
        pieces = [(0, 1), (1, 4095), (4095, 2), (4096, 8192), (5000, 1_000_000), (1_499_999, 1), (0, len(data)), (7, 0)]
        with storage.source(_A) as source, ThreadPoolExecutor(self.threads) as pool:
            found = list(pool.map(lambda piece: _fetch(source, *piece), pieces))
        assert found == [data[offset : offset + length] for offset, length in pieces]

    @pytest.mark.parametrize(("offset", "length"), [(0, 10_001), (10_000, 1), (9_999, 2), (20_000, 1), (0, 1 << 20)])
    def test_source_finds_a_cut_object(self, storage: Storage, offset: int, length: int) -> None:
        self.put_raw(storage, _A, pattern(10_000))
        with storage.source(_A) as source, pytest.raises(Corrupt, match=r"a\.json"):
            source.read_into(offset, memoryview(bytearray(length)))

    def test_source_is_over_after_close(self, storage: Storage) -> None:
        self.put_raw(storage, _A, b"abc")
        source = storage.source(_A)
        source.close()
        source.close()
        with pytest.raises(InvalidInput):
            source.read_into(0, memoryview(bytearray(1)))

    def test_alignment_is_a_power_of_two(self, storage: Storage) -> None:
        with storage.sink(_A, 0) as sink:
            sink.write(0, b"abc")
            found = [sink.alignment]
            sink.commit(3)
        with storage.source(_A) as source:
            found.append(source.alignment)
        assert all(alignment > 0 and alignment & (alignment - 1) == 0 for alignment in found)

    def test_sweep_never_touches_a_living_writer(self, storage: Storage) -> None:
        storage.create(ObjectName("b"), b"x")
        with storage.sink(_A, 8192) as sink:
            sink.write(0, pattern(8192))
            assert (storage.unfinished(), storage.sweep_unfinished()) == (0, 0)
            sink.commit(8192)
        assert storage.sweep_unfinished() == 0
        assert self.raw(storage, _A) == pattern(8192)

    def _check_race(self, storage: Storage, names: Iterable[str], won: Sequence[Sequence[str]]) -> None:
        for name in names:
            winners = [who for who, names_won in enumerate(won) if name in names_won]
            assert len(winners) == 1, f"{name} was won by {winners}"
            assert self.raw(storage, name) == _token(winners[0])
        assert len(list(storage.list(""))) == len(list(names))


def _token(who: int) -> bytes:
    return pattern(1_000 + who, who)


def _win(storage: Storage, names: Iterable[ObjectName], who: int) -> list[str]:
    won = []
    for name in names:
        try:
            storage.create(name, _token(who))
        except ObjectExists:
            # Whoever lost may read the winner's object at once, and whole.
            assert storage.read(name) in [_token(other) for other in range(100)]
        else:
            won.append(str(name))
    return won


def _win_elsewhere(url: str, names: list[str], who: int, start: threading.Barrier) -> list[str]:
    storage = open_storage(url, create=False)
    start.wait(60)
    return _win(storage, [ObjectName(name) for name in names], who)


def _fetch(source: Any, offset: int, length: int) -> bytes:
    into = bytearray(length)
    source.read_into(offset, memoryview(into))
    return bytes(into)
