"""A new launch takes over a run: it waits for saves in flight, gives up on the rest, and only then goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import msgspec
import pytest
from holds_kit import fill, save

from holdfast.catalog import launches, owners
from holdfast.catalog.holds import find_saves
from holdfast.catalog.launches import begin_launch, drain_seconds
from holdfast.catalog.runs import Run
from holdfast.catalog.saves import begin_save
from holdfast.catalog.store import open_store
from holdfast.errors import Fenced, ObjectExists
from holdfast.records import Aborted, Target, Timing


@pytest.fixture
def run(store):
    return store.create_run("gpt2")


def test_launches_are_numbered_from_one_and_a_newer_one_fences(run):
    first = begin_launch(run, deadline=0)
    assert (first.number, first.fenced()) == (1, False)
    second = begin_launch(run, deadline=0)
    assert (second.number, first.fenced(), second.fenced()) == (2, True, False)


def test_a_new_launch_waits_for_a_save_that_is_about_to_finish(run):
    """Hazards 5: the step that was being saved when the trainer was killed is what the next launch resumes from."""
    attempt = begin_save(begin_launch(run, deadline=0), 0, 600)
    record = fill(attempt, 600, [b"weights"])
    said = []

    def tell(text):
        said.append(text)
        threading.Timer(0.1, attempt.publish, [record]).start()

    second = begin_launch(run, deadline=60, report=tell)
    assert second.run.lineage().head == Target.of(record.address)
    assert "waiting up to 60 s for the save of run-001@600" in said[0]
    assert len(said) == 1


def test_a_relaunch_on_a_rebooted_machine_does_not_wait_for_the_saves_of_before(run, monkeypatch):
    """The race for the name makes it safe, also where nobody can tell a reboot from a second machine of this name."""
    monkeypatch.setattr(owners, "_machine", lambda: "")
    before = msgspec.structs.replace(owners.this_process(), boot="before the reboot")
    store = replace(run.store, whoami=lambda: before)
    attempt = begin_save(begin_launch(Run(store, run.info), deadline=0), 0, 600)
    record = fill(attempt, 600, [b"weights"])
    said = []
    begin_launch(run, deadline=60, report=said.append)
    assert said == []
    with pytest.raises(Fenced):
        attempt.publish(record)


def test_a_save_that_does_not_finish_in_time_is_given_up_and_cannot_publish_any_more(run):
    """Hazards 4: the paused saver wakes up after the new launch has chosen, and its publish fails by itself."""
    attempt = begin_save(begin_launch(run, deadline=0), 0, 600)
    record = fill(attempt, 600, [b"weights"])
    said = []
    begin_launch(run, deadline=0.05, report=said.append)
    assert "gave up on the save of run-001@600" in said[-1]
    with pytest.raises(Fenced, match="launch 2 took over the run"):
        attempt.publish(record)
    attempt.abandon()
    assert run.records() == []
    assert [one.reason for one in run.published().aborted] == ["launch 2 took over the run"]


def test_the_save_of_a_process_that_is_gone_is_not_waited_for(tmp_path):
    """The process is killed with -9 between its hold and its record; the next launch goes on at once."""
    store = open_store(tmp_path, create=True)
    run = store.create_run("gpt2")
    launch = begin_launch(run, deadline=0)
    record = save(launch, 500, [b"weights"])
    code = f"""
        import os, signal
        from holdfast.catalog.launches import Launch
        from holdfast.catalog.saves import begin_save
        from holdfast.catalog.store import open_store
        begin_save(Launch(open_store({str(tmp_path)!r}).run(1), 1), 0, 600)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env)
    assert done.returncode == -signal.SIGKILL
    assert len(find_saves(store, run.number)) == 1
    begin_launch(run, deadline=600, report=pytest.fail)
    assert run.lineage().head == Target.of(record.address)
    assert find_saves(store, run.number) == []
    assert isinstance(run.published().aborted[0], Aborted)


def test_a_save_that_was_committed_before_it_was_given_up_stays_committed(run, monkeypatch):
    """The saver is stopped after its record and before it removes its hold; nobody waits for it either."""
    monkeypatch.setattr("holdfast.catalog.saves._release", lambda attempt: None)
    record = save(begin_launch(run, deadline=0), 600, [b"weights"])
    assert len(find_saves(run.store, run.number)) == 1
    begin_launch(run, deadline=600, report=pytest.fail)
    assert run.records() == [record]


def test_a_save_begun_after_a_newer_launch_is_fenced_and_leaves_no_hold(run):
    first = begin_launch(run, deadline=0)
    begin_launch(run, deadline=0)
    with pytest.raises(Fenced, match="launch 1 of run-001"):
        begin_save(first, 0, 600)
    assert find_saves(run.store, run.number) == []


def test_who_is_fenced_is_told_where_the_other_launch_is_and_since_when(run):
    """Not the namespace and the machine that follow the name of the host."""
    first = begin_launch(run, deadline=0)
    attempt = begin_save(first, 0, 500)
    record = fill(attempt, 500, [b"weights"])
    there = msgspec.structs.replace(owners.this_process(), host="node17/4026531836/0123abcd", pid=4711)
    begin_launch(Run(replace(run.store, whoami=lambda: there), run.info), deadline=0)
    since = run.launches()[-1].created
    who = re.escape(f"a newer launch owns the run: launch 2 on node17 (pid 4711, since {since})")
    with pytest.raises(Fenced, match=who) as begun:
        begin_save(first, 0, 600)
    with pytest.raises(Fenced, match=who):
        attempt.publish(record)
    assert len(str(begun.value)) < 2 * 120


def test_a_launch_whose_file_is_lost_is_named_by_its_number(run):
    assert launches.described(run, 7) == "launch 7"


def test_an_older_launch_that_wakes_up_late_does_not_give_up_the_saves_of_a_newer_one(run):
    """It created its file, was paused, and looks for holds only now."""
    newer = [begin_launch(run, deadline=0) for _ in range(2)][-1]
    attempt = begin_save(newer, 0, 600)
    record = fill(attempt, 600, [b"weights"])
    launches._drain(launches.Launch(run, 1), 0, pytest.fail)
    assert attempt.publish(record) == record


def test_the_time_to_wait_is_twice_what_the_last_save_took_and_a_minute_for_the_first_one(run):
    assert drain_seconds(run) == 60
    launch = begin_launch(run, deadline=0)
    waits = []
    for step, work, durable in ((1, 100.0, 0.0), (2, 20.0, 0.0), (3, 20.0, 80.0), (4, 0.1, 0.2)):
        with begin_save(launch, 0, step) as attempt:
            record = fill(attempt, step, [b"weights"])
            slow = Timing(stall=999, staging=work, hashing=work, writing=work, durable=durable)
            attempt.publish(type(record)(**{**_fields(record), "timing": slow}))
        waits.append(drain_seconds(run))
    assert waits == [600, 120, 160, 5]


def test_a_timeline_is_opened_once(run):
    launch = begin_launch(run, deadline=0)
    launch.record_start(0, None, "nothing was there")
    with pytest.raises(ObjectExists):
        launch.record_start(0, None, "again")


def _fields(record):
    return {name: getattr(record, name) for name in record.__struct_fields__}
