"""What is done about the errors of a save: how long room is waited for, and by whom; a record that came meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from holdfast.errors import RecordConflict, StorageFull
from holdfast.saver import trying
from holdfast.saver.trying import Trying


class FullFor:
    """Saves that find no room so many times."""

    def __init__(self, times):
        self.times, self.tried = times, 0

    def gave_up(self, request, error):
        self.told = error

    def save(self, request, shape, content):
        self.tried += 1
        if self.tried <= self.times:
            raise StorageFull("no space left")
        return "saved"


def made(saving, **options):
    following = SimpleNamespace(retain=lambda: [])
    quiet = {"said": lambda level, text: None, "deleted": lambda ids: None, "wait": lambda seconds: False}
    return Trying(saving=saving, following=following, pause_when_full=True, **quiet, **options)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(trying, "FULL_PAUSE", 0.001)


def test_whoever_alone_has_the_state_waits_for_room_after_the_end_of_the_training():
    """The trainer was killed while its saver waited: what is staged is nowhere else."""
    saving = FullFor(20)
    assert made(saving, last_patience=60.0).save(SimpleNamespace(step=1), None, None) == "saved"
    assert saving.tried == 21


def test_but_not_for_ever():
    saving = FullFor(10**9)
    with pytest.raises(StorageFull):
        made(saving, last_patience=0.05).save(SimpleNamespace(step=1), None, None)
    assert saving.tried > 2


def test_a_training_that_is_to_stop_does_not_wait():
    saving = FullFor(10**9)
    with pytest.raises(StorageFull):
        made(saving).save(SimpleNamespace(step=1), None, None)
    assert saving.tried == 1


class Overtaken:
    """A save whose name its own record has taken since it was looked for."""

    def __init__(self, found):
        self.found = found

    def gave_up(self, request, error):
        self.told = error

    def save(self, request, shape, content):
        raise RecordConflict("a save of this step exists already")

    def finished(self, request):
        return self.found


def test_a_save_that_came_while_it_was_begun_again_is_no_conflict():
    assert made(Overtaken("record")).save(SimpleNamespace(step=1), None, None) == "record"
    with pytest.raises(RecordConflict):
        made(Overtaken(None)).save(SimpleNamespace(step=1), None, None)
