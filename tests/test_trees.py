"""Manifests and skeletons that match their digest but make no sense: damage with a name, found at once."""

from __future__ import annotations

import random

import msgspec
import pytest

from holdfast.boxes import SEGMENT_BYTES
from holdfast.catalog.manifests import read_manifest, read_reach
from holdfast.catalog.store import create_store
from holdfast.catalog.verifying.trees import SkeletonFacts, check_tree
from holdfast.errors import Corrupt
from holdfast.ids import Digest, ObjectName
from holdfast.storage.memory import memory_storage
from holdfast.trees import MAGIC, Head, Lifetime, Page, Skeleton, TensorSpec, segment_count, segments

EMPTY = bytes(Digest.of(b""))
VALUES = bytes(Digest.of(b"{}"))


@pytest.fixture
def run():
    return create_store(memory_storage()).create_run("x")


def tensor(*shape: int, **fields) -> TensorSpec:
    return TensorSpec("a", "uint8", shape, Lifetime.PARAMETER, **fields)


def put(run, digest: Digest, data: bytes) -> ObjectName:
    name = ObjectName(f"catalog/runs/001/trees/{digest}")
    run.store.storage.create(name, data)
    return name


def put_manifest(run, body: bytes = b"{}", **fields) -> tuple[ObjectName, Digest]:
    parts = {"skeleton": bytes(32), "values": Page(0, 2, VALUES), "inline": Page(2, 0, EMPTY)}
    parts |= {"own": (), "pages": (), "parts": ()} | fields
    head = msgspec.msgpack.encode(Head(**parts))
    digest = Digest.of(head)
    return put(run, digest, MAGIC + len(head).to_bytes(8, "little") + head + body), digest


@pytest.mark.parametrize(
    "spec", [tensor(-1, -9000), tensor(2, -1), tensor(3000, dim_order=(1,)), tensor(50, 60, dim_order=(0, 0))]
)
def test_a_tensor_that_cannot_be_is_damage(run, spec):
    data = Skeleton((spec,)).encode()
    with pytest.raises(Corrupt, match="is malformed"):
        check_tree(run.store, put(run, Digest.of(data), data))


def test_a_shape_beyond_all_measure_costs_no_time(run):
    """Segments are counted, not made, until it is known that there are as many digests."""
    data = Skeleton((tensor(2**60),)).encode()
    facts = check_tree(run.store, put(run, Digest.of(data), data))
    assert facts == SkeletonFacts(segments=(2**60 // SEGMENT_BYTES,), inline=0)


def test_segments_are_counted_as_they_are_cut():
    numbers = random.Random(4)
    shapes = [(), (0,), (1024,), (1025,), (SEGMENT_BYTES,), (SEGMENT_BYTES + 1,), (3, SEGMENT_BYTES - 1)]
    shapes += [(2, SEGMENT_BYTES + 1), (1, 3 * SEGMENT_BYTES), (5, SEGMENT_BYTES // 2), (7, 0, 9)]
    shapes += [(numbers.randrange(1, 40), numbers.randrange(1, 3 * SEGMENT_BYTES)) for _ in range(20)]
    for spec in (tensor(*shape) for shape in shapes):
        assert segment_count(spec) == len(list(segments(spec))), spec.shape


@pytest.mark.parametrize(
    "fields",
    [
        {"skeleton": bytes(5)},
        {"values": Page(0, 2, VALUES[:31])},
        {"inline": Page(-2, 0, EMPTY)},
        {"inline": Page(2, -1, EMPTY)},
        {"own": (Page(2, 31, VALUES),), "parts": (1,), "pages": (Page(2, 31, bytes(Digest.of(bytes(31)))),)},
        {"parts": (1,)},
        {"own": (Page(2, 0, EMPTY),)},
        {"own": (Page(2, 0, EMPTY),), "parts": (-1,)},
    ],
    ids=str,
)
def test_a_head_that_cannot_be_is_damage_to_every_reader(run, fields):
    name, digest = put_manifest(run, b"{}" + bytes(31), **fields)
    for read in (
        lambda: check_tree(run.store, name),
        lambda: read_reach(run, digest),
        lambda: read_manifest(run, digest),
    ):
        with pytest.raises(Corrupt, match=name):
            read()


def test_values_that_are_nested_without_end_are_damage(run):
    deep = b"[" * 200_000 + b"]" * 200_000
    page = Page(0, len(deep), bytes(Digest.of(deep)))
    name, _ = put_manifest(run, deep, values=page, inline=Page(len(deep), 0, EMPTY))
    with pytest.raises(Corrupt, match="values are malformed"):
        check_tree(run.store, name)
