"""Functions and modules stay short enough to be read in one go; scripts/measure.py shows the longest."""

from __future__ import annotations

import runpy
import statistics

import pytest


@pytest.fixture(scope="module")
def measure(root):
    return runpy.run_path(str(root / "scripts" / "measure.py"))


def test_half_of_the_functions_have_at_most_eight_lines(measure):
    assert statistics.median(f.lines for f in measure["every_function"]()) <= 8


def test_nine_in_ten_functions_have_at_most_25_lines(measure):
    lengths = sorted(f.lines for f in measure["every_function"]())
    assert lengths[int(len(lengths) * 0.9)] <= 25


def test_no_function_has_more_than_60_lines(measure):
    assert [f for f in measure["every_function"]() if f.lines > 60] == []


def test_no_module_has_more_than_400_lines(measure):
    assert {name: lines for name, lines in measure["modules"]().items() if lines > 400} == {}


def test_the_measure_counts_bodies_without_docstrings(measure, tmp_path):
    path = tmp_path / "sample.py"
    path.write_text('def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n')
    assert [f.lines for f in measure["functions"](path)] == [2]
