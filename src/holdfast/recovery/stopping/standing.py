"""The end that a training has reached: it stands, whatever is restored behind it, until another loop begins."""

from __future__ import annotations

import logging

from holdfast.errors import HoldfastError
from holdfast.records import Record
from holdfast.recovery.launching.session import Session

logger = logging.getLogger(__name__)


class Standing:
    """One per launch. Not thread-safe.

    Args:
        session: the launch.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.end: Record | None = None
        """The final checkpoint, once it is durable; None: the training has not ended, or goes on."""
        self._timeline = session.timeline

    def reached(self, final: Record | None) -> None:
        """The training has ended with this checkpoint, unless it had ended before."""
        if self.end is None:
            self.end, self._timeline = final, self._session.timeline

    def trains_on(self) -> None:
        """Another loop begins: where that ends is the end."""
        self.end = None

    def note(self) -> None:
        """Notes that the run stands at its end again, if something was restored or saved behind it.

        Else the same command would make the steps from there on once more. Waits for no other rank.
        """
        if self.end is None or self._unmoved(self.end):
            return
        try:
            self._session.stays(self.end.address, "the end of the training; what was restored behind it was looked at")
        except HoldfastError as error:
            text = "that %s is the end of the training could not be noted: %s; started again, it goes on from %s"
            logger.error(text, self.end.address, error, self._session.parent)

    def _unmoved(self, end: Record) -> bool:
        return (self._session.parent, self._session.timeline) == (end.address, self._timeline)
