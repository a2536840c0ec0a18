"""What a saver finds of the one before it: told at once, or when storage answers, or left to the trainer to look up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from holdfast.errors import Damaged, SaveFailed, StorageUnavailable
from holdfast.saver.control import Intent, Row
from holdfast.saver.inheriting import Inheriting


@pytest.fixture
def rows() -> list[Row]:
    return []


@pytest.fixture
def told() -> list[tuple]:
    return []


@pytest.fixture
def answers() -> dict[int, object]:
    """What storage says of a generation: a record, None, or an error."""
    return {}


@pytest.fixture
def inheriting(rows, told, answers) -> Inheriting:
    def finished(row: Row):
        if isinstance(answer := answers[row.generation], Exception):
            raise answer
        return answer

    return Inheriting(
        control=SimpleNamespace(rows=lambda: list(rows)),
        slabs={1: SimpleNamespace()},
        finished=finished,
        committed=lambda row, record: told.append((row.generation, record)),
        given_up=lambda row, kind, text: told.append((row.generation, kind)),
    )


def row(generation: int, slab: int = 1, *, pending: bool = False) -> Row:
    done = 0 if pending else generation
    return row_of(generation=generation, done=done, slab=slab)


def row_of(*, generation: int, done: int, slab: int) -> Row:
    known = {"slot": 0, "generation": generation, "intent": Intent.SAVE, "done": done, "slab": slab}
    return Row(**{name: known.get(name, 0) for name in Row._fields})


def test_what_was_saved_given_up_or_damaged_is_told_and_what_is_pending_or_elsewhere_is_not(
    inheriting, rows, told, answers
) -> None:
    rows += [row(1), row(2), row(3), row(4, pending=True), row(5, slab=9)]
    answers |= {1: "a record", 2: None, 3: Damaged("torn")}
    inheriting.find()
    assert told == [(1, "a record"), (2, "save-failed"), (3, "damaged")]
    assert inheriting.unread == []


def test_storage_that_does_not_answer_is_asked_again(inheriting, rows, told, answers) -> None:
    rows.append(row(1))
    answers[1] = StorageUnavailable("later")
    inheriting.find()
    assert (inheriting.again(), told) == (False, [])
    answers[1] = "a record"
    assert (inheriting.again(), told, inheriting.unread) == (False, [(1, "a record")], [])


@pytest.mark.parametrize("instead", [row(7, pending=True), row(1, slab=9)], ids=["used again", "of another slab"])
def test_what_is_in_no_row_any_more_the_trainer_has_to_look_up(inheriting, rows, told, answers, instead) -> None:
    rows.append(row(1))
    answers[1] = StorageUnavailable("later")
    inheriting.find()
    rows[:] = [instead]
    assert (inheriting.again(), told, inheriting.unread) == (True, [], [])


def test_a_slot_that_is_being_filled_anew_is_left_to_the_trainer(inheriting, rows, told, answers) -> None:
    rows.append(row(1))
    answers[1] = SaveFailed("not what was sealed")
    inheriting.find()
    assert (told, inheriting.unread) == ([], [])
