"""Finding the place of a checkpoint in the loader of the program, or beginning its epoch anew where asked to."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any

from holdfast.errors import StateMismatch
from holdfast.recovery.ranks.group import Group
from holdfast.state.loaders import LoaderPosition

logger = logging.getLogger(__name__)

FIND_SECONDS = 900.0
"""How much longer ranks wait for each other while one of them goes through its data."""


class Mismatch(StrEnum):
    """What happens where the loader is not the one of the checkpoint."""

    RAISE = "raise"
    RESTART_EPOCH = "restart-epoch"


def find(position: LoaderPosition, stored: dict[str, Any], mismatch: Mismatch) -> None:
    """Brings a loader to a stored position.

    Raises:
        StateMismatch: it is not the loader of the checkpoint, or its data has changed.
    """
    try:
        position.load(stored)
        position.replay(lambda replay: logger.info("%s", replay))
    except StateMismatch as error:
        if mismatch is Mismatch.RAISE:
            raise
        epoch = int(stored["epoch"]) + (stored["batch"] == stored.get("length"))
        logger.warning("epoch %d begins with this loader: %s", epoch, error)
        position.start_over(epoch)


def find_together(group: Group, position: LoaderPosition, stored: dict[str, Any], mismatch: Mismatch) -> None:
    """As `find`, on every rank: what does not fit on one is refused on all."""
    with group.longer(FIND_SECONDS):
        group.agreed(lambda: find(position, stored, mismatch), "the place in the data")
