"""The state of a boundary, and what is to be said of it: taken for a save."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from holdfast.catalog.parts import Prints
from holdfast.ids import Digest
from holdfast.records import Kind
from holdfast.recovery.launching.session import Session
from holdfast.recovery.restoring.left_out import LeavingOut
from holdfast.recovery.restoring.whole import Whole
from holdfast.recovery.saving.requests import Nonces, request_of
from holdfast.recovery.steps.measuring import plain
from holdfast.recovery.steps.progress import Progress
from holdfast.saver import SaveRequest
from holdfast.state import Snapshot
from holdfast.state.fingerprints import Fingerprints
from holdfast.state.loaders import LoaderPosition


class Taking:
    """For one launch. Not thread-safe.

    Args:
        session: the launch.
        whole: the live state.
        progress: where the training stands.
        left_out: batches that are passed over, which belong to the position.
    """

    def __init__(self, session: Session, whole: Whole, progress: Progress, left_out: LeavingOut) -> None:
        self._session, self._whole, self._progress, self._left_out = session, whole, progress, left_out
        self._nonces = Nonces(session.secret if session.group.size > 1 else None)
        # All ranks have the same key, and nobody else has it.
        self._fingerprints = Fingerprints(int.from_bytes(Digest.of(session.secret.encode())[:8], "little"))

    def snapshot(self, position: LoaderPosition | None, stored: dict[str, Any] | None, rng: dict[str, Any]) -> Snapshot:
        """The state, with random states as given.

        Args:
            position: of the loader, if there is one.
            stored: the position of the checkpoint that was resumed from, as long as there is no loader.
            rng: for the checkpoint.
        """
        return self._whole.snapshot(data=self._data(position, stored), rng=rng)

    def compared(self, snapshot: Snapshot) -> Snapshot:
        """With fingerprints of what other ranks hold as well, by which it is found out if they have drifted apart.

        Reads all of that once, before anything may change it.
        """
        prints = tuple(
            Prints(one.ranks, array("I", one.places).tobytes(), b"".join(self._fingerprints.of(one.tensors)))
            for one in snapshot.replicas
        )
        return snapshot.with_prints(prints)

    def request(
        self,
        position: LoaderPosition | None,
        *,
        epoch: int,
        metrics: Mapping[str, Any],
        kind: Kind,
        reason: str,
        began: float,
    ) -> SaveRequest:
        """What is to be said of it; as `request_of`."""
        return request_of(
            self._session,
            self._progress,
            position,
            epoch=epoch,
            metrics=plain(metrics),
            kind=kind,
            reason=reason,
            began=began,
            attempt=self._nonces.of(self._session.timeline, self._progress.step),
        )

    def _data(self, position: LoaderPosition | None, stored: dict[str, Any] | None) -> dict[str, Any] | None:
        """The loader's position at the boundary: in the body, the batch at hand is not used up yet."""
        if position is None:
            return stored
        return self._left_out.stored(position.before() if self._progress.in_body else position.state())
