"""How long functions and modules are; run it to see the longest, tests/guards/test_size.py keeps the ceiling.

python scripts/measure.py
"""

from __future__ import annotations

import ast
import statistics
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[1] / "src" / "holdfast"


class Function(NamedTuple):
    """A function and the lines of its body, its docstring left out."""

    lines: int
    place: str


def functions(path: Path) -> list[Function]:
    """Every function of a module, nested ones and methods included."""
    nodes = ast.walk(ast.parse(path.read_text()))
    defs = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [Function(_body_lines(node), f"{path.name}:{node.lineno} {node.name}") for node in defs]


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def modules() -> dict[str, int]:
    """Lines of every module of the package."""
    return {str(p.relative_to(SOURCE)): len(p.read_text().splitlines()) for p in sorted(SOURCE.rglob("*.py"))}


def every_function() -> list[Function]:
    """Every function of the package, longest first."""
    return sorted((f for path in SOURCE.rglob("*.py") for f in functions(path)), reverse=True)


def main() -> None:
    """Print the report."""
    found, files = every_function(), modules()
    lengths = [f.lines for f in found]
    short = sum(n <= 25 for n in lengths) / len(lengths)
    print(f"{len(files)} modules, {sum(files.values())} lines, median {statistics.median(files.values()):.0f}")
    print(f"{len(found)} functions, median body {statistics.median(lengths):.0f}, {short:.1%} of them up to 25 lines")
    print("longest functions:", *(f"  {f.lines:4} {f.place}" for f in found[:10]), sep="\n")
    longest = sorted(files.items(), key=lambda item: -item[1])[:10]
    print("longest modules:", *(f"  {lines:4} {name}" for name, lines in longest), sep="\n")


if __name__ == "__main__":
    main()
