"""The demo kills what it says it kills, and would notice if something were lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest
import typer
from typer.testing import CliRunner

from holdfast.cli.app import run
from holdfast.cli.demo import command, script
from holdfast.cli.demo_plan import Kill, Result, differences, plan
from holdfast.cli.demo_supervisor import Ledger, Supervisor, Trainer
from holdfast.errors import HoldfastError, InvalidInput, RestoreFailed, StorageUnavailable

app = typer.Typer()
app.command()(command)

RESULT = Result(step=24, loss=3.25, weights="aa", tensors="bb")


def _script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "trainer.py"
    path.write_text(text)
    return [sys.executable, "-u", str(path)]


def _wait(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_equal_seeds_plan_equal_kills():
    assert plan(kills=6, steps=120, seed=7) == plan(kills=6, steps=120, seed=7) != plan(kills=6, steps=120, seed=8)


@pytest.mark.parametrize("seed", range(20))
def test_kills_move_forward_and_leave_room_for_a_last_save(seed):
    steps = [moment.step for moment in plan(kills=6, steps=120, seed=seed)]
    assert steps == sorted(steps)
    assert steps[0] >= 1
    assert steps[-1] + 10 < 120


def test_half_of_the_kills_are_inside_saves():
    assert sum(moment.in_save for moment in plan(kills=6, steps=120, seed=0)) == 3


def test_no_kills_is_a_plan_too():
    assert plan(kills=0, steps=10, seed=0) == []


@pytest.mark.parametrize("field", ["step", "loss", "weights", "tensors"])
def test_every_difference_is_named(field):
    other = Result(**{**{f: getattr(RESULT, f) for f in Result.__slots__}, field: "other"})
    (text,) = differences(other, RESULT)
    assert text.startswith(field)
    assert differences(RESULT, RESULT) == []


def test_a_kill_reaches_the_processes_that_the_trainer_started(tmp_path):
    """Loader workers must not outlive the trainer and hold its files."""
    command = _script(
        tmp_path,
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "print('step 1 loss 2.5')\ntime.sleep(60)\n",
    )
    with Trainer(command, tmp_path / "log") as trainer:
        _wait(lambda: trainer.step == 1)
        trainer.kill()
    child = int((tmp_path / "pid").read_text())
    _wait(lambda: _is_gone(child))
    assert trainer.first_step_after > 0


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it has ended, or is a zombie of another test


def test_leaving_the_block_leaves_no_process(tmp_path):
    with pytest.raises(KeyboardInterrupt), Trainer(_script(tmp_path, "import time; time.sleep(60)"), tmp_path / "log"):
        raise KeyboardInterrupt
    assert [p for p in psutil.Process().children() if str(tmp_path) in _command(p)] == []


def test_a_training_that_fails_by_itself_is_reported_with_its_last_words(tmp_path):
    command = _script(tmp_path, "print('step 1 loss 2.5')\nraise SystemExit('out of memory')\n")
    supervisor = Supervisor(command, Ledger(tmp_path / "store"), tmp_path / "log", lambda step, kill: None)
    with pytest.raises(HoldfastError, match=r"exit code 1(?s:.*)out of memory"):
        supervisor.run()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = CliRunner().invoke(app, ["--folder", str(tmp_path)])
    assert done.exit_code == 2
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_difference_ends_with_an_exit_code_and_says_so(tmp_path, monkeypatch):
    """The demo itself is a check; here is that it can fail."""
    from holdfast.cli import demo as module
    from holdfast.cli.demo_plan import Outcome

    kill = Kill(step=12, in_save=True, resumed_at=10, seconds=1.0)
    killed = Outcome(result=RESULT, seconds=1.0, saved=[], kills=[kill])
    other = Result(step=24, loss=3.5, weights="ac", tensors="bb")
    monkeypatch.setattr(module, "_train_twice", lambda *a, **k: (killed, Outcome(result=other, seconds=1.0, saved=[])))
    done = CliRunner().invoke(app, ["--folder", str(tmp_path / "new")])
    assert done.exit_code == RestoreFailed.exit_code
    assert "NOT EQUAL" in done.output
    assert max(map(len, done.output.splitlines()), default=0) <= 200


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    """The whole demo, small: two kills, one of them planned inside a save."""
    words = [sys.executable, "-c", "import typer; from holdfast.cli.demo import command; typer.run(command)"]
    words += ["--steps", "24", "--kills", "2", "--seed", "3", "--json", "--folder", str(tmp_path / "demo")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["equal"]
    assert len(report["killed"]["kills"]) == 2
    assert report["killed"]["result"]["step"] == 24
    assert report["killed"]["result"]["loss"] > 0
    assert all(kill["resumed_at"] <= kill["step"] for kill in report["killed"]["kills"])


def test_the_example_is_short_and_goes_into_the_wheel():
    """What the demo trains is the script that a user reads."""
    assert len(script().read_text().splitlines()) < 120
    root = script().parents[1]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"examples/gpt.py": "holdfast/cli/_gpt.py"}


def test_a_file_is_no_folder_for_the_demo(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert run(["demo", "--folder", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert run(["demo", "--folder", str(tmp_path / "file" / "below")]) == StorageUnavailable.exit_code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_without_torch_the_demo_is_an_error_like_any_other(monkeypatch, capsys, words):
    monkeypatch.setattr("holdfast.cli.demo.find_spec", lambda name: None)
    assert run(["demo", *words]) == InvalidInput.exit_code
    found = capsys.readouterr()
    assert found.out == ""
    assert "pip install 'holdfast[torch]'" in found.err
    if words:
        assert json.loads(found.err)["error"] == InvalidInput.kind
