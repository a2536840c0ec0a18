"""Turning staged state into committed records, in this process or in one of its own. Knows no torch."""

from holdfast.saver.jobs import Content, SaveRequest, Shape
from holdfast.saver.saving import Saving

__all__ = ["Content", "SaveRequest", "Saving", "Shape"]
