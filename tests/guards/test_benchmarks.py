"""What `make bench` runs still runs: every script in its small form, which needs no other library."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))
NEEDS_OPENZL = ["codecs"]
"""Which cannot be had everywhere, and is what these compare."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_runs_in_its_small_form(script, root, tmp_path):
    """A new script without one is told that there is no such option."""
    if script.stem in NEEDS_OPENZL and importlib.util.find_spec("openzl") is None:
        pytest.skip("openzl is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "--quick"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root / "src"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "failed: " not in done.stdout, done.stdout + done.stderr
    sections = re.findall(r"^## .+\n\n(.+)$", done.stdout, re.MULTILINE)
    assert sections
    assert [one for one in sections if not re.match(r"\d{4}-\d\d-\d\d, .*--quick`|No CUDA", one)] == []
    assert done.stdout.endswith("\n\n"), "the next section follows"
    assert "\n\n\n" not in done.stdout
    assert list(tmp_path.glob("holdfast-bench-*")) == []


@pytest.fixture
def clone(root, tmp_path):
    """What `make bench` needs of a clone, with two scripts of its own and a page from last time."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    for folder in ("benchmarks", "docs", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    for installed in (".installed", ".peers"):  # newer than what they are made from, as after an installation
        (tmp_path / ".venv" / installed).touch()
    (tmp_path / "benchmarks/README.md").write_text("# Benchmarks\n")
    (tmp_path / "benchmarks/a.py").write_text("print('## A')")
    (tmp_path / "docs/benchmarks.md").write_text("as it was\n")
    return tmp_path


def _bench(clone: Path, second: str) -> tuple[int, str]:
    (clone / "benchmarks/b.py").write_text(second)
    done = subprocess.run(["make", "-s", "bench"], cwd=clone, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, (clone / "docs/benchmarks.md").read_text()


def test_the_page_is_what_all_scripts_say(clone):
    assert _bench(clone, "print('## B')") == (0, "# Benchmarks\n\n## A\n## B\n")


def test_a_script_that_fails_fails_the_whole_and_leaves_the_page(clone):
    code, page = _bench(clone, "raise SystemExit(1)")
    assert code != 0
    assert page == "as it was\n"
