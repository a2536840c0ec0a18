"""What is asked of whoever saves: everything about a checkpoint that is not the state itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.ids import Digest, nonce
from holdfast.records import Kind, Target
from holdfast.recovery.launching.session import Session
from holdfast.recovery.restoring.exactness import exactness_of
from holdfast.recovery.steps.progress import Progress
from holdfast.saver import SaveRequest
from holdfast.state.loaders import LoaderPosition


@dataclass(slots=True)
class Nonces:
    """One nonce for each boundary: what was kept in reserve there and what is saved there are the same state.

    So a save of a boundary whose reserve has become a checkpoint meanwhile finds its own record, not a conflict.
    """

    secret: str | None = None
    """What several ranks know, so that they have the same nonces; None: there are no others."""
    _at: tuple[int, int] | None = None
    _nonce: str = ""

    def of(self, timeline: int, step: int) -> str:
        """The nonce for the boundary after ``step``."""
        if self._at != (timeline, step):
            self._at, self._nonce = (timeline, step), nonce()
        if self.secret is None:
            return self._nonce
        # A save of several ranks that has failed is not tried again at its step: its name is taken.
        return str(Digest.of(f"{self.secret} {timeline} {step}".encode()))[:16]


def request_of(
    session: Session,
    progress: Progress,
    position: LoaderPosition | None,
    *,
    epoch: int,
    metrics: Mapping[str, Any],
    kind: Kind,
    reason: str,
    began: float,
    attempt: str,
) -> SaveRequest:
    """The request for the boundary at which the training stands.

    Args:
        session: the launch, and the newest durable record of its line.
        progress: the step.
        position: of the loader, if there is one.
        epoch: from 0.
        metrics: numbers of this boundary.
        kind: for the record.
        reason: for the record.
        began: `time.monotonic` when the loop began to wait for this save.
        attempt: the nonce of this boundary.
    """
    return SaveRequest(
        timeline=session.timeline,
        step=progress.step,
        epoch=None if position is None else epoch,
        parent=None if session.parent is None else Target.of(session.parent),
        kind=kind,
        reason=reason,
        metrics=dict(metrics),
        exactness=exactness_of(position, progress, session.group.size),
        environment=session.environment,
        config_digest=session.config_digest,
        attempt=attempt,
        began=began,
        rank=session.group.rank,
        world=session.group.size,
        patience=session.patience,
    )
