"""What is printed fits the screen, loses nothing, and can do nothing to the terminal."""

from __future__ import annotations

import json
import random

import pytest
from rich.cells import cell_len

from holdfast.cli import output

from .conftest import EVIL

LOOKS = ("runs", "ls run-001", "ls run-002", "show run-002@2", "show baseline", "log run-001", "why run-001", "tag")


@pytest.fixture(autouse=True)
def eighty(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", [*LOOKS, "verify", "gc --dry-run", "show baseline --all"])
def test_every_line_fits_and_holds_no_control_character(cli, trained, command):
    found = cli(trained, *command.split())
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert [line for line in lines if not all(letter.isprintable() for letter in line)] == []
    assert [line for line in lines if line != line.rstrip()] == []
    if command in LOOKS:
        assert [line for line in lines[1:] if cell_len(line) > 80] == []


@pytest.mark.parametrize("command", [*LOOKS, "verify", "gc --dry-run", "why run-001 --keep latest(1)"])
def test_json_is_one_document_in_ascii(cli, trained, command):
    found = cli(trained, *command.split(), "--json")
    assert (found.code, found.err) == (0, "")
    assert found.out.isascii()
    assert isinstance(json.loads(found.out), dict)
    assert "\x1b" not in found.out


def test_text_of_the_user_comes_out_of_json_as_it_went_in(cli, trained):
    assert cli(trained, "tag", "--json").document["tags"][0]["note"] == EVIL
    assert EVIL in cli(trained, "ls", "run-002", "--json").document["checkpoints"][0]["metrics"]


def test_markup_is_shown_as_it_is(cli, trained):
    assert "[bold]b[/bold]" in cli(trained, "tag").out.replace("\n", "")


def test_a_long_run_name_can_still_be_read_whole(cli, trained, store):
    name = store.run(3).info.name
    rows = cli(trained, "runs").out.splitlines()
    start = rows[0].index("name")
    column = [row[start : rows[0].index("step") - 1].strip() for row in rows[1:]]
    assert name in "".join(column).replace(" ", "")


def test_a_wider_terminal_is_used(cli, trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    longest = max(map(len, cli(trained, "why", "run-001").out.splitlines()))
    assert 80 < longest <= 200


SENTENCES = ("x: ", "run-001: ", "damaged: ", "no ")
"""Lines that are no table: a terminal breaks them, and a pipe has them whole."""


@pytest.mark.parametrize("width", [60, 40])
@pytest.mark.parametrize("command", ["runs", "ls run-001", "ls run-002", "log run-001", "tag", "show baseline"])
def test_tables_fit_a_narrow_terminal_too(cli, trained, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = cli(trained, *command.split()).out.splitlines()
    assert [line for line in lines if cell_len(line) > width and not line.startswith(SENTENCES)] == []


@pytest.mark.parametrize("seed", range(8))
def test_a_table_of_anything_fits_and_loses_no_letter(capsys, seed):
    chance = random.Random(seed)
    print(f"seed {seed}")
    capsys.readouterr()
    letters = "ab 漢é\u0301x-=  \n\x1b"
    columns = [f"c{n}" for n in range(chance.randint(1, 6))]
    rows = [["".join(chance.choices(letters, k=chance.choice((0, 3, 30, 90)))) for _ in columns] for _ in range(9)]
    output.table(columns, rows, right=columns[:1])
    out = capsys.readouterr().out
    assert max(map(cell_len, out.splitlines())) <= 80
    wanted = "".join(columns) + "".join(output.plain(cell) for row in rows for cell in row)
    assert sorted(out.replace("\n", "").replace(" ", "")) == sorted(wanted.replace(" ", ""))


def test_numbers_stand_on_the_right(capsys):
    output.table(("n", "x"), [(1, "a"), (100, "b")], right=("n",))
    assert capsys.readouterr().out.splitlines() == ["  n  x", "  1  a", "100  b"]


def test_an_empty_table_is_its_header(capsys):
    output.table(("one", "two"), [])
    assert capsys.readouterr().out == "one  two\n"


def test_what_json_cannot_say_is_said_in_strings(capsys):
    output.print_json({"a": float("nan"), "b": [float("-inf")], "c": {1: "caf\udce9 é"}})
    assert json.loads(capsys.readouterr().out) == {"a": "nan", "b": ["-inf"], "c": {"1": "caf\\udce9 é"}}


def test_a_bar_is_silent_where_there_is_no_terminal(capsys):
    with output.bar("reading", 10) as progress:
        progress(10)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with output.bar("reading", 10) as progress:
        progress(10)
    assert "reading" in capsys.readouterr().err


def test_a_long_error_fits_on_a_screen(capsys):
    output.explain("\n".join(f"line {n}" for n in range(500)), "corrupt")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: line 0"
    assert len(lines) <= 24
    assert lines[-1] == "... and 480 more lines [corrupt]"


def test_an_error_shows_escapes_of_what_it_quotes(capsys):
    output.explain(f"no run {EVIL!s}", "not-found")
    assert "\x1b" not in capsys.readouterr().err
