"""What the trainer knows of its run, for `best` and `auto`: metrics, costs, failures; and its own journal."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from holdfast.catalog.journal.journal import JournalWriter
from holdfast.catalog.journal.last_words import ended_on_purpose
from holdfast.catalog.marks import NO_MARKS, add_mark, read_marks, read_record_marks
from holdfast.errors import StorageError
from holdfast.ids import RecordId
from holdfast.policy import Auto, Best, Policy
from holdfast.policy.experience import Experience, experience_of, untold
from holdfast.records import Kind, MarkKind, Record, Target
from holdfast.recovery.launching.session import Session

logger = logging.getLogger(__name__)

ASKED = 50
"""So many earlier launches, the newest, are asked how they ended; older ones count as failures: the safe side."""

JOURNAL_SECONDS = 30.0
"""How long events wait to be written together: each time makes one more object."""


class Afterwards:
    """Belongs to one launch; not thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        writer = f"{socket.gethostname().lower()}-{os.getpid()}-{session.launch.number}"
        self._journal = JournalWriter(session.store, session.run.number, _writer_name(writer))
        self._metrics: dict[RecordId, Mapping[str, Any]] = {}
        self._began = self._flushed = time.monotonic()
        self._learned: Experience | None = None

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
        self._learned = None  # one more restore
        self.note("resumed", f"from {record.address}")

    def watches(self, save: Policy) -> bool:
        """Whether ``save`` looks at metrics at all: reading a tensor costs a wait for the device."""
        return any(isinstance(part, Best) for part in save.parts)

    def saved_metrics(self, save: Policy) -> dict[str, Sequence[Any]]:
        """Per watched metric, its values in the checkpoints that exist or are in the making."""
        names = [part.metric for part in save.parts if isinstance(part, Best)]
        return {name: [one[name] for one in self._metrics.values() if name in one] for name in names}

    def committed(self, record: Record) -> None:
        """A checkpoint of this launch is durable: its metrics, and what it cost."""
        self.measured(Target.of(record.address), record.metrics)
        if self._learned is not None:
            self._learned = self._learned.with_timings([record.timing])

    def experience(self, asked: Iterable[Policy]) -> Experience:
        """What the run has learned about itself, for `auto`; nothing if none of ``asked`` is one.

        Read from the store when it is first asked for, and again after a restore.
        """
        if not any(isinstance(part, Auto) for part in asked):
            return Experience()
        if self._learned is None:
            self._learned = self._read_experience()
        return replace(self._learned, seconds=self._learned.seconds + time.monotonic() - self._began)

    def _read_experience(self) -> Experience:
        run, now = self._session.run, (self._session.launch.number, self._session.timeline)
        try:
            launches, starts, records = run.launches(), run.starts(), run.records()
            asked = untold(starts, records, now=now)[:ASKED]
            on_purpose = ended_on_purpose(run.store, run.number, asked)
            return experience_of(launches, starts, records, now=now, on_purpose=on_purpose)
        except StorageError as error:
            logger.warning("what %s has learned about its saves could not be read: %s", run.number, error)
            return Experience()

    def measured(self, target: Target, metrics: Mapping[str, Any]) -> None:
        """Takes note of metrics of a checkpoint, for `best`."""
        id_ = RecordId(target.id)
        self._metrics[id_] = {**self._metrics.get(id_, {}), **metrics}

    def gone(self, ids: Iterable[str]) -> None:
        """These checkpoints do not exist: removed by retention, or never made."""
        for id_ in ids:
            self._metrics.pop(RecordId(id_), None)

    def is_final(self, record: Record) -> bool:
        """Whether a record is known as the end of a training."""
        return record.kind is Kind.FINAL or read_record_marks(self._session.store, record.address).final

    def finished(self, record: Record) -> None:
        """The training ended with a record that was made for another reason.

        Raises:
            Missing, BeingDeleted: somebody has deleted it.
            StorageError: not known to be written.
        """
        if self._session.group.rank:
            return
        add_mark(self._session.store, record.address, MarkKind.FINAL, by="checkpointer")

    def note(self, kind: str, message: str, /, **data: Any) -> None:
        """One line of the journal; written by `flush` or at the end."""
        self._journal.add(kind, message, **data)

    def flush(self) -> None:
        """Writes the journal, if that was not done for a while: where the loop waits anyway."""
        if time.monotonic() - self._flushed >= JOURNAL_SECONDS:
            self.close()

    def close(self) -> None:
        """Writes the journal; a failure is logged, for nothing depends on it."""
        self._flushed = time.monotonic()
        try:
            self._journal.flush()
        except StorageError as error:
            logger.warning("the journal of %s could not be written: %s", self._session.run.number, error)


def _writer_name(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text).strip("-")[-80:]
