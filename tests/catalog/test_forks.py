from __future__ import annotations

import pytest

from holdfast.catalog import layout
from holdfast.catalog.naming.forks import fork, read_forks
from holdfast.catalog.naming.references import resolve
from holdfast.catalog.objects import create_once
from holdfast.clock import utc_now
from holdfast.errors import BeingDeleted, InvalidName, UnknownReference
from holdfast.ids import RecordId
from holdfast.records import Sweep


def test_a_fork_begins_at_the_record_that_it_left(store, train):
    """Users-ask 37: parent links in the catalogue."""
    base = train("base")
    origin = base.save(100)
    base.save(200)
    run = fork(store, "base@100", "tuned")
    assert run.info.forked_from.address == origin.address
    assert run.info.name == "tuned"
    assert resolve(store, "tuned") == origin
    assert read_forks(store) == {RecordId(origin.id): [run.number]}


def test_without_a_name_a_fork_has_that_of_the_run_that_it_left(store, train):
    train("base").save(100)
    assert fork(store, "@last").info.name == "base"


def test_an_empty_name_is_none(store, train):
    """An unset variable of the shell: the fork got the name of the run that it left."""
    train("base").save(100)
    with pytest.raises(InvalidName):
        fork(store, "@last", "")
    assert len(store.numbers()) == 1


def test_two_forks_of_one_record_are_two_runs(store, train):
    origin = train("base").save(100)
    runs = [fork(store, "@100", default_run=origin.address.run).number for _ in range(2)]
    assert len(set(runs)) == 2
    assert read_forks(store) == {RecordId(origin.id): runs}


def test_a_fork_that_cannot_be_leaves_no_run(store, train):
    record = train("base").save(100)
    with pytest.raises(UnknownReference):
        fork(store, "base@200", "tuned")
    with pytest.raises(InvalidName):
        fork(store, "base", "../x")
    sweep = Sweep(id="a1", created=utc_now(), owner=store.owner, objects=[str(record.name)])
    create_once(store.storage, layout.sweep("a1"), sweep)
    with pytest.raises(BeingDeleted):
        fork(store, "base", "tuned")
    assert [info.name for info in store.runs()] == ["base"]
    assert list(store.storage.list(layout.holds_folder(record.address.run))) == []
