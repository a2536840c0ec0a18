"""The work of a saver process: what is staged becomes durable, then what follows, then it waits for more.

In this order, whenever there is a choice: staged generations, oldest first;
small things that were asked for; what follows a save; reading old packs back.
When the trainer is gone, what is sealed is finished, and the saver ends.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from holdfast.catalog.journal.journal import JournalWriter
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.runs import read_record
from holdfast.catalog.standing import Standing
from holdfast.errors import (
    BeingDeleted,
    Conflict,
    Damaged,
    HoldfastError,
    NotFound,
    SaveFailed,
    StorageError,
)
from holdfast.ids import Digest, RecordId
from holdfast.records import Record, Target
from holdfast.saver import messages
from holdfast.saver.arena import StagedContent, kept_digests
from holdfast.saver.asides import add
from holdfast.saver.channel import LONGEST, Channel, Closed
from holdfast.saver.control import Control, Intent, Row
from holdfast.saver.figures import figures
from holdfast.saver.following import Followed, Following
from holdfast.saver.inheriting import Inheriting
from holdfast.saver.jobs import Content, Job, SaveRequest, Shape, decode_job
from holdfast.saver.memory import Slab
from holdfast.saver.orders import Orders
from holdfast.saver.rereading import Rereading
from holdfast.saver.rescuing import Rescuing
from holdfast.saver.saving import Restage, Saving
from holdfast.saver.trying import Trying
from holdfast.seals import seal

logger = logging.getLogger(__name__)

JOURNAL_SECONDS = 30.0
"""How long events wait to be written together; at the end, and after a failure, they wait for nothing."""
PROGRESS_SECONDS = 0.1
"""How often it is told how far a save is."""
ALIVE_SECONDS = 1.0
"""How often it is told that something without figures gets on."""
ENDING_SECONDS = 600.0
"""With ``on_full="pause"``: how long room is waited for once the trainer is gone, or waits for its end."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """The saver's main thread."""

    saving: Saving
    following: Following
    rereading: Rereading
    journal: JournalWriter
    control: Control
    slabs: dict[int, Slab]
    """By serial number."""
    channel: Channel
    orders: Orders
    take_over: Callable[[], Standing]
    """Announces this saver, after one that has died perhaps."""
    pause_when_full: bool
    unfollowed: deque[tuple[int, Record]] = field(default_factory=deque)
    inheriting: Inheriting = field(init=False)
    trying: Trying = field(init=False)
    rescuing: Rescuing = field(init=False)
    committed: int = 0
    """The newest generation that is a checkpoint, as far as this saver knows."""
    flushed: float = field(default_factory=time.monotonic)
    alive: float = 0.0
    refused: bool = False
    """Whether it was said that it cannot be announced."""

    def __post_init__(self) -> None:
        self.following.progress = self.rereading.progress = self._alive
        self.rescuing = Rescuing(orders=self.orders, control=self.control)
        self.inheriting = Inheriting(
            control=self.control,
            slabs=self.slabs,
            finished=lambda row: self.saving.finished(self._read(row)[0]),
            committed=self._committed,
            given_up=self._tell_given_up,
        )
        together = self.saving.together
        together.orphaned, together.alive = lambda: self.orders.orphaned, self._alive
        together.unsure, together.overtaken = self.rescuing.unsure, self.rescuing.overtaken
        self.trying = Trying(
            saving=self.saving,
            following=self.following,
            pause_when_full=self.pause_when_full,
            said=self.say,
            deleted=self._deleted,
            wait=self.orders.pause,
            last_patience=ENDING_SECONDS if self.pause_when_full else 0.0,
        )

    def stand(self) -> None:
        """Announces this saver, if it is not announced; where that fails now it is tried again before each save."""
        if self.saving.standing is not None:
            return
        try:
            self.saving.standing = self.take_over()
        except StorageError as error:
            if not self.refused:
                self.say(logging.ERROR, f"the saver could not announce itself, and goes on trying: {error}")
            self.refused = True
        else:
            self.tell(messages.Ready(pid=os.getpid()))

    def run(self) -> None:
        """Until nothing more can come."""
        self.inheriting.find()
        self.stand()  # whoever hears that it stands by knows that it has told of all that it found
        # What is sealed is looked at after the orders: what was sealed before the end came is not overlooked.
        while self._step(self.orders.ending, self.orders.orphaned, len(self.orders.asides)):
            self.channel_flush(0.0)
        self._end()

    def _step(self, ending: bool, orphaned: bool, asides: int) -> bool:
        """Does the most urgent thing that there is to do, or waits for one; False: nothing more can come."""
        if (row := self._next()) is not None:
            self._persist(row)
        elif asides and (ending or self.orders.asides[0].after <= self.control.finished()):
            self._aside(self.orders.asides.popleft())
        elif self.unfollowed:
            if orphaned:
                self._leave()  # whoever waits for this saver need not wait for what follows
            self._follow(*self.unfollowed.popleft())
        elif self.orders.free_space:
            self._free_space()
        elif self.inheriting.unread and not ending:
            self.stand()
            if self.inheriting.again() and self.saving.standing is not None:
                self.tell(messages.Ready(pid=os.getpid()))
            self.orders.wait(1.0)
        elif ending:
            return False
        elif not self._reread():
            self.stand()
            self.orders.calm()
            self.orders.wait(1.0)
        return True

    def _leave(self) -> None:
        try:
            if self.saving.standing is not None:
                self.saving.standing.end()
        except StorageError as error:
            self.say(logging.WARNING, f"a later launch takes this saver for one at work: {error}")

    def _end(self) -> None:
        self._leave()
        self._flush_journal()
        self.channel_flush(1.0)

    # What is staged

    def _next(self) -> Row | None:
        """The next generation to save: what was asked for in order; in need, also what was kept in reserve."""
        rows = [row for row in self.control.rows() if row.pending and row.slab in self.slabs]
        asked = next((row for row in rows if row.intent is Intent.SAVE), None)
        if asked is not None or not (self.orders.orphaned or self.orders.rescue):
            return asked
        reserve = [row for row in rows if row.intent is Intent.RESERVE and row.generation > self.committed]
        if reserve:
            return reserve[-1]
        self.orders.rescue = None
        return None

    def _persist(self, row: Row) -> None:
        rescue = self.orders.rescue
        self.stand()
        try:
            if not self.control.taken(row):
                return
        except SaveFailed as error:
            self.say(logging.WARNING, str(error))
            self.orders.wait(1.0)
            return
        try:
            request, shape, job = self._read(row)
            self.rescuing.under_way = row.intent is Intent.RESERVE
            request = self.rescuing.begun(request) if self.rescuing.under_way else request
            self._save(row, request, shape, self._told_content(request, row, shape, job))
        except Exception as error:  # one save that fails must not end the saver, whatever it is
            self._given_up(row, error)
        finally:
            if row.intent is Intent.RESERVE and self.orders.rescue is rescue:
                self.orders.rescue = None  # else another one has come meanwhile
            self.control.done(row)

    def _save(self, row: Row, request: SaveRequest, shape: Shape, content: Content) -> None:
        told = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal told
            if done < total and time.monotonic() - told < PROGRESS_SECONDS:
                return
            told = time.monotonic()
            self.tell(messages.Progress(generation=row.generation, done=done, total=total))

        self.saving.progress = progress
        record = self.trying.save(request, shape, content)
        self.journal.add("saved", f"{record.address}: {record.reason}", **figures(record))
        self._committed(row, record)  # the trainer may note what follows from it
        for name in request.tags:
            self._aside(messages.AddTag(target=Target.of(record.address), tag=name))

    def _committed(self, row: Row, record: Record) -> None:
        sealed = seal(record.name, record)
        self.tell(messages.Committed(generation=row.generation, record=sealed if len(sealed) < LONGEST // 2 else b""))
        self.committed = max(self.committed, row.generation)
        self.unfollowed.append((row.generation, record))

    def _read(self, row: Row) -> tuple[SaveRequest, Shape, Job]:
        document = bytes(self.slabs[row.slab].memory[row.offset : row.offset + row.length])
        if Digest.of(document) != row.digest:
            raise SaveFailed(f"the document of generation {row.generation} is not what the trainer has sealed")
        return decode_job(document)

    def _content(self, row: Row, shape: Shape, job: Job) -> StagedContent:
        large = shape.large
        kept = [place for place, offset in enumerate(job.offsets) if offset < 0]
        known = self._kept(shape, job, kept) if kept else {}
        return StagedContent(self.slabs[row.slab], large, job.offsets, known)

    def _told_content(self, request: SaveRequest, row: Row, shape: Shape, job: Job) -> StagedContent:
        try:
            return self._content(row, shape, job)
        except Exception as error:
            self.saving.gave_up(request, error)  # other ranks wait for this one
            raise

    def _kept(self, shape: Shape, job: Job, kept: list[int]) -> dict[int, Digest]:
        """The digests of frozen tensors that are not staged, out of the record that has them."""
        target = job.stored_in
        try:
            if target is None:
                raise Restage("frozen tensors are not staged, and no record is named that has them")
            recent = (saved.manifest for saved in self.saving.recent if saved.record.address == target.address)
            if (manifest := next(recent, None)) is None:
                store = self.saving.launch.run.store
                record = read_record(store, target.address)
                if not isinstance(record, Record):
                    raise Restage(f"{target.address} is gone, and frozen tensors were left to it")
                manifest = read_manifest(store.run(target.run), record.manifest_digest)
        except (Damaged, NotFound) as error:
            raise Restage(f"frozen tensors were left to a record that cannot be read: {error}") from error
        found = kept_digests(shape.large, kept, manifest)
        if found is None:
            raise Restage("frozen tensors were left to a record that has not all of them; they are staged again")
        return found

    def _given_up(self, row: Row, error: Exception) -> None:
        kind = error.kind if isinstance(error, HoldfastError) else "error"
        text = str(error) if isinstance(error, HoldfastError) else f"{type(error).__name__}: {error}"
        if self.rescuing.made_way(row, error):
            self._tell_given_up(row, kind, text, on_purpose=True)
            return
        trace = "".join(traceback.format_exception(error))[-4000:]
        self.journal.add("save failed", text, traceback=trace)
        self._tell_given_up(row, kind, text, restage=isinstance(error, Restage))
        self._flush_journal()
        if not isinstance(error, HoldfastError):
            self.say(logging.ERROR, f"the saver has met something unexpected:\n{trace}")

    def _tell_given_up(self, row: Row, kind: str, text: str, **why: bool) -> None:
        self.tell(messages.GivenUp(generation=row.generation, kind=kind, text=text[:8000], **why))

    # What else there is to do

    def _free_space(self) -> None:
        self.orders.free_space = False
        try:
            self._deleted(self.following.retain())
        except (StorageError, BeingDeleted, Damaged) as error:
            self.say(logging.WARNING, f"no space was freed: {error}")

    def _aside(self, aside: messages.Aside) -> None:
        try:
            add(self.saving.launch.run.store, aside)
        except (StorageError, Damaged, Conflict, NotFound) as error:
            self.journal.add("not noted", str(error))
            self.say(logging.ERROR, f"{aside.target.address}: {error}")
        if aside.number:
            self.tell(messages.Noted(number=aside.number))

    def _follow(self, generation: int, record: Record) -> None:
        for text in record.anomalies:
            self.journal.add("anomaly", f"{record.address}: {text}")
        try:
            found = self.following.follow(record, self.saving.packs_of(record), retain=not self.orders.orphaned)
        except (StorageError, BeingDeleted, Damaged) as error:
            # The checkpoint is committed; what follows it is tried again after the next one.
            self.say(logging.WARNING, f"after the save of {record.address}: {error}")
            found = Followed()
        if found.problem:
            self.journal.add("damaged", found.problem)
        self.saving.damaged |= found.damaged
        self.rereading.committed(record, self.saving.packs_of(record) or ())
        self._followed(generation, found)
        self._flush_journal(JOURNAL_SECONDS)

    def _followed(self, generation: int, found: Followed, *, restage: bool = False) -> None:
        for start in range(0, max(1, len(found.deleted)), 1000):
            self.tell(
                messages.Followed(
                    generation=generation,
                    damaged=[str(name) for name in sorted(found.damaged)[:100]],
                    deleted=[str(id_) for id_ in found.deleted[start : start + 1000]],
                    restage=restage or bool(found.damaged),
                )
            )

    def _deleted(self, ids: Sequence[RecordId]) -> None:
        """Tells the trainer what had to go, whatever becomes of the save that it went for."""
        if ids:
            self._followed(0, Followed(deleted=list(ids)))

    def _alive(self, _: int) -> None:
        """Tells that work without figures gets on: whoever waits for it goes on waiting."""
        if time.monotonic() - self.alive >= ALIVE_SECONDS:
            self.alive = time.monotonic()
            self.tell(messages.Alive())

    def _reread(self) -> bool:
        """Reads one old pack back that newer checkpoints rely on; whether there was one whose turn it is."""
        pack = self.rereading.turn()
        if pack is None:
            return False
        try:
            problems = self.rereading.read(pack)
        except StorageError as error:
            self.say(logging.WARNING, f"{pack} could not be read back: {error}")
            return True
        if problems:
            text = f"{problems[0].message}; checkpoints rely on it, so the next save writes it again"
            self.saving.damaged.add(pack)
            self.journal.add("damaged", text)
            self.say(logging.ERROR, text)
            self._followed(0, Followed(damaged=frozenset([pack])), restage=True)
        return True

    def _flush_journal(self, seconds: float = 0.0) -> None:
        """Writes the journal, if that was not done for so long: each time makes one more object."""
        if time.monotonic() - self.flushed < seconds:
            return
        self.flushed = time.monotonic()
        try:
            self.journal.flush()
        except StorageError as error:
            self.say(logging.WARNING, f"the journal could not be written yet: {error}")

    # Talking

    def tell(self, message: messages.ToTrainer) -> None:
        """Sends; that nobody listens any more changes nothing."""
        try:
            self.channel.send(message)
        except Closed:
            self.orders.notify()

    def say(self, level: int, text: str) -> None:
        """A line for the trainer's log."""
        self.tell(messages.Said(level=level, text=text[:8000]))

    def channel_flush(self, seconds: float) -> None:
        """Gives what was not sent yet a moment."""
        try:
            self.channel.flush(seconds)
        except Closed:
            return
