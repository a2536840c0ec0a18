"""One object that the disk cannot give is one damaged object: nothing else ends, and nothing is concluded from it."""

from __future__ import annotations

from errno import EIO, ESTALE

import pytest

from holdfast.catalog import layout
from holdfast.catalog.deleting.sweeps import plan_sweep
from holdfast.catalog.manifests import read_manifest, write_manifest
from holdfast.catalog.marks import NO_MARKS, add_mark, pin, read_marks
from holdfast.catalog.naming.tags import create_tag, delete_tag
from holdfast.catalog.objects import load, load_each
from holdfast.catalog.store import existing_store
from holdfast.catalog.verifying.verify import verify
from holdfast.errors import StorageUnavailable, Unreadable
from holdfast.ids import ObjectName, TagName
from holdfast.records import MarkKind, Tag
from holdfast.trees import Skeleton


class BadDisk:
    """A storage that answers with ``errno`` when one object is read."""

    def __init__(self, inner, bad: ObjectName, errno: int = EIO) -> None:
        self.inner, self.bad, self.errno = inner, bad, errno

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def read(self, name):
        if name == self.bad:
            raise StorageUnavailable(f"cannot read {name}: Input/output error", errno=self.errno)
        return self.inner.read(name)


@pytest.fixture
def saved(store, saver):
    """Two checkpoints; a tag, a pin and a note."""
    one = saver("gpt2-small")
    first, second = one.save(1, {"w": bytes(3_000)}), one.save(2, {"w": bytes(range(256)) * 12})
    create_tag(store, TagName("v1"), first.address)
    pinned = pin(store, first.address, by="user")
    note = add_mark(store, second.address, MarkKind.NOTE, by="user", data={"text": "hi"})
    places = {
        "run": layout.run_info(one.run.number),
        "tag": layout.tag(TagName("v1")),
        "pin": layout.mark(first.address, MarkKind.PINNED, pinned.attempt),
        "note": layout.mark(second.address, MarkKind.NOTE, note.attempt),
        "record": first.name,
        "manifest": layout.tree(one.run.number, first.manifest_digest),
        "start": layout.start(one.run.number, 1, 0),
    }
    return first, second, places


KINDS = ["run", "tag", "pin", "note", "record", "manifest", "start"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_reports_an_unreadable_object_and_goes_on(store, saved, kind):
    name = saved[2][kind]
    problems = verify(existing_store(BadDisk(store.storage, name))).problems
    assert (name, Unreadable.kind) in [(one.object, one.kind) for one in problems]
    assert all("delete" not in one.remedy for one in problems if one.kind == Unreadable.kind)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "run"])
def test_a_sweep_keeps_what_an_unreadable_object_may_need(store, saved, kind):
    first, second, places = saved
    seen = existing_store(BadDisk(store.storage, places[kind]))
    if kind == "pin":
        delete_tag(store, TagName("v1"))
    delete = [first.address, second.address] if kind == "tag" else [first.address]
    plan = plan_sweep(seen, seen.run(1), delete)
    assert plan.records == ()
    assert {*first.packs, *second.packs}.isdisjoint(plan.names)


def test_an_unreadable_pin_still_pins(store, saved):
    first, _, places = saved
    found = read_marks(existing_store(BadDisk(store.storage, places["pin"])), first.address.run)
    assert found.get(first.address.id, NO_MARKS).pinned


def test_an_unreadable_manifest_is_damage_and_a_save_of_equal_state_heals_it(store, saved):
    """Each later save of the same state would fail over the very object that it needs to write."""
    first, _, places = saved
    run = existing_store(BadDisk(store.storage, places["manifest"])).run(1)
    with pytest.raises(Unreadable):
        read_manifest(run, first.manifest_digest)
    manifest = read_manifest(store.run(1), first.manifest_digest)
    skeleton: Skeleton = manifest.skeleton
    again = write_manifest(run, skeleton, manifest.values, manifest.inline, manifest.segment_digests())
    assert again == first.manifest_digest


def test_what_concerns_more_than_one_object_is_no_damage(store, saved):
    """ESTALE, a missing mount: the next object would fare the same, and nothing may be decided without it."""
    bad = BadDisk(store.storage, saved[2]["tag"], ESTALE)
    with pytest.raises(StorageUnavailable):
        load_each(bad, [saved[2]["tag"]], Tag)


def test_one_unreadable_object_alone_is_damaged_too(store, saved):
    with pytest.raises(Unreadable, match="nothing is known of catalog/tags/v1"):
        load(BadDisk(store.storage, saved[2]["tag"]), saved[2]["tag"], Tag)
