"""Where segments are read: whatever copy is whole, and never a rotten one twice."""

from __future__ import annotations

import random
from errno import EIO

import pytest

from holdfast.catalog.locating import Copies, locate
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import Corrupt, Damaged, StorageUnavailable, Unreadable
from holdfast.ids import ObjectName
from holdfast.packs.index import read_footer
from holdfast.packs.reader import read_segments


@pytest.fixture
def twice(saver):
    """Two checkpoints of the same two tensors, in two packs: the first was distrusted at the second save."""
    one = saver("gpt2-small")
    tensors = {"v": random.Random(1).randbytes(70_000), "w": random.Random(2).randbytes(90_000)}
    first = one.save(1, tensors)
    one.distrusted = frozenset(first.packs)
    second = one.save(2, tensors)
    assert set(first.packs).isdisjoint(second.packs)
    return one.run, first, second, tensors


def spoil(store, pack: str, segment: int) -> None:
    """Flips a bit in one segment of a pack."""
    name = ObjectName(pack)
    data = bytearray(store.storage.read(name))
    data[read_footer(store.storage, name)[segment].offset] ^= 1
    store.storage.delete([name])
    store.storage.create(name, bytes(data))


def loaded(run, record) -> set[bytes]:
    """All segments of a record, read as a load reads them."""
    digests = read_manifest(run, record.manifest_digest).segment_digests()
    copies = Copies(run.store, record, locate(run, record, digests), run.store.footers)
    memory = [(one, memoryview(bytearray(copies.index.get(one).entry.length))) for one in digests]
    while True:
        try:
            read_segments(run.store.storage, copies.index.get, memory)
        except Damaged as error:
            if not copies.try_another(error):
                raise
        else:
            return {bytes(into) for _, into in memory}


def test_a_rotten_segment_is_read_from_another_pack_and_that_is_said(store, twice, caplog):
    run, first, second, tensors = twice
    spoil(store, first.packs[0], 0)
    assert loaded(run, first) == set(tensors.values())
    assert first.packs[0] in caplog.text
    assert f"the copy in {second.packs[0]} is used instead" in caplog.text


def test_two_packs_with_one_rotten_segment_each_are_whole_together(store, twice):
    run, first, second, tensors = twice
    spoil(store, first.packs[0], 0)
    spoil(store, second.packs[0], 1)
    for record in (first, second):
        assert loaded(run, record) == set(tensors.values())
        assert verify(store, reference=str(record.id), deep=True).affected == ()
    assert verify(store, deep=True).affected == ()


def test_a_segment_that_is_rotten_everywhere_is_damage(store, twice):
    run, first, second, _ = twice
    spoil(store, first.packs[0], 1)
    spoil(store, second.packs[0], 1)
    for record in (first, second):
        with pytest.raises(Corrupt) as caught:
            loaded(run, record)
        assert caught.value.pack in {*first.packs, *second.packs}
        assert verify(store, reference=str(record.id), deep=True).affected == (record.address,)
    assert verify(store, deep=True).affected == (first.address, second.address)


def test_the_check_of_one_checkpoint_says_what_is_rotten_even_if_nobody_is_hurt(store, twice):
    _, first, second, _ = twice
    spoil(store, first.packs[0], 0)
    report = verify(store, reference=str(first.id), deep=True)
    assert [(one.object, one.records) for one in report.problems] == [(first.packs[0], ())]
    assert "another pack has the same" in report.problems[0].remedy
    assert verify(store, reference=str(second.id), deep=True).ok


def test_a_pack_with_an_unreadable_sector_is_passed_over_like_a_rotten_one(store, twice, monkeypatch):
    run, first, _, tensors = twice
    bad = ObjectName(first.packs[0])
    at = read_footer(store.storage, bad)[0].offset
    inner = type(store.storage).source

    def source(self, name):
        found = inner(self, name)
        return BadSector(found, at) if name == bad else found

    monkeypatch.setattr(type(store.storage), "source", source)
    assert loaded(run, first) == set(tensors.values())
    report = verify(store, deep=True)
    assert [(one.object, one.kind, one.records) for one in report.problems] == [(bad, Unreadable.kind, ())]
    assert "nothing is proven" in report.problems[0].remedy


class BadSector:
    """A source that answers EIO for one byte."""

    def __init__(self, inner, at: int) -> None:
        self.inner, self.at = inner, at

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __enter__(self):
        return self

    def __exit__(self, *how):
        self.inner.close()

    def read_into(self, offset, into):
        if offset <= self.at < offset + into.nbytes:
            raise StorageUnavailable("cannot read: Input/output error", errno=EIO)
        self.inner.read_into(offset, into)
