"""The command line: one command, one file."""

from holdfast.cli.app import app, main

__all__ = ["app", "main"]
