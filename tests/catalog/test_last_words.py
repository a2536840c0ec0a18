"""How launches say that they have ended, read without what they noted in the weeks before."""

from __future__ import annotations

import pytest

from holdfast.catalog.journal.events import Line, exit_event, progress_event
from holdfast.catalog.journal.journal import JournalWriter
from holdfast.catalog.journal.last_words import ended_on_purpose

PLACE = {"timeline": 0, "step": 5, "step_seconds": 1.0}


@pytest.fixture
def run(store):
    return store.create_run("r")


@pytest.fixture
def note(store, run):
    """A function: one batch in the journal of a rank of a launch."""
    writers: dict[str, JournalWriter] = {}

    def noted(launch: int, line: Line, rank: int = 0, host: str = "host") -> None:
        name = f"{host}-{7 + rank}-{launch}"
        writer = writers.setdefault(name, JournalWriter(store, run.number, name))
        writer.add(line.kind, line.message, **line.data)
        writer.flush()

    return noted


def ended(launch: int, how: str, rank: int = 0) -> Line:
    error = ValueError("bad batch") if how == "failed" else None
    return exit_event(launch=launch, how=how, wall_seconds=2.0, error=error, rank=rank, **PLACE)


def test_what_a_launch_said_last_tells_whether_its_end_was_meant(store, run, note):
    for launch, how in enumerate(("completed", "preempted", "left", "failed"), 1):
        note(launch, progress_event(launch=launch, **PLACE))
        note(launch, ended(launch, how))
    note(5, progress_event(launch=5, **PLACE))
    assert ended_on_purpose(store, run.number, range(1, 7)) == {1, 2, 3}
    assert ended_on_purpose(store, run.number, [2, 4]) == {2}


def test_a_rank_that_failed_is_why_the_others_were_asked_to_stop(store, run, note):
    note(1, ended(1, "preempted"))
    note(1, ended(1, "failed", rank=1), rank=1)
    assert ended_on_purpose(store, run.number, [1]) == set()


def test_only_a_training_says_how_it_ended(store, run, note):
    note(1, ended(1, "left"), host="saver-1")
    note(1, ended(1, "left"), host="attempts")
    assert ended_on_purpose(store, run.number, [1]) == set()


def test_words_that_cannot_be_read_are_no_words(store, run, note, damage):
    note(1, ended(1, "left"))
    (name,) = (one.name for one in store.storage.list("catalog/runs/001/journal/"))
    damage(store, name)
    assert ended_on_purpose(store, run.number, [1]) == set()
