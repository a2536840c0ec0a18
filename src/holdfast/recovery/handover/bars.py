"""What shows how far a save is, if anything does."""

from __future__ import annotations

from typing import Protocol

from holdfast.saver.messages import Progress


class Bar(Protocol):
    """Is told how far the save at hand is. Not thread-safe."""

    def __call__(self, report: Progress) -> None:
        """The save of a generation has got so far."""

    def close(self) -> None:
        """The save has come to an end, well or not; idempotent."""


class NoBar:
    """Shows nothing."""

    def __call__(self, report: Progress) -> None:
        """See `Bar`."""

    def close(self) -> None:
        """See `Bar`."""
