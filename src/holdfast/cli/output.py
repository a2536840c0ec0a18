"""How the command line speaks: tables that fit 80 columns, JSON, bars, and errors that fit a screen.

Text of the user (run names, notes, metric names) is escaped before rich sees
it, or ``exp[lr=1e-4]`` would print as ``exp``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

WIDTH = 80


def console() -> Console:
    """Standard output; 80 columns where it is not a terminal, so that pipes and tests see what people see."""
    out = Console(file=sys.stdout, highlight=False)
    return out if out.is_terminal else Console(file=sys.stdout, highlight=False, width=WIDTH)


def errors() -> Console:
    """Standard error."""
    return Console(file=sys.stderr, highlight=False, width=None if sys.stderr.isatty() else WIDTH)


def say(text: str) -> None:
    """One line of plain text; nothing in it is markup."""
    console().print(Text(text), soft_wrap=True)


def print_json(value: object) -> None:
    """``value`` as one JSON document; non-finite floats as strings, since JSON has none."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """A table whose last column takes what is left of the width."""
    view = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for name in columns:
        last = name == columns[-1]
        justify: Any = "right" if name in right else "left"
        view.add_column(name, justify=justify, no_wrap=not last, overflow="fold" if last else "ellipsis")
    for row in rows:
        view.add_row(*(escape(str(cell)) for cell in row))
    console().print(view)


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar in bytes on standard error, where that is a terminal; yields a function to add bytes."""
    view = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=errors(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with view:
        task = view.add_task(escape(what), total=total)
        yield lambda done: view.advance(task, done)


def size(count: float) -> str:
    """Bytes for people: ``1.5 GB``.

    Example:
        >>> size(1_500_000_000), size(999)
        ('1.5 GB', '999 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def ago(created: str) -> str:
    """A time for people: ``5 min ago``."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    except ValueError:
        return created
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def number(value: object) -> str:
    """A metric in few digits."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def metrics_text(metrics: dict[str, Any], limit: int = 3) -> str:
    """The first few metrics as ``name=value``."""
    return " ".join(f"{name}={number(value)}" for name, value in list(metrics.items())[:limit])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
