"""What all scripts understand on the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any


def parsed(parser: argparse.ArgumentParser, small: dict[str, Any]) -> argparse.Namespace:
    """The arguments; with ``--quick`` these other defaults hold, and what is written beside it counts."""
    parser.add_argument(
        "--quick", action="store_true", help="a small form, for trying the script; its figures are void"
    )
    if parser.parse_args().quick:
        parser.set_defaults(**small)
    return parser.parse_args()


def command() -> str:
    """What was typed, so that it can be typed again."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def heading(title: str, args: argparse.Namespace) -> str:
    """Of a section; a small form says that it is one."""
    return f"## {title}" + (" (small form, void)" if args.quick else "")
