"""Turning a captured state into a committed record."""

from holdfast.saver.inline import InlineSaver, SaveRequest

__all__ = ["InlineSaver", "SaveRequest"]
