"""Exit codes are documented, errors are short and typed, and nothing ends in a traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import errors
from holdfast.cli.app import CANCELLED, PIPE_CLOSED, run

MAIN = "from holdfast.cli import main; main()"
WRONG_CALL = 2


def spawn(*words: object, program: str = MAIN, **options) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", program, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **{**pipes, **options})


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ("show gpt2-smal", errors.UnknownReference, "did you mean gpt2-small"),
        ("ls gpt2-smal", errors.UnknownReference, "did you mean gpt2-small"),
        ("show basline", errors.UnknownReference, "did you mean baseline"),
        ("show gpt2-small@5", errors.UnknownReference, "nearest: 2, 4, 6, 8"),
        ("show gpt2-small@best:los", errors.UnknownReference, "did you mean loss"),
        ("show run-009@last", errors.UnknownReference, "run-003"),
        ("ls run-009", errors.UnknownReference, "run-003"),
        ("show a/b", errors.InvalidReference, "a/b"),
        ("ls run-" + "9" * 5000, errors.InvalidReference, "1 to 400 characters"),
        ("fork baseline last", errors.InvalidName, "last"),
        ("tag baseline @x", errors.InvalidName, "@x"),
        ("tag baseline", errors.InvalidInput, "name"),
        ("tag --delete basline", errors.UnknownReference, "basline"),
        ("gc run-001 --keep every(", errors.InvalidPolicy, "every("),
        ("verify nothing-like-this", errors.UnknownReference, "nothing-like-this"),
    ],
)
def test_an_error_has_its_code_its_words_and_nothing_on_standard_output(cli, trained, words, error, said):
    found = cli(trained, *words.split())
    assert (found.code, found.out) == (error.exit_code, "")
    assert said in found.err
    assert found.err.endswith(f"[{error.kind}]\n")
    assert "Traceback" not in found.err
    assert len(found.err.splitlines()) <= 24
    as_json = cli(trained, *words.split(), "--json")
    assert as_json.out == ""
    assert json.loads(as_json.err)["error"] == error.kind
    assert json.loads(as_json.err)["exit_code"] == as_json.code == error.exit_code


@pytest.mark.parametrize("words", ["", "--json"])
@pytest.mark.parametrize("command", ["runs", "ls", "log", "why", "verify", "gc", "tag", "show x", "rm x", "fork x y"])
def test_a_store_that_is_not_there_is_said_and_not_made(cli, tmp_path, command, words):
    found = cli(tmp_path / "nowhere", *command.split(), *words.split())
    assert (found.code, found.out) == (errors.NotFound.exit_code, "")
    assert "nowhere" in found.err
    assert not (tmp_path / "nowhere").exists()


def test_a_store_next_door_is_named(cli, place):
    found = cli(place.parent / "checkpoint", "ls")
    assert f"did you mean {place}" in found.err


def test_a_file_is_no_store(cli, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"x")
    found = cli(tmp_path / "model.pt", "ls")
    assert found.code == errors.StorageUnavailable.exit_code
    assert "is a file" in found.err


def test_a_folder_of_something_else_is_no_store(cli, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.bin").write_bytes(b"x")
    found = cli(tmp_path, "ls")
    assert found.code == errors.Missing.exit_code
    assert "something else" in found.err


def test_an_empty_folder_is_no_store(cli, tmp_path):
    assert cli(tmp_path, "ls").code == errors.NotFound.exit_code


def test_a_store_without_runs_is_no_error_to_list(cli, tmp_path):
    from holdfast.catalog.store import open_store

    open_store(tmp_path / "new", create=True)
    assert cli(tmp_path / "new", "runs").out.startswith("no runs in")
    assert cli(tmp_path / "new", "runs", "--json").document["runs"] == []
    assert cli(tmp_path / "new", "verify").code == 0
    assert cli(tmp_path / "new", "gc").code == 0
    assert cli(tmp_path / "new", "ls").code == errors.UnknownReference.exit_code


@pytest.mark.parametrize("words", ["lss", "ls --frobnicate", "show", "rm", "fork baseline"])
def test_a_wrong_call_is_explained_and_ends_with_two(cli, trained, words):
    found = cli(trained, *words.split())
    assert (found.code, found.out) == (WRONG_CALL, "")
    assert "Usage: holdfast" in found.err


def test_the_store_is_checkpoints_here_by_default(place, monkeypatch, capsys):
    monkeypatch.chdir(place.parent)
    assert place.name == "checkpoints"
    assert run(["runs"]) == 0
    assert "gpt2-small" in capsys.readouterr().out


def test_the_codes_of_the_page_are_those_of_the_program():
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert {0, 1, WRONG_CALL, CANCELLED, PIPE_CLOSED} <= codes


def test_everything_works_where_torch_and_numpy_are_not_installed(place):
    """One process runs all commands: importing is what takes time."""
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from holdfast.cli.app import run
for words in sys.stdin.read().splitlines():
    print(run([*words.split(), "--store", sys.argv[1]]), words, flush=True)
assert not {"torch", "numpy"} & sys.modules.keys()
"""
    commands = (
        "runs",
        "ls run-001",
        "show baseline --all",
        "log run-001",
        "why run-001",
        "verify --deep",
        "tag run-001@4 release",
        "tag",
        "fork release other",
        "rm run-001@6 --dry-run",
        "rm run-001@6",
        "gc --dry-run",
        "gc",
        "runs --json",
    )
    process = spawn(place, program=program, stdin=subprocess.PIPE)
    out, err = process.communicate("\n".join(commands), timeout=300)
    assert (process.returncode, err) == (0, "")
    ended = [line for line in out.splitlines() if re.match(r"\d+ [a-z]+", line)]
    assert [line for line in ended if line in {f"0 {words}" for words in commands}] == [f"0 {one}" for one in commands]


def test_a_reader_that_goes_away_ends_the_command_quietly(place):
    """As ``holdfast log | head -1`` does, with a pipe that is gone before the first line."""
    read, written = os.pipe()
    os.close(read)
    process = spawn("ls", "run-001", "--store", place, stdout=written)
    os.close(written)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (141, "")


def test_head_gets_its_line_and_no_traceback_follows(place):
    process = spawn("show", "baseline", "--all", "--store", place)
    first = process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(300) in (0, 141)  # a short output may be in the pipe before it is closed
    assert first.split() == ["field", "value"]
    assert err == ""


def test_control_c_ends_with_130_and_leaves_a_whole_store(place, cli):
    """In the middle of a sweep that waits: the tombstones go too, so that the next save finds nothing in its way."""
    program = """
import sys, time
from holdfast.catalog.deleting import sweeps
def settle(*_, **__):
    print("waiting", flush=True)
    time.sleep(60)
sweeps.settle = settle
from holdfast.cli import main
main()
"""
    process = spawn("rm", "run-001@6", "--store", place, program=program)
    assert process.stdout.readline() == "waiting\n"
    assert list((place / "catalog/sweeps").iterdir())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert not list((place / "catalog/sweeps").glob("*.json"))
    assert cli(place, "verify", "--deep").code == 0
    assert cli(place, "show", "run-001@6").code == 0


def test_a_terminal_without_unicode_gets_escapes(place):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = spawn("show", "run-002@2", "--store", place, "--all", env=environment)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert out.isascii()


def test_a_disk_that_fails_is_a_storage_error(cli, place, monkeypatch):
    def broken(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("holdfast.storage.local.os.scandir", broken)
    found = cli(place, "ls")
    assert (found.code, found.out) == (errors.StorageUnavailable.exit_code, "")
    assert "Input/output error" in found.err


def test_help_of_every_command_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("runs", "ls", "show", "log", "verify", "why", "tag", "fork", "rm", "gc"):
        assert run([name, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80, name


@pytest.mark.parametrize(
    "words",
    [
        *(["ls", ""], ["log", ""], ["why", ""], ["verify", ""], ["gc", ""], ["plan", "--over", ""], ["show", ""]),
        *(["rm", ""], ["recode", "", "--codec", "raw"], ["fork", "", "x"], ["fork", "baseline", ""]),
        *(
            ["tag", ""],
            ["tag", "", "x"],
            ["tag", "baseline", ""],
            ["tag", "--delete", ""],
            ["gc", "run-001", "--keep", ""],
        ),
    ],
    ids=" ".join,
)
def test_an_empty_word_is_refused_and_changes_nothing(cli, trained, words):
    """As an unset variable of the shell gives it; fork made a run of the name of another one."""
    before = sorted(trained.rglob("*"))
    found = cli(trained, *words)
    assert (found.code != 0, found.out) == (True, "")
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize("command", ["runs", "ls", "gc", "tag"])
def test_an_empty_store_is_not_the_folder_here(cli, trained, command, monkeypatch):
    monkeypatch.chdir(trained)
    found = cli("", command)
    assert (found.code, found.out) == (errors.InvalidInput.exit_code, "")
