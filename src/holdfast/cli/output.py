r"""How the command line speaks: tables that fit 80 columns, JSON, bars, and errors that fit a screen.

Text of the user (run names, notes, metric names) may hold anything, so every
control character is shown as an escape, such as ``\n`` or ``\x1b``: it can
neither break a table nor reach the terminal, and nothing in it is markup.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

WIDTH = 80
"""Columns where there is no terminal and COLUMNS does not say otherwise."""

GAP = "  "
"""Between two columns."""

NARROW = 24
"""Columns that the last column of a table has at least."""

ERROR_LINES = 20
"""Lines of an error; the first ones say what happened."""

# C0, DEL, C1, line and paragraph separators, and what turns the direction of text around.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class PipeClosed(Exception):
    """Whoever read our output has gone, as ``head`` does."""


def write(text: str) -> None:
    """Writes to standard output.

    Raises:
        PipeClosed: nobody reads any more.
    """
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise PipeClosed from None


def console() -> Console:
    """Standard output; 80 columns where it is not a terminal, so that pipes and tests see what people see."""
    out = Console(file=sys.stdout, highlight=False)
    return out if out.is_terminal else Console(file=sys.stdout, highlight=False, width=WIDTH)


def plain(text: str) -> str:
    r"""``text`` as it can be shown anywhere, on one line.

    Example:
        >>> plain("a\nb\x1b[31m")
        'a\\nb\\x1b[31m'
    """
    return text if text.isascii() and text.isprintable() else _CONTROL.sub(_escaped, text)


def say(text: str = "") -> None:
    """One line of plain text; nothing in it is markup."""
    write(plain(text) + "\n")


def warn(text: str) -> None:
    """One line on standard error, for what is no part of the result."""
    sys.stderr.write(plain(text) + "\n")


def explain(text: str, code: str) -> None:
    """An error on standard error: what happened, and its code."""
    lines = [plain(line) for line in text.splitlines()] or [""]
    more = [f"... and {len(lines) - ERROR_LINES} more lines"] if len(lines) > ERROR_LINES else []
    head = "\x1b[1;31merror:\x1b[0m" if _has_colour(sys.stderr) else "error:"
    sys.stderr.write(f"{head} " + "\n".join([*lines[:ERROR_LINES], *more]) + f" [{code}]\n")


def print_json(value: object) -> None:
    """``value`` as one JSON document in ASCII; non-finite floats as strings, since JSON has none."""
    # Python's encoder is slow where it indents, msgspec's knows no escapes: each does what it is good at.
    write(msgspec.json.format(json.dumps(_plain(value), allow_nan=False), indent=2) + "\n")


def columns() -> int:
    """So wide is what is printed; a table on fewer than 40 could not be read."""
    return max(shutil.get_terminal_size((WIDTH, 24)).columns, 40)


def table(names: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """A table that fits the width; what is too long for its column goes on below, and nothing is cut off."""
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    widths = _widths([list(names), *cells], columns())
    to_right = [name in right for name in names]
    head = _lines(names, widths, to_right)
    write("\n".join(map(_bold, head) if _has_colour(sys.stdout) else head) + "\n")
    write("".join(f"{line}\n" for row in cells for line in _lines(row, widths, to_right)))


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar in bytes on standard error, where that is a terminal; yields a function to add bytes."""
    view = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr, highlight=False),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with view:
        task = view.add_task(plain(what), total=total)
        yield lambda done: view.advance(task, done)


def count(number: int, noun: str) -> str:
    """A number and what it counts.

    Example:
        >>> count(1, "pack"), count(2, "pack")
        ('1 pack', '2 packs')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
    except (ValueError, TypeError):
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


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _has_colour(stream: Any) -> bool:
    return Console(file=stream).color_system is not None


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m"


def _widths(rows: list[list[str]], total: int) -> list[int]:
    """The widest cell of each column, and less for the widest columns where the last one would get too little."""
    widths = [max(map(_cells, column)) for column in zip(*rows, strict=True)]
    room = total - len(GAP) * (len(widths) - 1)
    while len(widths) > 1 and sum(widths[:-1]) + min(NARROW, widths[-1]) > room and max(widths[:-1]) > NARROW // 2:
        widths[widths.index(max(widths[:-1]))] -= 1
    widths[-1] = max(min(widths[-1], room - sum(widths[:-1])), min(widths[-1], NARROW // 2))
    while sum(widths) > room and max(widths) > 2:  # a letter may take two cells
        widths[widths.index(max(widths))] -= 1
    return widths


def _lines(row: Sequence[str], widths: Sequence[int], to_right: Sequence[bool]) -> list[str]:
    """A row as the lines of the screen that it takes."""
    if all(map(_fits, row, widths)):
        return [_line(row, widths, to_right)]
    folded = [[cell] if _fits(cell, width) else _folded(cell, width) for cell, width in zip(row, widths, strict=True)]
    return [_line(parts, widths, to_right) for parts in zip_longest(*folded, fillvalue="")]


def _line(cells: Sequence[str], widths: Sequence[int], to_right: Sequence[bool]) -> str:
    return GAP.join(map(_padded, cells, widths, to_right)).rstrip()


def _padded(cell: str, width: int, to_right: bool) -> str:
    padding = " " * (width - _cells(cell))
    return padding + cell if to_right else cell + padding


def _folded(text: str, width: int) -> list[str]:
    """``text`` in lines, broken at spaces where that is possible."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if _fits(joined, width):
            lines[-1] = joined
        else:
            lines += _chopped(word, width)
    return [line for line in lines if line] or [""]


def _chopped(word: str, width: int) -> list[str]:
    if word.isascii():
        return [word[at : at + width] for at in range(0, len(word), width)]
    pieces = [""]
    for letter in word:
        if _cells(pieces[-1]) + _cells(letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _fits(text: str, width: int) -> bool:
    return _cells(text) <= width


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str) and not value.isascii():
        return value.encode(errors="backslashreplace").decode()  # a path may hold bytes that are no text
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
