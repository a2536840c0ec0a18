"""The command line changes only on purpose: scripts depend on it.

After a change that is meant: ``make docs``, and read the diff of cli_surface.txt.
"""

from __future__ import annotations

import re
import runpy

import pytest


@pytest.fixture(scope="module")
def surface(root) -> str:
    return runpy.run_path(str(root / "scripts" / "cli_surface.py"))["text"]()


def test_commands_and_options_are_the_agreed_ones(surface, root):
    assert surface == (root / "tests" / "guards" / "cli_surface.txt").read_text()


def test_the_surface_is_not_empty(surface):
    assert "holdfast demo" in surface
    assert len(surface.splitlines()) > 5


def test_every_command_of_the_readme_exists(surface, pages):
    commands = {tuple(line.split("[")[0].split(" -")[0].split()[1:]) for line in surface.splitlines()}
    known = {words[: n + 1] for words in commands for n in range(len(words))}
    tour = pages["README.md"].partition("## On the command line")[2].partition("\n## ")[0]
    named = re.findall(r"^    holdfast ([a-z-]+)", tour, re.MULTILINE) + re.findall(r"`holdfast ([a-z-]+)", tour)
    assert named
    assert [name for name in named if (name,) not in known] == []


def test_every_command_is_in_the_readme(surface, pages):
    named = set(re.findall(r"holdfast ([a-z-]+)", pages["README.md"]))
    assert {line.split()[1] for line in surface.splitlines()} - named == set()
