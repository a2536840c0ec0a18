"""The page of proof stays true: every test that it names exists, and no row is without an answer."""

from __future__ import annotations

import ast
import re

PAGE = "docs/proof.md"


def _rows(text):
    return [line.split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]


def _named(text):
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def _tests(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def _gone(text, root):
    """The named tests that do not exist."""
    files = {name: root / name for name, _ in _named(text)}
    known = {name: _tests(path) if path.exists() else set() for name, path in files.items()}
    return sorted(f"{name}::{test}" for name, test in set(_named(text)) if test not in known[name])


def test_every_test_that_the_page_names_exists(pages, root):
    assert len(_named(pages[PAGE])) > 150
    assert _gone(pages[PAGE], root) == []


def test_a_test_that_is_gone_would_be_found(root):
    text = "`tests/guards/test_proof.py::test_never_written` `tests/guards/test_nowhere.py::test_x`"
    assert len(_gone(text, root)) == 2


def test_every_number_has_a_test_or_says_what_it_waits_for(pages):
    rows = _rows(pages[PAGE])
    assert [int(row[0].strip("| ")) for row in rows] == [*range(1, 53), *range(1, 45)]
    assert [row[0] for row in rows if "::" not in row[2] and not row[3].strip("| ")] == []
