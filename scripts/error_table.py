"""The table of errors for docs/errors.md, made from the classes; fails on a code that is used twice.

python scripts/error_table.py --write docs/errors.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from holdfast import errors

BEGIN, END = "<!-- errors: begin -->", "<!-- errors: end -->"


def tree(base: type[errors.HoldfastError] = errors.HoldfastError, depth: int = 0) -> Iterator[tuple[int, type]]:
    """Every error class with its depth, parents first, in the order of their exit codes."""
    yield depth, base
    for child in sorted(base.__subclasses__(), key=lambda c: c.exit_code):
        if child.__module__ == errors.__name__ and base is child.__mro__[1]:
            yield from tree(child, depth + 1)


def table() -> str:
    """One row per class: exit code, kind, class, meaning."""
    rows = ["| exit | kind | class | what it means |", "| ---: | --- | --- | --- |"]
    for depth, class_ in sorted(tree(), key=lambda item: item[1].exit_code):
        indent = "&nbsp;&nbsp;" * depth
        meaning = (class_.__doc__ or "").splitlines()[0].replace("``", "`")
        rows.append(f"| {class_.exit_code} | `{class_.kind}` | {indent}`{class_.__name__}` | {meaning} |")
    return "\n".join(rows)


def duplicates() -> list[str]:
    """Codes and kinds that two classes share."""
    classes = [class_ for _, class_ in tree()]
    values = [getattr(class_, field) for field in ("exit_code", "kind") for class_ in classes]
    return sorted({str(value) for value in values if values.count(value) > 1})


def main() -> None:
    """Print the table, or put it between the markers of a page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="PAGE")
    page = parser.parse_args().write
    if doubled := duplicates():
        sys.exit(f"used twice: {', '.join(doubled)}")
    if page is None:
        print(table())
    else:
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
