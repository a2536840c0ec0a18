"""What follows a committed save, and never comes before it: read back, mark verified, retention, journal."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.catalog.journal import JournalWriter
from holdfast.catalog.marks import NO_MARKS, add_mark, add_metrics, read_marks, read_record_marks
from holdfast.catalog.protections import read_retention_facts
from holdfast.catalog.retention import plan_retention
from holdfast.catalog.sweeps import execute, plan_sweep
from holdfast.errors import BeingDeleted, Damaged, Missing, StorageError
from holdfast.ids import ObjectName, RecordId
from holdfast.packs.verify import Problem
from holdfast.policy import Best, Policy
from holdfast.records import Kind, MarkKind, Record, Target
from holdfast.recovery.readback import quarantine, read_back
from holdfast.recovery.session import Session

logger = logging.getLogger(__name__)


class Afterwards:
    """Belongs to one launch; not thread-safe."""

    def __init__(self, session: Session, keep: Policy) -> None:
        self._session, self._keep = session, keep
        writer = f"{socket.gethostname().lower()}-{os.getpid()}-{session.launch.number}"
        self._journal = JournalWriter(session.store, session.run.number, _writer_name(writer))
        self._metrics: dict[RecordId, Mapping[str, Any]] = {}

    def resumed(self, record: Record) -> None:
        """Takes the metrics of the line that is continued, for `best`."""
        session = self._session
        marks = read_marks(session.store, session.run.number)
        line = {target.address for target in session.run.lineage().ancestors(Target.of(record.address))}
        self._metrics = {
            RecordId(one.id): marks.get(RecordId(one.id), NO_MARKS).metrics(one)
            for one in session.run.records()
            if one.address in line
        }
        self.note("resumed", f"from {record.address}")

    def watches(self, save: Policy) -> bool:
        """Whether ``save`` looks at metrics at all: reading a tensor costs a wait for the device."""
        return any(isinstance(part, Best) for part in save.parts)

    def saved_metrics(self, save: Policy) -> dict[str, Sequence[Any]]:
        """Per watched metric, its values in the checkpoints that exist."""
        names = [part.metric for part in save.parts if isinstance(part, Best)]
        return {name: [one[name] for one in self._metrics.values() if name in one] for name in names}

    def log(self, record: Record, metrics: Mapping[str, Any]) -> None:
        """Adds metrics to a record that exists; if somebody deletes it, they are of no use to anybody.

        Raises:
            StorageError: not known to be written.
        """
        try:
            add_metrics(self._session.store, record.address, metrics, by="log")
        except (BeingDeleted, Missing) as error:
            logger.warning("metrics of %s were not stored: %s", record.address, error)
        else:
            self.measured(record, metrics)

    def measured(self, record: Record, metrics: Mapping[str, Any]) -> None:
        """Takes note of metrics of a record, for `best`."""
        id_ = RecordId(record.id)
        self._metrics[id_] = {**self._metrics.get(id_, {}), **metrics}

    def saved(self, record: Record) -> set[ObjectName]:
        """Everything that follows a save; gives the packs that did not survive it, and must not be reused.

        Raises:
            StorageError: not all of it was done; the checkpoint is not concerned.
        """
        self.measured(record, record.metrics)
        for text in record.anomalies:
            logger.warning("%s: %s", record.address, text)
            self.note("anomaly", f"{record.address}: {text}")
        if problems := read_back(self._session.store, record):
            return self._quarantine(record, problems)
        add_mark(self._session.store, record.address, MarkKind.VERIFIED, by="saver")
        self._retain()
        return set()

    def is_final(self, record: Record) -> bool:
        """Whether a record is known as the end of a training."""
        return record.kind is Kind.FINAL or read_record_marks(self._session.store, record.address).final

    def finished(self, record: Record) -> None:
        """The training ended with a record that was made for another reason.

        Raises:
            Missing, BeingDeleted: somebody has deleted it.
            StorageError: not known to be written.
        """
        add_mark(self._session.store, record.address, MarkKind.FINAL, by="checkpointer")

    def note(self, kind: str, message: str) -> None:
        """One line of the journal; written at the next restore, failure or end."""
        self._journal.add(kind, message)

    def close(self) -> None:
        """Writes the journal; a failure is logged, for nothing depends on it."""
        try:
            self._journal.flush()
        except StorageError as error:
            logger.warning("the journal of %s could not be written: %s", self._session.run.number, error)

    def _quarantine(self, record: Record, problems: Sequence[Problem]) -> set[ObjectName]:
        text = f"read back after the save, {problems[0].message}"
        logger.error("%s: %s; the next save writes it again", record.address, text)
        self.note("damaged", f"{record.address}: {text}")
        return quarantine(self._session.store, record, problems)

    def _retain(self) -> None:
        run = self._session.run
        plan = plan_retention(self._keep.kept, read_retention_facts(run))
        if not plan.delete:
            return
        store = self._session.store
        try:
            done = execute(store, plan_sweep(store, run, plan.delete), run=run)
        except Damaged as error:
            logger.warning("retention of %s has deleted nothing: %s", run.number, error)
            return
        for address in done.records:
            self._metrics.pop(address.id, None)


def _writer_name(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text).strip("-")[-80:]
