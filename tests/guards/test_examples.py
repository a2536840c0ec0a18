"""Code in pages runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

PRELUDE = """
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
config = {"lr": 0.1}
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
loader = DataLoader(TensorDataset(torch.randn(32, 3), torch.randn(32, 1)), batch_size=4, shuffle=True)

def train_step(batch):
    loss = functional.mse_loss(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss
"""
"""What a page may take for granted: a model, an optimizer, a scheduler, a loader, a config and a train step."""

LARGE = {"20_000": "40", "steps=500": "steps=10"}
"""Numbers of real trainings, and what the test runs instead."""


def blocks(text):
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _page_names(root):
    return ["README.md", *sorted(str(p.relative_to(root)) for p in (root / "docs").rglob("*.md"))]


def pytest_generate_tests(metafunc):
    if "page" in metafunc.fixturenames:
        root = metafunc.config.rootpath
        names = [name for name in _page_names(root) if (root / name).exists() and blocks((root / name).read_text())]
        metafunc.parametrize("page", names)


def test_the_examples_of_a_page_run(page, pages, tmp_path, root):
    script = PRELUDE if "model" in "".join(blocks(pages[page])) else ""
    script += "\n".join(blocks(pages[page]))
    for real, small in LARGE.items():
        script = script.replace(real, small)
    command = [sys.executable, "-W", "error", "-c", script]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_shows_ten_lines_or_so(pages):
    """The first example is what a user has to add to a script, no more."""
    assert len(blocks(pages["README.md"])[0].splitlines()) <= 14


@pytest.mark.parametrize("line", ["make demo", "run=", "keep="])
def test_the_readme_begins_with_what_a_newcomer_types(pages, line):
    assert line in "\n".join(pages["README.md"].splitlines()[:40])
