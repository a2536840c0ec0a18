"""What is wanted for a record may come when the record is gone; whether that is worth a word depends on what it is."""

from __future__ import annotations

import pytest

from holdfast.catalog.store import create_store
from holdfast.errors import Missing
from holdfast.ids import Order, RecordAddress, RecordId, RunNumber
from holdfast.records import MarkKind, Target
from holdfast.recovery.handover.inline_asides import InlineAsides
from holdfast.saver import messages
from holdfast.saver.asides import add
from holdfast.storage.memory import memory_storage


@pytest.fixture
def store():
    return create_store(memory_storage())


@pytest.fixture
def gone(store):
    """A record that is not there."""
    run, order = RunNumber(1), Order(1, 0, 10)
    return Target.of(RecordAddress(run, order, RecordId.derive(store.info.id, run, order)))


@pytest.fixture
def inline(store):
    """Asides of a training that saves in its loop, and what they have said."""
    said = []
    return InlineAsides(store, lambda kind, text: said.append((kind, text)), lambda: [], lambda ids: None), said


def test_that_a_deleted_checkpoint_would_have_become_good_is_not_worth_a_word(store, gone, inline, caplog):
    add(store, messages.AddMark(number=1, target=gone, kind=MarkKind.GOOD))
    asides, said = inline
    asides.add_mark(gone, MarkKind.GOOD)
    assert said == []
    assert caplog.records == []


def test_any_other_mark_of_a_deleted_checkpoint_is(store, gone, inline, caplog):
    with pytest.raises(Missing):
        add(store, messages.AddMark(number=1, target=gone, kind=MarkKind.FINAL))
    asides, said = inline
    asides.add_mark(gone, MarkKind.FINAL)
    assert [kind for kind, _ in said] == ["not noted"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
