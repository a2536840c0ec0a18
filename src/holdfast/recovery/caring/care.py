"""Looks after a training between its steps: health checks, what they ask for, and the watchdog's signs of life."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import InvalidInput
from holdfast.health import (
    GOOD_AFTER,
    GoodMarks,
    Judgement,
    Rollback,
    Rule,
    SaveNow,
    Watch,
    Watchdog,
    rules_of,
    watchdog,
)
from holdfast.health.rules import Rules
from holdfast.ids import RecordAddress
from holdfast.records import Record
from holdfast.recovery.caring.ailments import Ailments, History, read_history
from holdfast.recovery.caring.needs import Needs, expected, needs_of
from holdfast.recovery.caring.observing import Observing
from holdfast.recovery.caring.remedying import Remedying, Stopped
from holdfast.recovery.caring.telling import ANSWER_SECONDS, Telling
from holdfast.recovery.caring.tending import Tending
from holdfast.recovery.caring.vitals import Vitals
from holdfast.recovery.handover.beating import Beating
from holdfast.recovery.launching.session import Session
from holdfast.recovery.restoring.left_out import LeavingOut
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.saving.boundary_saves import BoundarySaves
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.state.probing import Prober, named_parameters

logger = logging.getLogger(__name__)

_ANEW = 8
"""Samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caring:
    """What the user wants of it, checked."""

    rules: tuple[Rule, ...]
    good_after: int
    watchdog: Watchdog | None
    asked: bool
    """Whether somebody has asked for this watchdog; else it is the default."""

    @property
    def aspiring(self) -> int | None:
        """``good_after``, if a rule goes back to what is good."""
        actions = [action for rule in self.rules for action in rule.actions]
        goes = any(isinstance(action, Rollback) and action.to == "good" for action in actions)
        return self.good_after if goes else None


def caring_of(health: Rules, good_after: int, dog: Watchdog | str | None) -> Caring:
    """The arguments of a `Checkpointer`, checked.

    Raises:
        InvalidPolicy, InvalidInput: one that cannot be right.
    """
    if dog is not None and dog != "off" and not isinstance(dog, Watchdog):
        raise InvalidInput(f"watchdog={dog!r}: write watchdog=holdfast.health.watchdog(hung=600), or watchdog='off'")
    return Caring(
        rules=rules_of(health),
        good_after=GoodMarks(good_after).good_after if good_after != GOOD_AFTER else GOOD_AFTER,
        watchdog=watchdog() if dog is None else None if isinstance(dog, str) else dog,
        asked=dog is not None,
    )


class Care:
    """One per launch and rank. Belongs to the thread that trains.

    Args:
        caring: what is wanted.
        session: the launch.
        objects: what is trained.
        saves: of the boundary.
        checkpoints: what is committed.
        left_out: batches that are passed over.
        beating: signs of life.
        after: the journal.
        go_back: restores a record, for a reason.
    """

    def __init__(
        self,
        caring: Caring,
        session: Session,
        objects: Mapping[str, object],
        *,
        saves: BoundarySaves,
        checkpoints: Checkpoints,
        left_out: LeavingOut,
        beating: Beating,
        after: Afterwards,
        go_back: Callable[[RecordAddress, str], None],
    ) -> None:
        history = _history(session, caring.rules)
        watch, self._rank = Watch(caring.rules, history.spent), session.group.rank
        self.beating = beating
        self._checkpoints, self._objects, self._note = checkpoints, list(objects.values()), after.note
        self._scaled = _everywhere(session, any(map(_scales, self._objects)))
        self._last: Record | None = None
        self._needed: Needs | None = None
        self._world = session.group.size
        self._first = True
        self._anybody = False
        observing = Observing(
            watch,
            Vitals(_folder(session)),
            Prober(_Parameters(objects)),
            self._needs,
            rank=self._rank,
        )
        self._tending = Tending(session.group, watch, GoodMarks(caring.good_after), observing, checkpoints, after.note)
        self._remedying = Remedying(
            session=session,
            watch=watch,
            ailments=Ailments(history),
            saves=saves,
            checkpoints=checkpoints,
            left_out=left_out,
            after=after,
            telling=Telling(str(session.run.number), lambda text: after.note("not told", text)),
            objects=list(objects.values()),
            good_after=caring.good_after,
            go_back=go_back,
        )

    @property
    def sees_skips(self) -> bool:
        """Whether to look where no step is made for long: several ranks if scalers of losses skip steps, alike."""
        return self._world == 1 or (self._scaled and any(map(_skips, self._objects)))

    def resumed(self, record: Record | None) -> None:
        """The training begins, or goes on from a checkpoint."""
        self._tending.resumed(record)
        if record is not None:
            self._remedying.resumed(record)

    def enter_loop(self, step: int) -> Record | Stopped | None:
        """A loop begins; before the first one the machine is looked at, for there may be no room to save."""
        self._tending.observing.enter_loop()
        first, self._first = self._first, False
        judgement = self._tending.first(step) if first else None
        self.beating.enter(step)
        return None if judgement is None else self._remedying.do(judgement, step)

    def leave_loop(self) -> None:
        """It has ended, whatever has ended it."""
        self.beating.rest()
        self._tending.observing.leave_loop()

    def go(self, step: int) -> None:
        """The next step is under way from here on."""
        self._tending.observing.go()
        self.beating.enter(step)

    def look(self, step: int, metrics: Mapping[str, Any], *, last: bool = False) -> bool:
        """At a boundary: whether this rank has found anything.

        Args:
            step: completed optimizer steps.
            metrics: what was logged since the boundary before.
            last: whether nothing comes behind it: then devices are waited for.
        """
        self._remedying.look(step)
        return self._tending.look(step, metrics, last=last)

    def waits(self, anybody: bool) -> None:
        """This boundary is in the middle of a step, where nothing can be done; arguments as of `treat`."""
        self._anybody = self._anybody or anybody

    def treat(self, step: int, anybody: bool) -> Record | Stopped | None:
        """Does what is to be done at this boundary: the same on all ranks; errors as `Remedying.do`.

        Args:
            step: completed optimizer steps.
            anybody: see `Tending.decide`.

        Returns:
            The record that the training has gone back to, or that it is to end, or neither.
        """
        anybody, self._anybody = anybody or self._anybody, False
        return self._done(self._tending.decide(anybody), step)

    def stuck(self, step: int, metrics: Mapping[str, Any]) -> Record | Stopped | None:
        """As `look` and `treat`, after many batches without a step: all ranks hear at once, and nothing is saved.

        Buffers and the place in the data are not those of the boundary any more.

        Args:
            step: completed optimizer steps.
            metrics: what was logged since the last look.
        """
        judgement = self._tending.decide(self._tending.at_once(self.look(step, metrics)))
        return None if judgement is None else self._done(self._unsaved(judgement, step, "a step is under way"), step)

    def _done(self, judgement: Judgement | None, step: int) -> Record | Stopped | None:
        if judgement is None or not judgement.actions:
            return None
        self.beating.rest()  # a restore takes its time
        return self._remedying.do(judgement, step)

    def _unsaved(self, judgement: Judgement, step: int, why: str) -> Judgement:
        others = tuple(due for due in judgement.actions if not isinstance(due.action, SaveNow))
        if len(others) < len(judgement.actions) and self._rank == 0:
            self._note("not saved", f"step {step} was not saved for its health: {why}")
        return replace(judgement, actions=others)

    def survived(self, step: int, said: str, back: Callable[[], str | None]) -> bool:
        """A device had no memory left for a step, and nothing has changed: whether batches were made smaller for it.

        Args:
            step: completed optimizer steps.
            said: what the device has said.
            back: makes the state that of the boundary again, else says why not.
        """
        judgement = self._tending.out_of_memory(step, said)
        if not judgement.actions:
            return False
        saves = any(isinstance(due.action, SaveNow) for due in judgement.actions)
        if saves and (why := back()) is not None:
            judgement = self._unsaved(judgement, step, why)
        self._remedying.do(judgement, step)
        return True

    def close(self, seconds: float = ANSWER_SECONDS) -> None:
        """Waits so long at most for those that are being told; nothing is watched any more."""
        self._remedying.close(seconds)
        self.beating.close()

    def _needs(self) -> Needs:
        """Of the newest checkpoint, or before there is one; looked for once each: that walks through all tensors."""
        last = self._checkpoints.last
        if self._needed is None or last is not self._last:
            self._last = last
            self._needed = needs_of(last, self._objects) if last else expected(self._objects, self._world)
        return self._needed


class _Parameters:
    """The trained parameters by name, looked for anew now and then: that takes longer than to look at them.

    Args:
        objects: what is trained; parameters that are replaced or unfrozen are found within some samples.
    """

    def __init__(self, objects: Mapping[str, object]) -> None:
        self._objects = objects
        self._found: list[tuple[str, Tensor]] = []
        self._asked = 0

    def __call__(self) -> list[tuple[str, Tensor]]:
        if self._asked % _ANEW == 0:
            self._found = list(named_parameters(self._objects))
        self._asked += 1
        return self._found


def _everywhere(session: Session, here: bool) -> bool:
    return session.group.everywhere(bytes([here]), "whether losses are scaled") == b"\1"


def _scales(value: object) -> bool:
    return isinstance(value, torch.amp.GradScaler) and value.is_enabled()


def _skips(value: object) -> bool:
    """Whether its last step was skipped, as far as it can tell: it counts those since then."""
    return _scales(value) and value.state_dict().get("_growth_tracker") == 0  # type: ignore[attr-defined]


def _history(session: Session, rules: Iterable[Rule]) -> History:
    """Of rules that do nothing there is none."""
    if not any(rule.actions for rule in rules):
        return History()
    return session.group.told(
        lambda: read_history(session.store, session.run.number), "what health checks have had done", History
    )


def _folder(session: Session) -> Path | None:
    url = session.store.url
    return None if "://" in url or url.startswith("memory:") else Path(url)
