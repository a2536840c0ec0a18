import pytest

from holdfast.errors import ObjectExists, ObjectMissing
from holdfast.ids import ObjectName
from holdfast.storage.memory import memory_storage
from holdfast.storage.tracing import Operation, TracingStorage

A = ObjectName("a")


def told(storage):
    return [(o.verb, o.name, o.size, o.failed) for o in storage.operations]


def test_every_operation_is_noted_in_order():
    storage = TracingStorage(memory_storage())
    with storage.sink(A, 10) as sink:
        sink.write(0, b"abc")
        sink.commit(3)
    with storage.source(A) as source:
        source.read_into(0, memoryview(bytearray(2)))
    storage.read(A)
    storage.size(A)
    storage.list("")
    storage.delete([A])
    storage.sweep_unfinished()
    assert told(storage) == [
        ("sink", "a", 10, None),
        ("write", "a", 3, None),
        ("commit", "a", 3, None),
        ("source", "a", 0, None),
        ("read_into", "a", 2, None),
        ("read", "a", 0, None),
        ("size", "a", 0, None),
        ("list", "", 0, None),
        ("delete", "a", 0, None),
        ("sweep_unfinished", "", 0, None),
    ]


def test_failures_are_noted_by_their_kind():
    storage = TracingStorage(memory_storage())
    storage.create(A, b"x")
    with pytest.raises(ObjectExists):
        storage.create(A, b"yy")
    with pytest.raises(ObjectMissing):
        storage.read(ObjectName("b"))
    assert [o.failed for o in storage.operations] == [None, "object-exists", "object-missing"]
    storage.clear()
    assert storage.operations == ()
    storage.size(A)
    assert storage.operations == (Operation(verb="size", name="a"),)
