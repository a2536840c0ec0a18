"""What ``import holdfast`` gives, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ALLOWED = {"holdfast", "blake3", "msgspec"}
"""Modules outside the standard library that a plain import may load."""

PROBE = """
import json, sys, time
before = set(sys.modules)
begin = time.perf_counter()
import {module}
seconds = time.perf_counter() - begin
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps([seconds, sorted(n for n in new if n not in sys.stdlib_module_names)]))
"""


def _loads(module: str) -> tuple[float, set[str]]:
    command = [sys.executable, "-c", PROBE.format(module=module)]
    seconds, names = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # Editable installs and coverage tools bring helpers of their own, all underscored.
    return seconds, {name for name in names if not name.startswith("_")}


def test_all_is_sorted_and_every_name_is_there():
    import holdfast

    assert sorted(holdfast.__all__) == holdfast.__all__
    assert [name for name in holdfast.__all__ if not hasattr(holdfast, name)] == []


def test_dir_shows_what_is_public():
    import holdfast

    assert set(holdfast.__all__) <= set(dir(holdfast))


def test_no_public_name_is_missing_from_all():
    import holdfast

    own = {name for name, value in vars(holdfast).items() if getattr(value, "__module__", "").startswith("holdfast")}
    assert {name for name in own if not name.startswith("_")} <= set(holdfast.__all__)


def test_an_unknown_name_is_an_attribute_error():
    import holdfast

    with pytest.raises(AttributeError, match="no_such_name"):
        holdfast.no_such_name  # noqa: B018


def test_a_plain_import_loads_only_what_is_allowed():
    seconds, names = _loads("holdfast")
    print(f"import holdfast: {seconds * 1000:.0f} ms, {sorted(names)}")
    assert names <= ALLOWED


@pytest.mark.parametrize("module", ["holdfast.catalog.store", "holdfast.policy", "holdfast.packs", "holdfast.cli"])
def test_what_works_without_torch_does_not_load_it(module):
    _, names = _loads(module)
    assert not names & {"torch", "numpy"}


def test_public_things_say_what_they_are():
    """Every public function and class has a docstring of its own."""
    import holdfast

    silent = [n for n in holdfast.__all__ if callable(v := getattr(holdfast, n)) and not (v.__doc__ or "").strip()]
    assert silent == []
