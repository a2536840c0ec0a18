"""From the arguments of a `Checkpointer` to a training that has resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from holdfast.catalog.runs import Run
from holdfast.catalog.store import Store
from holdfast.recovery.caring.care import Caring
from holdfast.recovery.environment.launcher import LauncherFacts, kill_facts
from holdfast.recovery.environment.notices import Lookout, Metadata, metadata_of
from holdfast.recovery.environment.signal_names import signal_numbers
from holdfast.recovery.environment.signals import StopRequests
from holdfast.recovery.handover.beating import Beating
from holdfast.recovery.launching.beginning import open_session
from holdfast.recovery.launching.session import Plan, Session
from holdfast.recovery.ranks.group import open_group
from holdfast.recovery.saving.afterwards import Afterwards
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.recovery.saving.making import Making, open_checkpoints
from holdfast.recovery.stopping.ending import not_opened
from holdfast.recovery.stopping.preempting import Hook
from holdfast.recovery.training.training import Training
from holdfast.state.audit import audit
from holdfast.state.per_rank import bare, named

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """What may ask a training to stop, and who hears of it; checked."""

    signals: tuple[int, ...]
    grace: float | None
    metadata: Metadata | None
    on_preempt: Hook | None

    def requests(self) -> StopRequests:
        """Listens inside of loops."""
        return StopRequests(self.signals, grace=self.grace, facts=kill_facts())

    def lookout(self, stops: StopRequests) -> Lookout:
        """Looks for the cloud's notice, if that was asked for."""
        return Lookout(self.metadata, stops.ask)


def stopping_of(
    signals: Sequence[str | int], grace: float | None, notice: str | None, on_preempt: Hook | None
) -> Stopping:
    """The arguments of a `Checkpointer`; ``grace`` is checked already.

    Raises:
        InvalidInput: one that cannot be right.
    """
    return Stopping(
        signals=signal_numbers(signals),
        grace=grace,
        metadata=metadata_of(notice),
        on_preempt=on_preempt,
    )


def say_findings(objects: Mapping[str, object], loader: object, namespace: Mapping[str, object]) -> None:
    """Says what looks as if it has state that nobody registered.

    Args:
        objects: what is registered.
        loader: of the loop.
        namespace: the names that the training script can see.
    """
    bared = {name: bare(value) for name, value in objects.items()}
    for finding in audit({**bared, "loader": loader}, namespace):
        logger.log(logging.WARNING if finding.serious else logging.INFO, "%s", finding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Everything that a training needs, checked; nothing is read or written yet."""

    settings: Mapping[str, Any]
    """Fields of a `Plan`."""
    making: Making
    stopping: Stopping
    caring: Caring
    stops: StopRequests
    objects: Mapping[str, object]
    prefix: str
    values: dict[str, Any]
    files: dict[str, bytes]
    accumulate: int | None
    config: Mapping[str, Any]
    """The user's own, nothing blotted out."""

    def open(self, facts: LauncherFacts, total: int | None, claim: Callable[[Store, Run], None]) -> Training:
        """Meets the other ranks, claims the run and makes a launch of it; nothing is restored yet.

        Args:
            facts: of the launcher.
            total: completed steps at which to end.
            claim: may refuse the run by raising.

        Raises:
            HoldfastError: as `open_group` and `open_session`.
        """
        plan = Plan(**self.settings, total=total, facts=facts, good_after=self.caring.aspiring)
        group = open_group(plan.facts, plan.patience)
        try:
            return self._training(open_session(plan, claim=claim, group=group), plan)
        except BaseException:
            group.close()
            raise

    def _training(self, session: Session, plan: Plan) -> Training:
        after, beating = Afterwards(session), Beating(self.caring.watchdog, asked=self.caring.asked)
        with ExitStack() as unused:
            try:
                checkpoints = open_checkpoints(session, plan, self.making, after, self.stops, beating)
                unused.callback(checkpoints.close, 0.0)
                unused.callback(beating.close)  # first, for it writes into what the other one lets go
                training = self._made(session, plan, checkpoints, after, beating)
            except BaseException as error:
                not_opened(session, after, error)
                raise
            unused.pop_all()  # the training closes them
        return training

    def _made(
        self, session: Session, plan: Plan, checkpoints: Checkpoints, after: Afterwards, beating: Beating
    ) -> Training:
        left = {name: self.objects[name] for name in plan.not_restored}
        return Training(
            session,
            named(self.objects, self.prefix, session.group.rank),
            self.values,
            self.files,
            plan=replace(plan, not_restored=tuple(named(left, self.prefix, session.group.rank))),
            checkpoints=checkpoints,
            after=after,
            stops=self.stops,
            accumulate=self.accumulate,
            on_preempt=self.stopping.on_preempt,
            caring=self.caring,
            beating=beating,
        )
