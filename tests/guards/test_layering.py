"""Imports point downward, and what is heavy stays where it belongs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

import pytest

LAYERS = (
    ("errors",),
    ("ids", "clock"),
    ("values",),
    ("seals", "records"),
    ("boxes",),
    ("trees",),
    ("payload",),
    ("storage",),
    ("packs",),
    ("catalog",),
    ("catalog.naming", "catalog.journal"),
    ("catalog.deleting", "catalog.verifying"),
    ("catalog.repacking",),
    ("policy",),
    ("health",),
    ("saver",),
    ("state",),
    ("recovery",),
    ("recovery.environment", "recovery.steps", "recovery.handover"),
    ("recovery.ranks",),
    ("recovery.restoring", "recovery.launching"),
    ("recovery.saving", "recovery.configuring"),
    ("recovery.stopping", "recovery.caring"),
    ("recovery.training",),
    ("testing",),
    ("checkpointer",),
    ("exchange",),
    ("integrations",),
    ("cli",),
)
"""From the bottom to the top. A folder may import within itself; two names on one line may not import each other."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FACADE = len(LAYERS)
"""``holdfast`` itself: the public names, for users and for the command line."""

TORCH_LAYERS = {"state", "recovery", "checkpointer", "exchange", "integrations"}
TORCH_MODULES = {"holdfast.cli.demo", "holdfast.cli.demo_supervisor"}
NUMPY_MODULES = {"holdfast.saver.noticing"}
"""Looks for NaN in bytes, where NumPy is there."""
TERMINAL_MODULES = {"holdfast.recovery.handover.progress_bar"}
"""Imported by those who ask for a progress bar."""

OPTIONAL = {"torchdata", "pytest", "yaml"}
"""Recognised where a program has it (and for its tests), never needed."""


def _layer(name: str) -> str:
    """The folder that a module or a name in it belongs to, as `LAYERS` has it."""
    parts = name.split(".")
    return within if (within := ".".join(parts[1:3])) in LEVEL else "".join(parts[1:2])


def _top(name: str) -> str:
    return _layer(name).split(".")[0]


def _imports(module) -> list[tuple[int, str]]:
    """Line and full name of everything imported, inside functions too, relative imports resolved."""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            found += [(node.lineno, f"{source}.{alias.name}") for alias in node.names]
    return found


def _own(module) -> list[tuple[int, str]]:
    return [(line, name) for line, name in _imports(module) if name.split(".")[0] == "holdfast"]


def _level(name: str) -> int:
    return LEVEL.get(_layer(name), FACADE)


def upward(module) -> list[str]:
    """Imports of ``module`` that point to a higher layer, or sideways to another one."""
    if _layer(module.name) in ("", "__main__"):
        return []
    here = _layer(module.name)
    return [
        f"{module.label}:{line}: {here} imports {name}"
        for line, name in _own(module)
        if _layer(name) != here and not (_level(name) < _level(module.name) or here == "cli")
    ]


def test_every_module_has_a_layer(modules):
    unplaced = {_layer(m.name) for m in modules} - set(LEVEL) - {"", "__main__"}
    assert not unplaced, f"add {sorted(unplaced)} to LAYERS, at the lowest place that works"


def test_imports_point_downward_only(modules):
    assert not (wrong := [line for module in modules for line in upward(module)]), "\n".join(wrong)


def test_an_upward_import_would_be_found(modules):
    """The check itself can fail: an error class that knew of the catalog."""
    bottom = next(m for m in modules if m.name == "holdfast.errors")
    broken = type(bottom)(
        name=bottom.name,
        path=bottom.path,
        text="",
        tree=ast.parse("def f():\n    from holdfast.catalog import layout\n"),
    )
    assert upward(broken) == ["src/holdfast/errors.py:2: errors imports holdfast.catalog.layout"]


@pytest.mark.parametrize("heavy", ["torch", "numpy"])
def test_torch_and_numpy_stay_in_their_layers(modules, heavy):
    wrong = [
        f"{module.label}:{line} imports {name}"
        for module in modules
        if _top(module.name) not in TORCH_LAYERS
        and module.name not in TORCH_MODULES
        and not (heavy == "numpy" and module.name in NUMPY_MODULES)
        for line, name in _imports(module)
        if name.split(".")[0] == heavy
    ]
    assert not wrong, "\n".join(wrong)


def test_the_terminal_belongs_to_the_command_line(modules):
    wrong = [
        f"{module.label}:{line} imports {name}"
        for module in modules
        if _layer(module.name) not in ("cli", "__main__") and module.name not in TERMINAL_MODULES
        for line, name in _imports(module)
        if name.split(".")[0] in ("typer", "rich", "click")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_import_each_other(modules):
    """At import time; a loop would work or fail by who is imported first."""
    names = {m.name for m in modules}
    graph = {m.name: {_module_of(name, names) for name in _at_import(m)} - {m.name, None} for m in modules}
    assert not (loop := _loop(graph)), " -> ".join(loop)


def _at_import(module) -> list[str]:
    """What the module's own top level imports, so not what its functions do later."""
    top = [node for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = {node.lineno for node in top}
    return [name for line, name in _own(module) if line in lines]


def _module_of(name: str, names: set[str]) -> str | None:
    return name if name in names else (parent if (parent := name.rpartition(".")[0]) in names else None)


def _loop(graph: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        done.add(node)
        return next((found for child in sorted(graph[node]) if (found := visit(child, [*path, node]))), [])

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_every_import_is_a_declared_dependency(modules, root):
    """What happens to be installed here is not installed elsewhere."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["torch"]
    declared = {re.split(r"[^\w-]", name)[0].lower().replace("-", "_") for name in wanted} | {"holdfast"}
    found = {
        f"{module.label}:{line} imports {name}"
        for module in modules
        if _layer(module.name) != "integrations"
        for line, name in _imports(module)
        if name.split(".")[0] not in declared | sys.stdlib_module_names | OPTIONAL
    }
    assert not found, "\n".join(sorted(found))
