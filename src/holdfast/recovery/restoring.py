"""Restoring: the newest good checkpoint, a named one, or parts of one; a new timeline each time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from holdfast.errors import StateMismatch
from holdfast.ids import RecordAddress
from holdfast.records import Record
from holdfast.recovery.checkpoints import Checkpoints
from holdfast.recovery.loading import Loaded, load
from holdfast.recovery.session import Session
from holdfast.recovery.whole import Whole
from holdfast.state.gradients import clear_gradients

logger = logging.getLogger(__name__)


class Restoring:
    """One per launch. Not thread-safe.

    Args:
        session: the launch.
        whole: the live state.
        checkpoints: told what the line goes on from.
        begin: called when a whole state is loaded and its timeline not noted yet: everything else goes back with it.
        not_restored: names of what a run leaves as it is when it begins with the checkpoint of another one.
    """

    def __init__(
        self,
        session: Session,
        whole: Whole,
        checkpoints: Checkpoints,
        begin: Callable[[Record, Loaded], None],
        not_restored: Collection[str] = (),
    ) -> None:
        self.torn = False
        """Whether the live state may be half of one checkpoint and half of another."""
        self._session, self._whole, self._checkpoints, self._begin = session, whole, checkpoints, begin
        self._not_restored = not_restored

    @property
    def unbegun(self) -> bool:
        """Whether nothing was restored or begun yet."""
        return not self._session.begun

    def resume(self) -> None:
        """Restores the newest good checkpoint; a fresh start leaves everything as it is."""
        other = self._other() if self._not_restored else None
        if other is not None and not self._session.has_work():
            rest = tuple(name for name in self._whole.objects if name not in self._not_restored)
            self.restore_parts(str(other.id), rest)
            return
        fresh, self.torn = self._session.resume(self._load) is None, False
        if fresh:
            self._session.group.agreed(self._whole.check, "whether the state can be saved")
            self._checkpoints.resumed(None)

    def _other(self) -> RecordAddress | None:
        """The checkpoint of another run that this one is to begin with, if it is."""
        asked = self._session.asked
        return asked if asked is not None and asked.run != self._session.run.number else None

    def restore_from(self, reference: str | None) -> None:
        """Restores a named checkpoint, or the newest one of this line again, as a new timeline."""
        self._checkpoints.drain()
        asked = self._session.named(reference).address if reference else None
        self._session.resume(self._load, asked or self._session.newest(self._checkpoints.last).address, asked)
        self.torn = False

    def go_back(self, address: RecordAddress, why: str) -> None:
        """Restores a checkpoint of this run, or the newest older one that can be read, as a new timeline.

        Args:
            address: of it.
            why: for the journal.
        """
        self._checkpoints.drain()
        self._session.resume(self._load, address, why=why)
        self.torn = False

    def restore_parts(self, reference: str | None, only: tuple[str, ...]) -> list[str]:
        """Restores parts of a checkpoint and nothing else, no step number either; returns what was not loaded.

        A run that has work of its own goes on with that: what its first launch began with, it has learned from since.
        """
        self._checkpoints.drain()
        record = self._session.named(reference) if reference else self._session.newest(self._checkpoints.last)
        if self.unbegun and self._session.has_work():
            self.resume()
            if reference is None or record.run != self._session.run.number:
                logger.info("%s goes on from its own work, not from %s", self._session.run.number, record.address)
                return []
        not_loaded = self._read(record, only).not_loaded
        if self.unbegun:
            self._session.begin_with_parts(record, only)
            self._checkpoints.resumed(None)
        return not_loaded

    def _load(self, record: Record) -> None:
        loaded = self._read(record)
        # Gradients of the state that was left, NaN perhaps, would be added to those of the first batch.
        clear_gradients(self._whole.objects.values())
        self._begin(record, loaded)

    def _read(self, record: Record, only: tuple[str, ...] | None = None) -> Loaded:
        before, self.torn = self.torn, True
        try:
            loaded = load(self._session.store, record, self._whole, self._session.group, only=only)
        except StateMismatch:
            self.torn = before  # it is found before anything is changed
            raise
        self.torn = before or only is None  # a whole state is not of the old timeline: until the new one is noted
        return loaded
