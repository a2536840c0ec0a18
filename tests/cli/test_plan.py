"""``holdfast plan`` on a store as training left it; what is planned is tested with the policies."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from holdfast.catalog.store import open_store

from .conftest import EVIL, flip


@pytest.fixture(autouse=True)
def eighty(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def plan(cli, place, *words):
    found = cli(place, "plan", *words, "--json")
    assert found.code == 0, found.err
    return found.document


def test_the_policies_of_the_run_are_replayed_where_none_are_typed(cli, trained):
    found = plan(cli, trained, "--over", "run-001")
    assert found["policies"] == {"save": "every(steps=2)", "keep": "latest(9)"}
    assert found["planned"]["saves"] == found["real"]["saves"] == 4
    assert [one["step"] for one in found["planned"]["kept"]] == [2, 4, 6, 8]
    assert found["planned"]["written_bytes"] == found["real"]["written_bytes"] > 0


def test_other_policies_are_replayed(cli, trained):
    found = plan(
        cli, trained, "--over", "gpt2-small", "--save", "every(steps=4) | at(steps=[3])", "--keep", "latest(1)"
    )
    assert found["planned"]["saves"] == 3
    assert found["planned"]["estimated"] == 1
    # Launch 2 stands on step 4 until its end, and the training ended at 8.
    assert [one["step"] for one in found["planned"]["kept"]] == [4, 8]
    assert found["planned"]["kept"][1]["because"].endswith("latest(1)")
    assert found["planned"]["peak_bytes"] >= found["planned"]["final_bytes"] > 0


def test_a_metric_to_be_feared_is_shown_as_text(cli, trained):
    found = cli(trained, "plan", "--over", "run-002", "--save", 'best("loss")')
    assert found.code == 0
    assert EVIL not in found.out


@pytest.mark.parametrize("words", ["", "--over run-001", "--save auto()|at(steps=[3]) --keep at_most('1kB')|latest(3)"])
def test_every_line_fits_and_holds_no_control_character(cli, trained, words):
    found = cli(trained, "plan", *(["--over", "run-001"] if "over" not in words else []), *words.split())
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert [line for line in lines if not all(letter.isprintable() for letter in line)] == []
    assert [line for line in lines if cell_len(line) > 80 and not line.startswith(("save: ", "keep: ", "note: "))] == []
    assert "as planned" in found.out


def test_planning_changes_nothing(cli, place):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    plan(cli, place, "--over", "run-001", "--save", "at(steps=[2])", "--keep", "latest(1)")
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()} == before


def test_a_deleted_checkpoint_is_known_from_the_journal(cli, place):
    cli(place, "rm", "run-001@6")
    found = plan(cli, place, "--over", "run-001")
    assert (found["real"]["saves"], found["planned"]["saves"]) == (4, 4)
    assert [one["step"] for one in found["real"]["kept"]] == [2, 4, 8]


def test_what_cannot_be_read_is_said_and_left_out(cli, place, records):
    flip(place / records[1].name)
    found = cli(place, "plan", "--over", "run-001")
    assert found.code == 0
    assert f"left out: {records[1].name}" in found.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save", "latest(3)"], "what to keep, not when to save"),
        (["--keep", "auto()"], "when to save, not what to keep"),
        (["--save", "often"], "cannot read the policy"),
    ],
    ids=repr,
)
def test_a_policy_that_cannot_serve_is_refused(cli, trained, words, message):
    found = cli(trained, "plan", "--over", "run-001", *words)
    assert found.code != 0
    assert message in found.err


def test_a_run_without_a_policy_on_record_wants_one_typed(cli, trained):
    """A fork that was never trained has no launch."""
    found = cli(trained, "plan", "--over", "run-003")
    assert found.code != 0
    assert "run-003 has no save policy on record; say one with --save" in found.err
    assert (
        plan(cli, trained, "--over", "run-003", "--save", "every(steps=1)", "--keep", "latest(1)")["planned"]["saves"]
        == 0
    )


def test_a_run_that_is_not_there_is_an_error(cli, trained):
    assert open_store(trained).numbers()[-1] == 3
    assert cli(trained, "plan", "--over", "run-009").code != 0


def test_an_end_that_came_with_a_checkpoint_is_no_going_back(cli, tmp_path):
    """Five jobs in a chain, each pre-empted and saved, had to go back four times."""
    import torch

    from holdfast import Checkpointer, every, latest

    for total in (4, 8, 12):
        model = torch.nn.Linear(2, 1)
        options = {"save": every(steps=2), "keep": latest(9), "saver": "inline"}
        with Checkpointer(tmp_path / "s", run="a", state={"model": model}, **options) as ckpt:
            for _ in ckpt.steps(total):
                pass
    text = cli(tmp_path / "s", "plan").out
    assert re.search(r"had to go back +0 times +0 times", text)
    assert re.search(r"steps lost by that +0 +0", text)


def test_what_a_replay_does_not_know_is_said_below_the_table(cli, trained):
    """The checkpoints that tags, pins, forks and good marks keep were missing from the plan without a word."""
    said = "1 tag, 1 pinned checkpoint, 1 good checkpoint, 1 fork: the run has these, a replay has not"
    assert said in " ".join(plan(cli, trained, "--over", "run-001", "--keep", "latest(1)")["notes"])
    assert f"note: {said}" in cli(trained, "plan", "--over", "run-001").out
    assert plan(cli, trained, "--over", "run-002")["notes"] == []


def test_what_was_left_out_is_in_the_document(cli, place, records):
    flip(place / records[1].name)
    found = cli(place, "plan", "--over", "run-001", "--json")
    assert found.document["warnings"] == found.err.splitlines()
    assert f"left out: {records[1].name}" in found.document["warnings"][0]
