"""Restoring: the newest good checkpoint, a named one, or parts of one; a new timeline each time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from holdfast.errors import StateMismatch
from holdfast.ids import RecordAddress
from holdfast.records import Record
from holdfast.recovery.launching.session import Session
from holdfast.recovery.restoring.loading import Loaded, load
from holdfast.recovery.restoring.whole import Whole
from holdfast.recovery.saving.checkpoints import Checkpoints
from holdfast.state.gradients import clear_gradients

logger = logging.getLogger(__name__)


class Restoring:
    """One per launch. Not thread-safe.

    Args:
        session: the launch.
        whole: the live state.
        checkpoints: told what the line goes on from.
        begin: called when a whole state is loaded and its timeline not noted yet: everything else goes back with it.
        changed: called when parts are loaded over the state of this boundary.
        not_restored: names of what a run leaves as it is when it begins with the checkpoint of another one.
    """

    def __init__(
        self,
        session: Session,
        whole: Whole,
        checkpoints: Checkpoints,
        begin: Callable[[Record, Loaded], None],
        changed: Callable[[], None],
        not_restored: Collection[str] = (),
    ) -> None:
        self.torn = False
        """Whether the live state may be half of one checkpoint and half of another."""
        self._session, self._whole, self._checkpoints = session, whole, checkpoints
        self._begin, self._changed = begin, changed
        self._not_restored = tuple(not_restored)
        self._as_made = True

    @property
    def unbegun(self) -> bool:
        """Whether nothing was restored or begun yet."""
        return not self._session.begun

    def resume(self) -> None:
        """Restores the newest good checkpoint; a fresh start leaves everything as it is."""
        fresh, self.torn = self._session.resume(self._load) is None, False
        if fresh:
            self._session.group.agreed(self._whole.check, "whether the state can be saved")
            self._checkpoints.resumed(None)

    def restore_from(self, reference: str | None) -> None:
        """Restores a named checkpoint, or the newest one of this line again, as a new timeline."""
        self._checkpoints.drain()
        asked = self._session.named(reference).address if reference else None
        load = self._load if asked is None else self._load_whole
        self._session.resume(load, asked or self._session.newest(self._checkpoints.last).address, asked)
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
        self._changed()
        if self.unbegun:
            self._session.begin_with_parts(record, only)
            self._checkpoints.resumed(None)
        return not_loaded

    def _load(self, record: Record) -> None:
        self._load_without(self._left(record), record)

    def _load_whole(self, record: Record) -> None:
        if self._not_restored and record.run != self._session.run.number:
            names = ", ".join(self._not_restored)
            logger.warning("%s: %s is restored, too: that counts for what a run begins with", record.address, names)
        self._load_without((), record)

    def _left(self, record: Record) -> tuple[str, ...]:
        """What stays as the program made it: only where a run begins, and nothing has changed it yet.

        Raises:
            StateMismatch: it is not as it was made any more.
        """
        if not self._not_restored or record.run == self._session.run.number:
            return ()
        if self._session.begun or not self._as_made:
            names = ", ".join(self._not_restored)
            raise StateMismatch(
                f"{record.address}, of another run, is to be restored without {names}; but {names} is not as the "
                "program made it any more: start the program again, or begin a new run with that checkpoint"
            )
        self._session.group.agreed(self._whole.check, "whether the state can be saved")
        return self._not_restored

    def _load_without(self, left: tuple[str, ...], record: Record) -> None:
        loaded = self._read(record, left=left)
        # Gradients of the state that was left, NaN perhaps, would be added to those of the first batch.
        clear_gradients(self._whole.objects.values())
        self._begin(record, loaded)
        self._session.left = left
        if left and self._session.group.rank == 0:
            logger.info("%s is restored, but %s stays as the program made it", record.address, ", ".join(left))

    def _read(self, record: Record, only: tuple[str, ...] | None = None, left: tuple[str, ...] = ()) -> Loaded:
        before, self.torn = self.torn, True
        made, self._as_made = self._as_made, self._as_made and bool(left)
        try:
            loaded = load(self._session.store, record, self._whole, self._session.group, only=only, left=left)
        except StateMismatch:
            self.torn, self._as_made = before, made  # it is found before anything is changed
            raise
        self.torn = before or only is None  # a whole state is not of the old timeline: until the new one is noted
        return loaded
