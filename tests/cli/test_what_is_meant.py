"""What a command takes for the run and the checkpoint that are meant, and what it says of those it cannot read."""

from __future__ import annotations

import datetime
import json

import pytest

from holdfast import __version__
from holdfast.catalog import layout
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.marks import add_metrics
from holdfast.cli.app import run
from holdfast.errors import AmbiguousReference, InvalidInput, StillNeeded
from holdfast.ids import RunNumber

from .conftest import flip

RUN = RunNumber(1)


def steps(cli, place) -> list[int]:
    return [row["step"] for row in cli(place, "ls", "run-001", "--json").document["checkpoints"]]


# --- The newest run


@pytest.fixture
def lost(place):
    """The ``run.json`` of a run that is newer than all others is lost, and its records are there."""
    records = (place / layout.records_folder(RunNumber(2))).parent
    records.rename(records.with_name("004"))
    (records.with_name("004") / "run.json").unlink()
    return place


@pytest.mark.parametrize("words", ["ls", "show @last", "log", "why", "verify @2", "fork @2 x", "tag @2 x", "rm @2"])
def test_an_older_run_is_not_taken_for_the_newest_one_that_is_lost(cli, lost, words):
    """As in Python; rm deleted checkpoints of the run before it."""
    found = cli(lost, *words.split())
    assert (found.code, found.out) == (AmbiguousReference.exit_code, "")
    assert "the newest run may be run-003 or run-004" in found.err
    assert "write run-003 if that is meant" in found.err


def test_what_is_named_is_taken_whatever_else_is_lost(cli, lost):
    assert cli(lost, "ls", "run-003").code == 0
    assert cli(lost, "verify", "run-001@8").code == 0


# --- What rm takes


@pytest.mark.parametrize(
    ("words", "place_"),
    [("gpt2-small", 8), ("run-001", 8), ("run:gpt2-small", 8), ("run-001@last", 8), ("run-001@good", 4)],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_rm_of_what_means_another_checkpoint_tomorrow_is_refused(cli, place, words, place_, dry):
    """A run alone: its newest checkpoint was deleted, the one that a resume would have taken."""
    cli(place, "tag", "--delete", "baseline")
    found = cli(place, "rm", words, *dry)
    assert (found.code, found.out) == (InvalidInput.exit_code, "")
    assert f"{words}: this is run-001@{place_}" in found.err
    assert f"write run-001@{place_} to remove that one" in found.err
    assert steps(cli, place) == [8, 6, 4, 2]


def test_rm_says_how_to_let_go_of_a_pin_and_that_works(cli, place):
    found = cli(place, "rm", "run-001@2")
    assert found.code == StillNeeded.exit_code
    assert "holdfast tag --unpin REFERENCE" in found.err
    assert "holdfast tag --delete" not in found.err
    assert cli(place, "tag", "--unpin", "run-001@2", "--json").document["lifted"] is True
    assert cli(place, "tag", "--unpin", "run-001@2").out.endswith("has no pin\n")
    assert cli(place, "rm", "run-001@2").code == 0
    assert steps(cli, place) == [8, 6, 4]


def test_rm_says_how_to_let_go_of_a_tag(cli, place):
    said = cli(place, "rm", "baseline").err
    assert "holdfast tag --delete NAME" in said
    assert "--unpin" not in said


# --- Where a run stands


@pytest.fixture
def hidden(place, store, records):
    """The training went back to step 4, and what says so cannot be read."""
    begin_launch(store.run(1), deadline=0).record_start(0, records[1].address, "test")
    flip(place / layout.start(RUN, 3, 0))
    return place


def test_where_a_run_stands_is_not_known_while_its_newest_start_is_damaged(cli, hidden):
    """The star stood on the checkpoint that the rollback had left."""
    found = cli(hidden, "ls", "run-001")
    start = layout.start(RUN, 3, 0)
    assert f"damaged: {start}" in found.out
    assert f"where the run stands only {start} says" in found.out
    assert not [line for line in found.out.splitlines() if line.startswith(("*", "x"))]
    document = cli(hidden, "ls", "run-001", "--json").document
    assert [(row["head"], row["on_line"]) for row in document["checkpoints"]] == [(None, None)] * 4
    assert [one["name"] for one in document["damaged"]] == [start]


def test_runs_names_no_step_for_a_run_whose_newest_start_is_damaged(cli, hidden):
    document = cli(hidden, "runs", "--json").document
    first = document["runs"][0]
    assert (first["step"], first["checkpoints"], first["damaged"]) == (None, 4, 1)
    assert layout.start(RUN, 3, 0) in [one["name"] for one in document["damaged"]]


def test_runs_says_how_much_of_a_run_is_damaged(cli, place, records):
    flip(place / records[1].name)
    flip(place / records[2].name)
    assert "damaged: 2 objects of run-001; see 'holdfast ls run-001'" in cli(place, "runs").out
    document = cli(place, "runs", "--json").document
    assert [row["damaged"] for row in document["runs"]] == [2, 0, 0]
    assert {one["name"] for one in document["damaged"]} == {records[1].name, records[2].name}


def test_runs_tells_metrics_that_came_later(cli, place, store, records):
    add_metrics(store, records[3].address, {"val_loss": 0.25}, by="user")
    assert cli(place, "runs", "--json").document["runs"][0]["metrics"]["val_loss"] == 0.25


# --- Documents for programs


def test_the_time_of_a_tag_is_a_time(cli, place):
    """It was "5 min ago"."""
    (tag,) = cli(place, "tag", "--json").document["tags"]
    assert set(tag) == {"tag", "target", "created", "note"}
    assert datetime.datetime.fromisoformat(tag["created"]).tzinfo is not None


@pytest.mark.parametrize("words", ["lss", "ls --frobnicate", "rm", "fork baseline", "log --tail -1"])
def test_a_wrong_call_is_a_document_too(cli, trained, words):
    found = cli(trained, *words.split(), "--json")
    document = json.loads(found.err)
    assert (found.code, found.out, set(document)) == (2, "", {"error", "message", "exit_code"})
    assert (document["error"], document["exit_code"]) == ("usage", 2)
    assert document["message"]


def test_the_version_can_be_asked_for(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr() == (f"holdfast {__version__}\n", "")


def test_no_command_at_all_is_explained(capsys):
    assert run([]) == 2
    assert "--version" in "".join(capsys.readouterr())
