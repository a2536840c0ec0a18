"""``holdfast log``: the timeline of a run on a screen, and as a document."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import msgspec
import pytest
from histories_kit import Author, overlapping
from rich.cells import cell_len

from holdfast.catalog import launches, layout
from holdfast.catalog.journal import gathering
from holdfast.catalog.journal.accounts import accounts_of
from holdfast.catalog.journal.events import Ending, Line
from holdfast.catalog.journal.journal import JournalWriter
from holdfast.catalog.journal.timeline import KINDS, timeline_of
from holdfast.catalog.objects import create_once
from holdfast.catalog.owners import this_process
from holdfast.catalog.store import open_store
from holdfast.cli.life import MEANING, picture, shares
from holdfast.cli.log import lasting
from holdfast.ids import RunNumber
from holdfast.records import Kind

from .conftest import EVIL, flip

RUN = RunNumber(1)


@pytest.fixture(autouse=True)
def eighty(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def eventful() -> Author:
    """Killed in launch 1, a rollback in launch 2, the end in launch 3."""
    author = Author()
    author.begin()
    author.start(None, "there was nothing to resume from")
    author.train(500)
    good = author.save(stall=2.0)
    author.train(100)
    author.progress()
    author.now += 300
    author.begin()
    author.start(good)
    author.train(200)
    author.note(Line("health", "spike(loss): 9.3 after 2.1", {"step": 700, "timeline": 0}))
    author.progress(left=True)
    author.start(good, "spike(loss); skipping 200 batches")
    author.train(300)
    author.save(kind=Kind.PREEMPTED, reason="SIGTERM asked to stop")
    author.note(Line("skipped", "step 810: the saver is busy", {}))
    author.exit(Ending.PREEMPTED)
    author.now += 60
    author.begin()
    author.start(author.parent)
    author.train(200)
    author.save(kind=Kind.FINAL, reason="the end: 1000 steps")
    author.exit(Ending.COMPLETED)
    return author


@pytest.fixture
def place(tmp_path):
    """A store with that run."""
    _stored(tmp_path, eventful())
    return tmp_path


def _stored(place, author) -> None:
    store = open_store(place, create=True)
    store.create_run("gpt")
    for one in author.launches:
        create_once(store.storage, layout.launch(RUN, one.number), one)
    for one in author.starts:
        create_once(store.storage, layout.start(RUN, one.launch, one.timeline), one)
    for one in author.records:
        create_once(store.storage, one.name, one)
    for name in dict.fromkeys(entry.writer for entry in author.entries):
        _write(store, name, [entry.event for entry in author.entries if entry.writer == name])


def _write(store, name, events) -> None:
    with JournalWriter(store, RUN, name) as journal:
        journal._events.extend(events)  # with the times at which they were noted


def whats(found) -> list[str]:
    return [one["what"] for one in found.document["events"]]


def test_the_life_of_a_run_is_told_from_its_first_launch_to_its_end(place, cli):
    assert whats(cli(place, "log", "gpt", "--json")) == [
        *("launch", "start", "save", "silence"),
        *("launch", "resume", "health", "rollback", "save", "skipped", "exit"),
        *("launch", "resume", "save", "exit"),
    ]


def test_the_account_of_each_launch_and_of_the_run_is_in_the_document(place, cli):
    document = cli(place, "log", "--json").document
    told = [(one["ending"], one["done"], one["useful"], one["lost"], one["at_least"]) for one in document["launches"]]
    assert told == [
        ("killed", 600, 500, 100, True),
        ("preempted", 500, 300, 200, False),
        ("completed", 200, 200, 0, False),
    ]
    total = document["total"]
    assert (total["useful"], total["lost"], total["between"]) == (1000, 300, 360.0)
    assert total["goodput"] == pytest.approx(1000 / (602 + 300 + 500 + 60 + 200), rel=0.01)


def test_the_screen_shows_what_was_lost_and_how_each_launch_ended(place, cli):
    found = cli(place, "log")
    lines = [line.split() for line in found.out.splitlines()]
    assert (found.code, found.err) == (0, "")
    assert max(map(cell_len, found.out.splitlines())) <= 80
    rows = {line[0]: line for line in lines[lines.index([]) :] if line[:1] in (["1"], ["2"], ["3"])}
    assert {"600+", "500", "100+", "killed:"} <= set(rows["1"])
    assert {"500", "300", "200", "0.60", "preempted"} <= set(rows["2"])
    assert "run-001: 1000 steps useful, at least 300 lost, goodput 0.60" in found.out


def test_one_launch_can_be_looked_at_alone(place, cli):
    found = cli(place, "log", "--launch", 2, "--json").document
    assert {one["launch"] for one in found["events"]} == {2}
    assert [one["launch"] for one in found["launches"]] == [2]
    assert "run-001:" not in cli(place, "log", "--launch", 2).out


def test_kinds_can_be_chosen_and_progress_is_for_those_who_ask(place, cli):
    assert whats(cli(place, "log", "--only", "exit, rollback", "--json")) == ["rollback", "exit", "exit"]
    assert whats(cli(place, "log", "--only", "progress", "--json")) == ["progress", "progress"]


def test_stacks_are_shown_below_their_line_to_those_who_ask_for_its_kind(tmp_path, cli):
    author = Author()
    author.begin()
    author.start(None)
    stacks = 'Thread 0x1 (most recent call first):\n  File "train.py", line 7 in collate\n  File "\x1b.py", line 9'
    author.note(Line("hung", "rank 0 has made no step", {"step": 3, "stacks": stacks}), "saver-1-0-99")
    store = open_store(tmp_path, create=True)
    store.create_run("gpt")
    create_once(store.storage, layout.launch(RUN, 1), author.launches[0])
    _write(store, "saver-1-0-99", [entry.event for entry in author.entries])
    shown = cli(tmp_path, "log", "--only", "hung").out
    first, line, *rest = (text.strip() for text in shown.splitlines()[1:6])
    assert first.endswith("rank 0 has made no step")
    assert line == "Thread 0x1 (most recent call first):"
    assert 'File "train.py", line 7 in collate' in rest
    assert "\x1b" not in shown
    assert "collate" not in cli(tmp_path, "log").out


def test_the_newest_lines_can_be_asked_for(place, cli):
    assert whats(cli(place, "log", "--tail", 2, "--json")) == ["save", "exit"]
    assert whats(cli(place, "log", "--tail", 0, "--json")) == []
    assert len(whats(cli(place, "log", "--tail", 999, "--json"))) == 15


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--launch", 4), "there is 1, 2, 3"),
        (("--only", "saves"), "there is exit, health, launch"),
        (("--only", "hangs"), "did you mean hung?"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(place, cli, words, said):
    found = cli(place, "log", *words)
    assert found.code == 10
    assert said in found.err


def test_what_might_have_happened_and_has_not_is_no_error(place, cli):
    """The README names ``log --only hung``; on a healthy run it ended with 10."""
    found = cli(place, "log", "--only", "hung,ended")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("nothing of that has happened\n")
    assert whats(cli(place, "log", "--only", "hung", "--json")) == []


def test_all_kinds_that_are_noted_are_known():
    """A kind that is noted somewhere and not listed would be refused until it has happened."""
    text = "\n".join(path.read_text() for path in (Path(__file__).parents[2] / "src").rglob("*.py"))
    noted = set(re.findall(r'\b(?:journal\.add|_note|note|_say)\(\s*"([a-z][a-z -]+)",', text))
    noted |= set(re.findall(r'\bNoted\(kind="([a-z-]+)"', text))
    assert {"rollback", "skipped", "verdict"} <= noted
    assert noted - KINDS == {"saved", "resumed"}, "records and starts tell of these"


def test_of_many_launches_a_tail_shows_those_of_its_lines(tmp_path, cli):
    """The table of 500 restarts drowned the two lines that were asked for."""
    author = Author()
    for _ in range(30):
        author.begin()
        author.start(author.parent)
        author.train(2)
        author.save()
        author.exit(Ending.PREEMPTED)
    _stored(tmp_path, author)
    found = cli(tmp_path, "log", "--tail", 5).out
    table = found[found.index("began (UTC)") :]
    assert re.findall(r"^ +(\d+)  \d\d", table, re.MULTILINE) == ["29", "30"]
    assert "\nand 28 more launches; --launch N shows one\n" in found
    assert "run-001: 60 steps useful, 0 lost" in found
    assert len(cli(tmp_path, "log", "--tail", 5, "--json").document["launches"]) == 30
    assert "more launch" not in cli(tmp_path, "log").out


def test_times_say_their_zone_and_their_year_where_it_is_not_this_one(tmp_path, cli, monkeypatch):
    _stored(tmp_path, eventful())
    for year, shown in ((2026, r"\n09-21 \d\d:\d\d:\d\d  launch "), (2027, r"\n2026-09-21 \d\d:\d\d:\d\d  launch ")):
        monkeypatch.setattr(gathering, "utc_now", lambda year=year: f"{year}-12-01T00:00:00Z")
        found = cli(tmp_path, "log").out
        assert re.match(r"time \(UTC\) +what +event\n", found)
        assert re.search(shown, found)
        assert re.search(r"launch +began \(UTC\) ", found)


def test_a_launch_before_the_newest_one_that_still_runs_is_said_to_run(tmp_path, cli):
    """It was called killed, for only the newest one was asked."""
    author = eventful()
    alive = msgspec.structs.replace(author.launches[0], owner=this_process())
    author.launches[0] = alive
    _stored(tmp_path, author)
    assert [one["ending"] for one in cli(tmp_path, "log", "--json").document["launches"]] == [
        "running",
        "preempted",
        "completed",
    ]


def test_a_damaged_journal_is_said_and_the_rest_is_told(place, cli):
    flip(place / layout.journal(RUN, "saver-1-0-99", 1))
    found = cli(place, "log")
    assert found.code == 0
    assert "saver-1-0-99" in found.err
    assert "useful" in found.out
    assert len(cli(place, "log", "--json").document["damaged"]) == 1


def test_a_run_in_which_nothing_has_happened_says_so(tmp_path, cli):
    open_store(tmp_path, create=True).create_run("idle")
    assert cli(tmp_path, "log").out == "nothing has happened yet\n"
    assert cli(tmp_path, "log", "--json").document["total"]["goodput"] is None


def test_an_old_store_without_measurements_still_says_what_it_knows(trained, cli):
    found = cli(trained, "log", "gpt2-small", "--json").document
    assert [(one["ending"], one["useful"], one["lost"]) for one in found["launches"]] == [
        ("completed", 4, 0),
        ("completed", 4, 0),
    ]
    assert {"good", "pinned"} <= {one["what"] for one in found["events"]}


def test_text_of_the_user_can_do_nothing_to_the_screen(trained, cli):
    assert "\x1b" not in cli(trained, "log", "gpt2-small").out
    noted = [one for one in cli(trained, "log", "gpt2-small", "--json").document["events"] if one["what"] == "pinned"]
    assert EVIL in noted[0]["text"]


def test_a_real_training_tells_its_own_life(tmp_path, cli):
    """A rollback and an exception in launch 1, a kill in launch 2, the end in launch 3; every step is accounted for."""
    torch = pytest.importorskip("torch")
    from toy_training import KILLED, ended, forked

    from holdfast import Checkpointer, every, latest

    def train(to: int, *, back: int = 0, die: int = 0, fail: int = 0) -> None:
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"save": every(steps=4), "keep": latest(9), "saver": "inline"}
        with Checkpointer(tmp_path, run="toy", state={"model": model, "optimizer": optimizer}, **options) as ckpt:
            for goal in (back, to) if back else (to,):
                for step in ckpt.steps(goal):
                    if step == die > 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if step == fail > 0:
                        raise ValueError("bad batch")
                    model(torch.ones(1, 2)).sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                if goal == back:
                    ckpt.restore("@4")

    with pytest.raises(ValueError, match="bad batch"):
        train(20, back=7, fail=10)
    assert ended(forked(lambda: train(20, die=15))) == KILLED
    train(20)
    document = cli(tmp_path, "log", "--json").document
    first, second, third = document["launches"]
    assert (first["ending"], first["why"]) == ("failed", "ValueError: bad batch")
    assert (first["done"], first["at_least"]) == (7 + 6, False)
    assert first["useful"] == first["done"] - first["lost"]
    assert (second["ending"], second["at_least"]) == ("killed", True)
    assert (third["ending"], third["lost"], third["at_least"]) == ("completed", 0, False)
    assert document["total"]["useful"] == 20
    assert [one["what"] for one in document["events"]].count("rollback") == 1
    assert document["doubts"] == []


def test_a_launch_that_waits_for_the_saver_of_an_earlier_one_lasts_so_long(tmp_path, cli, monkeypatch):
    """Up to a minute went missing, goodput looked good, and the clock was said to have been set."""
    pytest.importorskip("torch")
    from tiny_training import launched

    drain, waited = launches._drain, []

    def slow(*more) -> None:
        began = time.monotonic()
        drain(*more)
        time.sleep(1.0)
        waited.append(time.monotonic() - began)

    monkeypatch.setattr(launches, "_drain", slow)
    launched(tmp_path, 2)
    launched(tmp_path, 4)
    found = cli(tmp_path, "log", "--json").document["launches"]
    assert [one["wall"] >= seconds for one, seconds in zip(found, waited, strict=True)] == [True, True]


def test_time_in_which_two_launches_ran_is_drawn_once():
    timeline = timeline_of(overlapping().history())
    assert sum(shares(timeline.accounts).values()) == pytest.approx(timeline.total.wall)


def test_the_picture_gives_each_kind_of_time_its_share():
    accounts = accounts_of(eventful().history())
    drawn, spent = picture(accounts, 100), shares(accounts)
    assert len(drawn) == 100
    assert set(drawn) <= set(MEANING)
    whole = sum(spent.values())
    for letter, seconds in spent.items():
        assert abs(drawn.count(letter) - 100 * seconds / whole) <= 4  # one for each span that was rounded


def test_a_life_without_time_has_no_picture():
    assert picture([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "250 ms"), (2.5, "2.5 s"), (59, "59 s"), (90, "1.5 min"), (9000, "2.5 h"), (5e5, "5.8 d")],
)
def test_spans_of_time_are_short(seconds, text):
    assert lasting(seconds) == text
