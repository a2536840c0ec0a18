"""Manifests and skeletons: written once, verified at every read, healed where they are damaged."""

from __future__ import annotations

import errno
import time

import pytest
from holds_kit import SKELETON

from holdfast.catalog import layout
from holdfast.catalog.manifests import (
    encode_trees,
    manifest_of,
    put_tree,
    read_manifest,
    read_reach,
    read_skeleton,
    write_manifest,
)
from holdfast.catalog.objects import exists
from holdfast.errors import Corrupt, Damaged, Missing, ObjectExists, StorageError
from holdfast.ids import Digest
from holdfast.trees import PAGE_SEGMENTS, Lifetime, Skeleton, TensorSpec

DIGESTS = [Digest.of(bytes([number])) for number in range(5)]


@pytest.fixture
def run(store):
    return store.create_run("gpt2")


def write(run, **changes) -> Digest:
    parts = {"skeleton": SKELETON, "values": b"{}", "inline": b"small", "digests": DIGESTS, **changes}
    return write_manifest(run, **parts)


def trees(run) -> list[str]:
    return [listed.name for listed in run.store.storage.list(layout.trees_folder(run.number))]


def test_a_manifest_comes_back_as_it_was_written(run):
    manifest = read_manifest(run, write(run))
    assert manifest.skeleton == SKELETON
    assert (manifest.values, manifest.inline) == (b"{}", b"small")
    assert manifest.segment_digests() == DIGESTS


def test_many_segments_take_several_pages(run):
    digests = [Digest.of(number.to_bytes(4, "little")) for number in range(PAGE_SEGMENTS + 1)]
    assert read_manifest(run, write(run, digests=digests)).segment_digests() == digests


def test_the_skeleton_is_stored_once(run):
    """Hazards 34: it is the same from save to save, so only the digests are written anew."""
    write(run)
    write(run, values=b'{"step": 2}')
    assert len(trees(run)) == 3


def test_equal_states_have_one_manifest(run):
    assert write(run) == write(run)
    assert len(trees(run)) == 2


def test_the_reach_is_known_without_the_skeleton(run):
    digest = write(run)
    skeleton = Digest.of(SKELETON.encode())
    run.store.storage.delete([layout.tree(run.number, skeleton)])
    reach = read_reach(run, digest)
    assert (reach.skeleton, reach.digests) == (skeleton, b"".join(DIGESTS))
    with pytest.raises(Missing, match="a record of run-001 names it"):
        read_manifest(run, digest)


@pytest.mark.parametrize("which", [0, 1], ids=["skeleton", "manifest"])
def test_every_flipped_bit_and_every_truncation_is_found(run, which):
    digest = write(run)
    name, data = encode_trees(run, manifest_of(SKELETON, b"{}", b"small", DIGESTS)).objects[which]
    for at in range(len(data)):
        for broken in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:at]):
            run.store.storage.delete([name])
            run.store.storage.create(name, broken)
            with pytest.raises(Damaged):
                read_manifest(run, digest)


def test_a_damaged_skeleton_is_healed_by_the_next_save(run):
    """One rotten object must not fail every later save of the same structure."""
    digest = write(run)
    name, data = encode_trees(run, manifest_of(SKELETON, b"{}", b"small", DIGESTS)).objects[0]
    run.store.storage.delete([name])
    run.store.storage.create(name, data[:-1] + b"?")
    with pytest.raises(Corrupt):
        read_skeleton(run, Digest.of(data))
    write(run)
    assert read_manifest(run, digest).skeleton == SKELETON


def test_reading_a_manifest_takes_time_in_proportion_to_its_tensors(run):
    """A hundred times as many would take 10,000 times as long where each looks at all others."""
    assert seconds_of_reading(run, 100_000) < 2000 * seconds_of_reading(run, 1_000)


def seconds_of_reading(run, count: int) -> float:
    """Of computing, the least of three."""
    spec = {"dtype": "float32", "shape": (64, 64), "lifetime": Lifetime.PARAMETER}
    skeleton = Skeleton(tensors=tuple(TensorSpec(name=f"layers/{n}/weight", **spec) for n in range(count)))
    digest = write(run, skeleton=skeleton, digests=(DIGESTS * count)[:count])
    took = []
    for _ in range(3):
        began = time.process_time()
        manifest = read_manifest(run, digest)
        took.append(time.process_time() - began)
        assert len(manifest.skeleton.tensors) == count
    return min(took)


class Sick:
    """A storage whose next reads of trees fail, and its creates if they do for long."""

    def __init__(self, storage, *, reads: int) -> None:
        self.storage, self.reads = storage, reads
        self.ill = reads > 2

    def __getattr__(self, name):
        return getattr(self.storage, name)

    def read(self, name):
        self.reads -= 1
        if self.reads >= 0:
            raise StorageError(f"{name}: input/output error", errno=errno.EIO)
        return self.storage.read(name)

    def create(self, name, data):
        if exists(self.storage, name):
            raise ObjectExists(name)
        if self.ill:
            raise StorageError(f"{name}: input/output error", errno=errno.EIO)
        self.storage.create(name, data)

    def delete(self, names):
        assert not self.ill, names
        self.storage.delete(names)


@pytest.mark.parametrize("reads", [1, 9], ids=["once", "for long"])
def test_a_tree_that_cannot_be_read_now_is_not_lost(run, reads):
    """All records of a run share the skeleton: a passing error deleted it before it was written anew."""
    write(run)
    before = {name: run.store.storage.read(name) for name in trees(run)}
    sick = Sick(run.store.storage, reads=reads)
    name, data = encode_trees(run, manifest_of(SKELETON, b"{}", b"small", DIGESTS)).objects[0]
    if sick.ill:
        with pytest.raises(StorageError, match="input/output error"):
            put_tree(sick, name, data)
    else:
        put_tree(sick, name, data)
    assert {name: run.store.storage.read(name) for name in trees(run)} == before


def test_a_tree_that_can_be_read_no_more_is_written_anew(run):
    write(run)
    before = {name: run.store.storage.read(name) for name in trees(run)}
    name, data = encode_trees(run, manifest_of(SKELETON, b"{}", b"small", DIGESTS)).objects[0]
    put_tree(Sick(run.store.storage, reads=2), name, data)
    assert {name: run.store.storage.read(name) for name in trees(run)} == before


def test_a_tree_that_was_read_wrongly_once_is_left_as_it_is(run, monkeypatch):
    write(run)
    read, wrong = run.store.storage.read, set(trees(run))

    def once_wrong(name):
        data = read(name)
        if name in wrong:
            wrong.remove(name)
            return data[:-1] + b"?"
        return data

    monkeypatch.setattr(run.store.storage, "read", once_wrong)
    monkeypatch.setattr(run.store.storage, "delete", lambda names: pytest.fail("deleted"))
    write(run)
    assert wrong == set()
