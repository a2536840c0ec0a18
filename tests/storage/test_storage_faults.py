"""The faulty storage fails where it is told to, and only there."""

import errno

import pytest

from holdfast.errors import Corrupt, ObjectExists, StorageFull, StorageUnavailable
from holdfast.ids import ObjectName
from holdfast.storage.faults import CutRead, Fail, FaultyStorage, FlipBit, ListLag, LoseAnswer, When
from holdfast.storage.memory import memory_storage

A, B, C = (ObjectName(name) for name in ("x/a", "x/b", "y/c"))
DOWN = StorageUnavailable("no answer", errno=errno.ETIMEDOUT)


def outcomes(storage, names):
    found = []
    for name in names:
        try:
            storage.create(name, b"x")
            found.append("done")
        except StorageUnavailable:
            found.append("failed")
    return found


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (When(), ["failed", "done", "done"]),
        (When(at=2), ["done", "failed", "done"]),
        (When(at=2, times=None), ["done", "failed", "failed"]),
        (When(times=2), ["failed", "failed", "done"]),
        (When(prefix="y/"), ["done", "done", "failed"]),
        (When(verbs=frozenset({"read"})), ["done", "done", "done"]),
    ],
)
def test_failures_strike_when_told(when, expected):
    assert outcomes(FaultyStorage(memory_storage(), Fail(error=DOWN, when=when)), [A, B, C]) == expected


def test_a_failed_operation_is_not_done_and_a_lost_answer_is():
    """Hazards 1: whoever gets no answer must read back to know."""
    inner = memory_storage()
    with pytest.raises(StorageUnavailable):
        FaultyStorage(inner, Fail(error=DOWN)).create(A, b"mine")
    assert list(inner.list("")) == []
    storage = FaultyStorage(inner, LoseAnswer(error=DOWN))
    with pytest.raises(StorageUnavailable) as caught:
        storage.create(A, b"mine")
    assert caught.value.errno == errno.ETIMEDOUT
    with pytest.raises(ObjectExists):
        storage.create(A, b"mine")
    assert storage.read(A) == b"mine"


@pytest.mark.parametrize(("fault", "there"), [(Fail, False), (LoseAnswer, True)])
def test_commits_fail_and_lose_answers_too(fault, there):
    inner = memory_storage()
    storage = FaultyStorage(inner, fault(error=StorageFull("full"), when=When(verbs=frozenset({"commit"}))))
    with storage.sink(A, 0) as sink:
        sink.write(0, b"abc")
        with pytest.raises(StorageFull):
            sink.commit(3)
    assert [item.name for item in inner.list("")] == ([A] if there else [])


def test_one_bit_is_flipped_once_and_only_on_the_way():
    inner = memory_storage()
    inner.create(A, b"\x00\x00")
    storage = FaultyStorage(inner, FlipBit(bit=9))
    assert [storage.read(A), storage.read(A)] == [b"\x00\x02", b"\x00\x00"]
    storage = FaultyStorage(inner, FlipBit(bit=9, when=When(verbs=frozenset({"read_into"}))))
    into = bytearray(2)
    with storage.source(A) as source:
        source.read_into(0, memoryview(into))
    assert into == b"\x00\x02"
    assert inner.read(A) == b"\x00\x00"


def test_reads_are_cut():
    inner = memory_storage()
    inner.create(A, b"abcdef")
    assert FaultyStorage(inner, CutRead(missing=2)).read(A) == b"abcd"
    storage = FaultyStorage(inner, CutRead(when=When(verbs=frozenset({"read_into"}))))
    with storage.source(A) as source, pytest.raises(Corrupt, match="too early"):
        source.read_into(0, memoryview(bytearray(6)))


def test_new_objects_lag_in_listings_but_not_in_reads():
    storage = FaultyStorage(memory_storage(), ListLag(listings=2))
    storage.create(A, b"x")
    assert storage.read(A) == b"x"
    assert [len(list(storage.list("x/"))) for _ in range(3)] == [0, 0, 1]
    with storage.sink(C, 0) as sink:
        sink.commit(0)
    assert [len(list(storage.list("x/"))), len(list(storage.list("")))] == [1, 1]
