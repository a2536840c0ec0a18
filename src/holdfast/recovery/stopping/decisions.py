"""What several ranks decide together at each boundary: one small reduction, which runs while they train on.

A clock, a metric or a signal speaks on one rank, and all have to act on it at
the same step. So what is asked for at a boundary is posted there, and takes
effect at the next one, when everybody has heard of it. A process that is alone
decides at once.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from holdfast.errors import SaveFailed, StateError
from holdfast.recovery.environment.grace import Grace
from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.ranks.group import Group
from holdfast.recovery.saving.triggers import Moment, Trigger

logger = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""How long a request to stop waits for the step at hand; then the checkpoint is made in the middle of it."""
SPARE_SECONDS = 1.0
"""How much time has to be left beside a save for that."""


class Agreed(NamedTuple):
    """What all ranks do at this boundary."""

    stop: bool = False
    save: bool = False
    lacks: float = float("-inf")
    """By how many seconds the rank with the least time would miss the end if it saved now; below 0: what is spare."""
    ill: bool = False
    """Whether the health checks of any rank have found something."""


_NOBODY_KNOWS = -(1 << 40)
"""Milliseconds."""

_SAID = struct.Struct("<?d")
"""Whether a rank was asked to stop, and what it lacks."""


class Exchange:
    """What is said at each boundary. Belongs to the thread that trains.

    Args:
        group: who decides.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def at(
        self, step: int, *, stop: bool, save: bool, saves: int, lacks: float = float("-inf"), ill: bool = False
    ) -> Agreed:
        """Says what this rank wants, and hears what was wanted at the boundary before.

        Args:
            step: completed optimizer steps.
            stop: whether this rank was asked to stop.
            save: whether a checkpoint is due here for a reason that the others do not see.
            saves: how many checkpoints the program has asked for, which is the same on all ranks.
            lacks: see `Agreed.lacks`, for this rank.
            ill: see `Agreed.ill`, for this rank.

        Raises:
            PeerLost: a rank has ended or does not answer.
            StateError: ranks are at different steps.
            SaveFailed: `Checkpointer.save` was called on some ranks only.
        """
        if self._group.size == 1:
            return Agreed(stop, save, lacks, ill)
        before = self._heard()
        late = max(_NOBODY_KNOWS, int(lacks * 1000)) if lacks > float("-inf") else _NOBODY_KNOWS
        self._group.post([step, -step, saves, -saves, stop, save, late, ill])
        return before

    def last(self) -> Agreed:
        """What was wanted at the last boundary: there is no next one. Errors as in `at`."""
        return Agreed() if self._group.size == 1 else self._heard()

    def _heard(self) -> Agreed:
        words = self._group.result()
        if words is None:
            return Agreed()
        most, least, saves, fewest, stop, save, late, ill = words
        if most != -least:
            raise StateError(f"the ranks are at different steps, from {-least} to {most}; do all loaders end together?")
        if saves != -fewest:
            raise SaveFailed(
                f"save() was called {saves} times on one rank and {-fewest} times on another, by step {most}: every "
                "rank has a part of the state, so every rank has to call it, not under 'if rank == 0'"
            )
        return Agreed(bool(stop), bool(save), late / 1000 if late > _NOBODY_KNOWS else float("-inf"), bool(ill))


class Decisions:
    """Whether a checkpoint is due and whether to stop, for all ranks of a training. Belongs to the thread that trains.

    Args:
        group: who decides.
        stops: the signals of this process.
        trigger: the policy.
    """

    def __init__(self, group: Group, stops: StopRequests, trigger: Trigger) -> None:
        self._group, self._stops, self._trigger = group, stops, trigger
        self._exchange = Exchange(group)
        self._agreed_stop: str | None = None
        self._ended_here: str | None = None
        self.lacks = float("-inf")
        """See `Agreed.lacks`, as of the last boundary."""
        self.ill = False
        """See `Agreed.ill`, as of the last boundary."""
        self.forget()

    def forget(self) -> None:
        """The training goes on from another checkpoint: what was wished for is void, whoever was told of it."""
        self._void = self._group.size > 1
        """Whether what was said at the last boundary was of a line that was left."""
        self._heeded()

    def _heeded(self) -> None:
        self._wish: tuple[str, dict[str, Any]] | None = None
        self._said = False
        """Whether the others are about to hear of it."""

    def without_epochs(self) -> None:
        """The loop that begins has no epochs: what waits for the end of one waits for ever."""
        for part in self._trigger.never_due():
            logger.warning(
                "save=%s is never due in steps(): there are no epochs; see batches(), or every(steps=)", part
            )

    @property
    def stop(self) -> str | None:
        """What has asked the training to stop; of several ranks, as far as all of them have heard of it."""
        return self._stops.asked if self._group.size == 1 else self._agreed_stop or self._ended_here

    def stop_here(self, why: str) -> None:
        """This rank can train no more; what the others do they hear otherwise, so all still make the same calls."""
        if self._group.size == 1:
            self.stop_all(why)
        self._ended_here = why

    def pressed(self, lacks: Callable[[], float]) -> bool:
        """Whether a request to stop cannot wait for the end of the step at hand.

        Several ranks come to the same boundaries: no clock decides on one of them.

        Args:
            lacks: see `Agreed.lacks`, for this rank.
        """
        if self._group.size > 1 or not self._stops.waited(0.0):
            return False
        return self._stops.waited(STOP_SECONDS) or lacks() > -SPARE_SECONDS

    def stop_anywhere(self, lacks: Callable[[], float]) -> bool:
        """Whether any rank was asked to stop; every rank has to call it, and waits for the others.

        Args:
            lacks: see `Agreed.lacks`, for this rank.
        """
        if self._agreed_stop is None and self._group.size > 1:
            mine = _SAID.pack(self._stops.asked is not None, lacks())
            said = [_SAID.unpack(one) for one in self._group.gathered(mine, "whether somebody was asked to stop")]
            stop, most = (max(words) for words in zip(*said, strict=True))
            self._take(Agreed(stop=stop, lacks=most, ill=self.ill))
        return self.stop is not None

    def due(
        self,
        moment: Moment,
        metrics: dict[str, Any],
        saves: int,
        lacks: float = float("-inf"),
        *,
        ill: bool = False,
    ) -> str | None:
        """Why a checkpoint is due at this boundary; errors as of `Exchange.at`.

        Args:
            moment: the boundary.
            metrics: of it; those that led to a wish at the boundary before are added.
            saves: how many the program has asked for.
            lacks: see `Agreed.lacks`, for this rank.
            ill: see `Agreed.ill`, for this rank.
        """
        reason = self._trigger.due(moment, metrics, by_step=True)
        stop, wished = self._stops.asked is not None, self._wished(moment, metrics)
        agreed = self._exchange.at(moment.step, stop=stop, save=wished, saves=saves, lacks=lacks, ill=ill)
        self._take(agreed)
        void, self._void = self._void, False
        if void or not agreed.save:
            return reason
        wish, measured = self._wish or ("rank 0 has asked for it", {})
        self._heeded()
        for name, value in measured.items():
            metrics.setdefault(name, value)
        return "; ".join(filter(None, (reason, wish)))

    def _wished(self, moment: Moment, metrics: Mapping[str, Any]) -> bool:
        """Whether there is a wish that the others have not heard of: clocks and metrics of rank 0 count."""
        if self._group.rank == 0 and self._wish is None:
            wish = self._trigger.due(moment, metrics, by_step=False)
            self._wish = None if wish is None else (wish, dict(metrics))
        new = self._wish is not None and not self._said
        self._said = self._wish is not None
        return new

    def measured(self, moment: Moment, metrics: dict[str, Any], logged: Mapping[str, Any]) -> str | None:
        """Why a checkpoint is due right now, because of what was just measured between two steps.

        Several ranks make it at the next boundary but one: only rank 0 knows of it now.
        """
        watched = self._trigger.watches(logged)
        reason = self._trigger.due(moment, metrics) if watched else None
        if self._group.size == 1 or reason is None:
            return reason
        if self._group.rank == 0 and self._wish is None:
            self._wish = reason, dict(metrics)
        return None

    def stop_all(self, why: str) -> None:
        """All ranks have decided to stop here."""
        if self._group.size == 1:
            self._stops.ask(why, Grace(seconds=None, why="nobody kills a training for its health"))
        self._agreed_stop = why

    def end(self) -> None:
        """The loop has ended: what was said at the last boundary is heard; errors as of `Exchange.at`."""
        self._take(self._exchange.last())
        self._said = False  # what is wished for still is said again where the next loop begins

    def _take(self, agreed: Agreed) -> None:
        self.ill = agreed.ill
        if agreed.stop or self._agreed_stop is None:  # what was said before somebody was asked knows of no end
            self.lacks = agreed.lacks
        if agreed.stop:
            self._agreed_stop = self._stops.asked or "a signal to another rank"
