"""Every command, argument and option of the command line, one a line; a test compares it with what was agreed.

python scripts/cli_surface.py --write tests/guards/cli_surface.txt
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from holdfast.cli import app


def surface(command: Any, words: str = "holdfast") -> Iterator[str]:
    """Lines such as ``holdfast show REFERENCE [--json]``, commands within commands included.

    By plain attributes: newer versions of typer carry a copy of click of their own.
    """
    if children := getattr(command, "commands", None):
        for name in sorted(children):
            yield from surface(children[name], f"{words} {name}")
    else:
        yield " ".join([words, *_parameters(command)])


def _parameters(command: Any) -> list[str]:
    shown = [_shown(parameter) for parameter in command.params if parameter.name != "help"]
    return sorted(shown, key=lambda text: text.lstrip("[").startswith("-"))


def _shown(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    text = "/".join([*parameter.opts, *parameter.secondary_opts]) if option else parameter.name.upper()
    if option and not (parameter.is_flag or parameter.count):
        text += f" {parameter.metavar or 'VALUE'}"
    text += "..." if parameter.multiple or parameter.nargs != 1 else ""
    return text if parameter.required else f"[{text}]"


def text() -> str:
    """The whole surface."""
    return "\n".join(surface(typer.main.get_command(app))) + "\n"


def main() -> None:
    """Print the surface, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE")
    path = parser.parse_args().write
    path.write_text(text()) if path else print(text(), end="")


if __name__ == "__main__":
    main()
