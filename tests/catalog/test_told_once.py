"""Where two tell of the same thing, a timeline tells it once, in the order in which it happened."""

from __future__ import annotations

import pytest
from histories_kit import Author

from holdfast.catalog.journal.accounts import Account
from holdfast.catalog.journal.events import Ending, Line
from holdfast.catalog.journal.timeline import Timeline, timeline_of
from holdfast.errors import PeerLost
from holdfast.records import Record

SAVER = "saver-1-0-99"
ENDED = "rank 0 is ended by the watchdog after 15 s without a step after 12"


def begun(steps: int = 0) -> Author:
    author = Author()
    author.begin()
    author.start(None, "there was nothing to resume from")
    author.train(steps)
    return author


def told(author: Author, **more) -> Timeline:
    return timeline_of(author.history(**more))


def lines(author: Author) -> list[str]:
    return [moment.kind for moment in told(author).moments]


def watched(author: Author, kind: str, step: int, rank: int = 0) -> None:
    text = f"rank {rank} is ended by the watchdog after 15 s without a step after {step}" if kind == "ended" else kind
    author.note(Line(kind, text, {"step": step, "rank": rank, "silent": 15.0, "stacks": ""}), SAVER)


def account(author: Author, **more) -> Account:
    return told(author, **more).accounts[0]


# --- The watchdog


@pytest.mark.parametrize("alive", [False, None])
def test_a_launch_that_the_watchdog_has_ended_says_so_and_how_far_it_was(alive):
    author = begun(10)
    author.save()
    author.train(2)
    watched(author, "hung", 12)
    watched(author, "ended", 12)
    one = account(author, alive=alive)
    assert (one.ending, one.why) == (Ending.KILLED, ENDED)
    assert (one.done, one.useful, one.lost, one.at_least) == (12, 10, 2, False)
    assert ENDED in told(author, alive=alive).moments[-1].text


def test_a_launch_that_hung_last_and_was_killed_by_somebody_has_made_so_many_steps_at_least():
    author = begun()
    watched(author, "hung", 12)
    one = account(author)
    assert (one.ending, one.why, one.done, one.at_least) == (Ending.KILLED, "no word of it", 12, True)


@pytest.mark.parametrize("kind", ["spared", "recovered"])
def test_whoever_went_on_was_not_ended_by_the_watchdog(kind):
    author = begun()
    watched(author, "ended", 12)
    watched(author, kind, 12)
    assert (account(author).why, account(author).done) == ("no word of it", 0)


def test_a_silence_before_a_rollback_says_nothing_of_the_steps_after_it():
    author = begun(10)
    good = author.save()
    author.train(20)
    watched(author, "hung", 30)
    watched(author, "recovered", 30)
    author.progress(left=True)
    author.start(good, "spike")
    author.progress()
    assert account(author).done == 30


def test_a_rank_that_lost_one_that_was_ended_names_the_watchdog_as_the_cause():
    author = begun(12)
    author.note(Line("ended", "rank 3 is ended by the watchdog", {"step": 11, "rank": 3}), "saver-1-3-99")
    author.exit(Ending.FAILED, PeerLost("rank 3 has ended"))
    assert (account(author).why, account(author).done) == ("rank 3 is ended by the watchdog", 12)


# --- Saves that failed


def failed(author: Author, text: str, *, trainer: bool = True) -> None:
    author.note(Line("save failed", text, {"traceback": "..."}), SAVER)
    if trainer:
        author.note(Line("save failed", f"run-001@10 (0123456789abcdef): {text}", {}))


def test_a_save_that_failed_is_told_once_with_its_address():
    author = begun(10)
    failed(author, "cannot begin a.pack: No space left on device")
    failed(author, "cannot begin b.pack: No space left on device")
    texts = [moment.text for moment in told(author).moments if moment.kind == "save failed"]
    assert [text.partition(" (")[0] for text in texts] == ["run-001@10"] * 2


def test_a_save_that_failed_after_the_trainer_was_gone_is_told_by_the_saver():
    """Also where the same had happened before."""
    author = begun(10)
    failed(author, "disk quota exceeded")
    failed(author, "disk quota exceeded", trainer=False)
    assert lines(author).count("save failed") == 2


# --- Rollbacks


def rolled_back(author: Author, good: Record, why: str) -> None:
    """As a training notes it, all in one second."""
    author.note(Line("verdict", f"{why} at step {author.step}", {"step": author.step}))
    data = {"step": author.step, "target": good.id}
    author.note(Line("rollback", f"from step {author.step} back to {good.address}: {why}", data))
    loading = Line("loading", str(good.address), {"timeline": author.timeline + 1})
    author.note(loading, "attempts-here-7-1")
    author.start(good, f"rolled back from step {author.step}: {why}")
    author.train(1, seconds=0.0)
    author.save()


def test_a_rollback_is_told_once_between_its_cause_and_what_was_saved_after_it():
    author = begun(10)
    good = author.save()
    author.train(8, seconds=0.0)
    author.save()
    rolled_back(author, good, "loss is nan")
    rolled_back(author, good, "loss is nan again")
    one = ("verdict", "rollback", "loading", "save")
    assert lines(author)[:-1] == ["launch", "start", "save", "save", *one, *one]


def test_going_back_of_which_the_journal_does_not_tell_is_told_by_its_start():
    author = begun(10)
    good = author.save()
    rolled_back(author, good, "loss is nan")
    author.start(good, "asked for by restore()")
    found = [moment.text for moment in told(author).moments if moment.kind == "rollback"]
    assert len(found) == 2
    assert "asked for by restore()" in found[1]


def test_what_a_launch_loads_comes_before_that_it_has_resumed():
    author = begun(10)
    good = author.save()
    author.begin()
    author.note(Line("loading", str(good.address), {"timeline": 0}), "attempts-here-7-2")
    author.start(good)
    assert lines(author)[-4:] == ["launch", "loading", "resume", "silence"]
