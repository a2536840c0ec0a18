"""The changelog, its fragments and the version agree."""

from __future__ import annotations

import re
import tomllib

import pytest

KINDS = ("added", "changed", "fixed", "removed", "security")


def faults(name: str, text: str) -> list[str]:
    """What breaks the grammar of changelog.d/TEMPLATE.md."""
    match = re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.([a-z]+)\.md", name)
    if not match or match[2] not in KINDS:
        return [f"{name}: call it few-words.{'|'.join(KINDS)}.md"]
    wanted = ["Now: "] if match[2] == "added" else ["Before: ", "Now: "]
    lines = [*text.splitlines(), "", ""]
    found = [f"{name}: line {n} begins with {start!r}" for n, start in enumerate(wanted, 1)
             if not lines[n - 1].startswith(start)]  # fmt: skip
    return found + ([] if text.endswith("\n") and len(text.split()) > 5 else [f"{name}: says too little"])


def test_every_fragment_keeps_to_the_grammar(root):
    fragments = [p for p in (root / "changelog.d").iterdir() if p.name != "TEMPLATE.md"]
    assert [fault for p in fragments for fault in faults(p.name, p.read_text())] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Feature.added.md", "Now: there is a feature that you can use.\n"),
        ("feature.new.md", "Now: there is a feature that you can use.\n"),
        ("feature.added.md", "There is a feature that you can use.\n"),
        ("bug.fixed.md", "Now: it works, which it did not do before.\n"),
        ("bug.fixed.md", "Before: no\nNow: yes\n"),
    ],
)
def test_a_sloppy_fragment_is_found(name, text):
    assert faults(name, text)


def test_the_version_is_the_same_everywhere(root):
    import holdfast

    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    top = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top is not None
    assert top[1] == version == holdfast.__version__


def test_changes_since_a_release_have_fragments_or_a_heading(root):
    """Either the top of the changelog is not released yet, or there is nothing to release."""
    heading = re.search(r"^## .*$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    fragments = [p for p in (root / "changelog.d").glob("*.md") if p.name != "TEMPLATE.md"]
    assert heading is not None
    assert "not released" in heading[0] or not fragments
