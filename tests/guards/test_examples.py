"""Code in pages runs as it stands there."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.catalog.verifying.verify import verify

PRELUDE = """
import pathlib
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
config = {"lr": 0.1}
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
loader = DataLoader(TensorDataset(torch.randn(32, 3), torch.randn(32, 1)), batch_size=4, shuffle=True)
pathlib.Path("tokenizer.json").write_text("{}")

def train_step(batch):
    loss = functional.mse_loss(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss

def validate(model):
    with torch.no_grad():
        return sum(functional.mse_loss(model(x), y).item() for x, y in DataLoader(loader.dataset, batch_size=8))
"""
"""What a page may take for granted: a model, an optimizer, a scheduler, a loader, a config and a train step."""

SMALL = {"20_000": "40", "steps=500": "steps=10", "@500": "@20"}
"""Numbers of real trainings, and what the test runs instead."""

Run = Callable[..., subprocess.CompletedProcess[str]]


def blocks(text):
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """The commands of a page, without what it says about them; not the demo, which has tests of its own."""
    found = re.findall(r"^    (holdfast .*?)(?:  .*)?$", text, re.MULTILINE)
    return [command for command in found if command != "holdfast demo"]


def _small(text: str) -> str:
    for real, small in SMALL.items():
        text = text.replace(real, small)
    return text


def _script(text: str) -> str:
    code = "\n".join(blocks(text))
    return _small((PRELUDE if "model" in code else "") + code)


def _page_names(root):
    return ["README.md", *sorted(str(p.relative_to(root)) for p in (root / "docs").rglob("*.md"))]


def pytest_generate_tests(metafunc):
    if "page" in metafunc.fixturenames:
        root = metafunc.config.rootpath
        names = [name for name in _page_names(root) if (root / name).exists() and blocks((root / name).read_text())]
        metafunc.parametrize("page", names)


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """Runs Python code in an empty folder; gives what it printed, and fails when it fails."""

    def start(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(root / "src")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    return start


def test_the_examples_of_a_page_run(page, pages, run):
    run(_script(pages[page]))


def test_the_readme_keeps_its_word_about_starting_again_and_about_its_commands(pages, run, tmp_path):
    """One training for both, since each start of torch costs seconds."""
    script = _small(PRELUDE + blocks(pages["README.md"])[0])
    run(script)
    made = [record.id for record in holdfast.open(tmp_path / "checkpoints").run(1).records()]
    assert made
    assert len(commands(pages["README.md"])) >= 10
    for command in commands(pages["README.md"]):
        done = run("from holdfast.cli import main; main()", *shlex.split(_small(command))[1:])
        assert done.stdout.strip(), f"{command} said nothing"
    run(script)
    assert [record.id for record in holdfast.open(tmp_path / "checkpoints").run(1).records()] == made


def test_the_readme_shows_ten_lines_or_so(pages):
    """The first example is what a user has to add to a script, no more."""
    assert len(blocks(pages["README.md"])[0].splitlines()) <= 14


@pytest.mark.parametrize("line", ["make demo", "make test", "run=", "keep="])
def test_the_readme_begins_with_what_a_newcomer_types(pages, line):
    assert line in "\n".join(pages["README.md"].splitlines()[:30])


def _walk(folder: Path, *, backwards: bool = False) -> Iterator[Path]:
    """Files in the order of a copying program, which looks into a folder when it comes to it."""
    for place in sorted(folder.iterdir(), reverse=backwards):
        if place.is_dir():
            yield from _walk(place, backwards=backwards)
        elif not place.name.startswith(".tmp-"):
            yield place


@pytest.mark.parametrize("backwards", [False, True])
def test_a_sorted_copy_of_a_store_that_is_being_written_is_whole(tmp_path, backwards):
    """The README says so of rsync. The other way round shows that the order is what does it."""
    source, target = tmp_path / "source", tmp_path / "target"
    model = torch.nn.Linear(300, 4)
    copied: list[str] = []
    with holdfast.Checkpointer(
        source, run="toy", state={"model": model}, save=holdfast.every(steps=1), keep=holdfast.latest(1000)
    ) as ckpt:
        walk: Iterator[Path] = iter(())
        for step in ckpt.steps(60):
            if step == 3:
                walk = _walk(source, backwards=backwards)
            for path in itertools.islice(walk, 4):
                copied.append(str(path.relative_to(source)))
                (target / copied[-1]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / copied[-1])
            torch.nn.init.normal_(model.weight)
        assert next(walk, None) is None, "the copy took longer than the training"
    records = [name for name in copied if "/records/" in name]
    assert 3 <= len(records) < 60
    assert verify(holdfast.open(target), deep=True).ok is not backwards
