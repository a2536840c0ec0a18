from __future__ import annotations

import pytest

from holdfast.catalog import layout
from holdfast.catalog.naming.tags import create_tag, delete_tag, find_tag, read_tags
from holdfast.catalog.objects import create_once
from holdfast.clock import utc_now
from holdfast.errors import BeingDeleted, Corrupt, InvalidName, Missing, NameTaken, UnknownReference
from holdfast.ids import ObjectName, TagName
from holdfast.records import Sweep
from holdfast.storage.protocol import Storage


def announce(store, name: ObjectName) -> Sweep:
    """A sweep of this living process that is about to delete ``name``."""
    sweep = Sweep(id="a1", created=utc_now(), owner=store.owner, objects=[str(name)])
    create_once(store.storage, layout.sweep(sweep.id), sweep)
    return sweep


class Interrupted:
    """A storage where something happens right after the next creation: between a tag and its second look."""

    def __init__(self, inner: Storage, event) -> None:
        self.inner, self.event = inner, event

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def create(self, name: ObjectName, data: bytes) -> None:
        self.inner.create(name, data)
        event, self.event = self.event, lambda: None
        event()


def interrupted(store, event):
    return type(store)(storage=Interrupted(store.storage, event), info=store.info)


def test_a_tag_names_a_record_for_ever(store, train):
    trainer = train()
    record = trainer.save(100)
    made = create_tag(store, TagName("v1"), record.address, note="for the paper")
    trainer.save(200)
    assert find_tag(store, TagName("v1")) == made
    assert made.target.address == record.address
    assert made.note == "for the paper"


@pytest.mark.parametrize("second", ["v1", "V1"])
def test_tags_do_not_move_and_do_not_differ_in_case_alone(store, train, second):
    """Hazards 48: on a case-insensitive filesystem two such names are one file."""
    trainer = train()
    first = trainer.save(100)
    create_tag(store, TagName("v1"), first.address)
    with pytest.raises(NameTaken, match="v1: run-001@100"):
        create_tag(store, TagName(second), trainer.save(200).address)
    assert find_tag(store, TagName(second)).target.address == first.address


def test_a_tag_keeps_the_spelling_of_its_maker(store, train):
    create_tag(store, TagName("Best-Model+lr=1e-4"), train().save(1).address)
    assert [tag.tag for tag in read_tags(store).tags] == ["Best-Model+lr=1e-4"]


@pytest.mark.parametrize("name", ["last", "run-3", "../x", "a/b", "", "auto", "0123456789abcdef", "x y"])
def test_what_means_something_else_cannot_be_a_tag(name):
    with pytest.raises(InvalidName):
        TagName(name)


def test_a_record_that_is_not_there_gets_no_tag(store, train):
    record = train().save(100)
    store.storage.delete([record.name])
    with pytest.raises(Missing):
        create_tag(store, TagName("v1"), record.address)
    assert read_tags(store).tags == []


def test_a_record_that_a_sweep_has_announced_gets_no_tag(store, train):
    """Hazards 4: tags use the two-sided pattern."""
    record = train().save(100)
    announce(store, record.name)
    with pytest.raises(BeingDeleted):
        create_tag(store, TagName("v1"), record.address)
    assert read_tags(store).tags == []


def test_a_sweep_that_comes_between_the_first_look_and_the_tag_wins(store, train):
    """Hazards 4: whoever comes second sees the first; the tag is taken back."""
    record = train().save(100)
    between = interrupted(store, lambda: announce(store, record.name))
    with pytest.raises(BeingDeleted):
        create_tag(between, TagName("v1"), record.address)
    assert read_tags(store).tags == []


def test_a_record_that_goes_between_the_first_look_and_the_tag_leaves_no_tag(store, train):
    """Hazards 4."""
    record = train().save(100)
    between = interrupted(store, lambda: store.storage.delete([record.name]))
    with pytest.raises(Missing):
        create_tag(between, TagName("v1"), record.address)
    assert read_tags(store).tags == []


def test_a_deleted_tag_can_be_given_again(store, train):
    trainer = train()
    create_tag(store, TagName("v1"), trainer.save(100).address)
    delete_tag(store, TagName("V1"))
    newer = trainer.save(200)
    create_tag(store, TagName("v1"), newer.address)
    assert read_tags(store).by_record() == {newer.id: ["v1"]}
    with pytest.raises(UnknownReference):
        delete_tag(store, TagName("v2"))


def test_a_damaged_tag_is_said_and_does_not_hide_the_others(store, train, damage):
    trainer = train()
    create_tag(store, TagName("v1"), trainer.save(100).address)
    create_tag(store, TagName("v2"), trainer.save(200).address)
    damage(store, layout.tag(TagName("v1")))
    tags = read_tags(store)
    assert [tag.tag for tag in tags.tags] == ["v2"]
    assert [one.name for one in tags.damaged] == [layout.tag(TagName("v1"))]
    with pytest.raises(Corrupt):
        find_tag(store, TagName("v1"))
    with pytest.raises(NameTaken, match="damaged"):
        create_tag(store, TagName("v1"), trainer.save(300).address)
    delete_tag(store, TagName("v1"))
    assert not read_tags(store).damaged
