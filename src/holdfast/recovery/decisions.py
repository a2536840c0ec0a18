"""What several ranks decide together at each boundary: one small reduction, which runs while they train on.

A clock, a metric or a signal speaks on one rank, and all have to act on it at
the same step. So what is asked for at a boundary is posted there, and takes
effect at the next one, when everybody has heard of it. A process that is alone
decides at once.
"""

from __future__ import annotations

from typing import NamedTuple

from holdfast.errors import SaveFailed, StateError
from holdfast.recovery.group import Group


class Agreed(NamedTuple):
    """What all ranks do at this boundary."""

    stop: bool = False
    save: bool = False


class Decisions:
    """The decisions of one launch. Belongs to the thread that trains.

    Args:
        group: who decides.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def at(self, step: int, *, stop: bool, save: bool, saves: int) -> Agreed:
        """Says what this rank wants, and hears what was wanted at the boundary before.

        Args:
            step: completed optimizer steps.
            stop: whether this rank was asked to stop.
            save: whether a checkpoint is due here for a reason that the others do not see.
            saves: how many checkpoints the program has asked for, which is the same on all ranks.

        Raises:
            PeerLost: a rank has ended or does not answer.
            StateError: ranks are at different steps.
            SaveFailed: `Checkpointer.save` was called on some ranks only.
        """
        if self._group.size == 1:
            return Agreed(stop, save)
        before = self._heard()
        self._group.post([step, -step, saves, -saves, stop, save])
        return before

    def last(self) -> Agreed:
        """What was wanted at the last boundary: there is no next one. Errors as in `at`."""
        return Agreed() if self._group.size == 1 else self._heard()

    def _heard(self) -> Agreed:
        words = self._group.result()
        if words is None:
            return Agreed()
        most, least, saves, fewest, stop, save = words
        if most != -least:
            raise StateError(f"the ranks are at different steps, from {-least} to {most}; do all loaders end together?")
        if saves != -fewest:
            raise SaveFailed(
                f"save() was called {saves} times on one rank and {-fewest} times on another, by step {most}: every "
                "rank has a part of the state, so every rank has to call it, not under 'if rank == 0'"
            )
        return Agreed(bool(stop), bool(save))
