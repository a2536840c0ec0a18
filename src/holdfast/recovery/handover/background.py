"""Saving in a process of its own: the training loop waits for a copy in memory, and for nothing else.

Once the copy is sealed, the checkpoint becomes durable whatever happens to this
process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from holdfast.errors import Damaged, SaveFailed, StorageError, error_of
from holdfast.records import Record, Target
from holdfast.recovery.handover.asides import Asides
from holdfast.recovery.handover.bars import Bar
from holdfast.recovery.handover.in_flight import InFlight, newest_save, record_of, unheard
from holdfast.recovery.handover.inline import shape_of
from holdfast.recovery.handover.outcomes import Committed, Followed, GivenUp, Outcome, Saves
from holdfast.recovery.handover.patience import SLOT_SECONDS, Patience
from holdfast.recovery.handover.slots import Slots
from holdfast.saver import SaveRequest, messages
from holdfast.saver.control import Intent, Row
from holdfast.saver.handle import SaverProcess
from holdfast.saver.jobs import encode_job
from holdfast.state import Snapshot
from holdfast.state.frozen import FrozenTensors

logger = logging.getLogger(__name__)

READY_SECONDS = 30.0
"""How long a save waits for a saver that is just being started, and a rescue for a copy that is under way."""


@dataclass(slots=True)
class BackgroundSaves:
    """See `holdfast.recovery.handover.outcomes.Saves`."""

    process: SaverProcess
    address: Callable[[SaveRequest], Target]
    slots: Slots
    survives: str
    tell: Callable[[int, str], None]
    progress: Bar
    read: Callable[[Target], Record | None]
    """Reads a record whose name is known to be published."""
    patience: Patience
    fallback: Callable[[], Saves]
    """Makes saves in this process, piece by piece, where the state does not fit into memory a second time."""
    reserves: bool = True
    _frozen: FrozenTensors = field(default_factory=FrozenTensors)
    _flying: dict[int, InFlight] = field(default_factory=dict)
    _outcomes: list[Outcome] = field(default_factory=list)
    asides: Asides = field(init=False)
    _generation: int = 0
    _pieces: Saves | None = None
    _heard: float = 0.0
    """When the saver was heard last."""
    _gets_on: float = 0.0
    """When it was heard last that a save gets on: waiting for a full disk is not that."""
    _unread: list[messages.Message] = field(default_factory=list)
    """Of checkpoints whose records could not be read yet."""
    _starts: int = 0
    _before: int = 0
    """The newest generation that an earlier saver may have been through with."""
    _told: set[int] = field(default_factory=set)
    """Those that the saver that runs now has told of."""
    _awaited: int = 0
    """The saver, by number, that was waited for until it stood by."""
    _closed: bool = False
    _rescue: messages.Rescue | None = None
    """What was asked for at the end."""
    _rescued: int = 0
    """The reserve that it is about."""
    _saved: int = 0
    """The newest generation that is a checkpoint: an older reserve is of no use."""

    def __post_init__(self) -> None:
        self.asides = Asides(self.process.send, lambda: newest_save(self._flying))

    def prepare(self, snapshot: Snapshot) -> None:
        """Makes the slots for this structure, if there are none for it yet, and touches their memory."""
        self.process.begin()
        if not self.slots.stager.settle(SLOT_SECONDS):
            raise SaveFailed(f"a device has not finished its copy of an earlier state for {SLOT_SECONDS:.0f} s")
        self._landed()
        self.slots.prepare(snapshot)

    # Saving

    def save(self, snapshot: Snapshot, request: SaveRequest, *, urgent: bool) -> None:
        """Copies the state and hands it over."""
        self.prepare(snapshot)
        if self.slots.usable:
            self._stage(self._await_slot(urgent and request.world == 1), snapshot, request, Intent.SAVE)
            self.process.send(messages.Hurry(on=True) if urgent else messages.Staged())
            self._await_saver()
        else:
            self._save_in_pieces(snapshot, request)

    def _await_saver(self) -> None:
        """Only a launch that finds a saver standing by waits for what it finishes; one that starts takes a moment."""
        if self._awaited == self.process.starts:
            return
        if not self.process.await_ready(READY_SECONDS, self._listen):
            text = f"the saver does not stand by after {READY_SECONDS:.0f} s: a relaunch would not wait for it"
            self.tell(logging.WARNING, text)
        self._awaited = self.process.starts

    def _save_in_pieces(self, snapshot: Snapshot, request: SaveRequest) -> None:
        if not self.drain(self.patience.at_most(SLOT_SECONDS)):
            raise SaveFailed("the saver has not finished an earlier save, nor got on with it in the time there was")
        self._pieces = self._pieces or self.fallback()
        self._pieces.save(snapshot, msgspec.structs.replace(request, survives="nothing"), urgent=True)
        self._outcomes += self._pieces.outcomes()

    def reserve(self, snapshot: Snapshot, request: SaveRequest) -> None:
        """Copies the state beside the one that is in reserve, and only then gives that one up."""
        self.prepare(snapshot)
        slot = self._reserve_slot()
        if slot is not None and self._stage(slot, snapshot, request, Intent.RESERVE):
            self._landed()

    def _stage(self, slot: int, snapshot: Snapshot, request: SaveRequest, intent: Intent) -> bool:
        """Copies and seals; False: a reserve that would have to wait for memory."""
        layout, control = self.slots.layout, self.process.control
        assert layout is not None
        control.unseal(slot)
        began = time.monotonic()
        prints = self._frozen.look(layout.specs, [tensor for _, tensor in snapshot.tensors])
        if self._unknown(prints) and self.slots.frozen_elsewhere(slot):
            if intent is Intent.RESERVE:
                return False
            self._await(lambda: not self.slots.frozen_elsewhere(slot))
        skipped = self._frozen.skipped(layout.specs, prints, in_turn=not self.slots.frozen_elsewhere(slot))
        staged = [place for place in range(len(layout.specs)) if place not in skipped]
        self.slots.copy(slot, staged, snapshot, request)
        request = msgspec.structs.replace(
            request, stall=time.monotonic() - request.began, staging=time.monotonic() - began, survives=self.survives
        )
        offsets = [-1 if place in skipped else offset for place, offset in enumerate(layout.offsets)]
        document = encode_job(request, shape_of(snapshot), offsets, self._frozen.stored_in if skipped else None)
        self.slots.write(slot, intent, document)
        self._generation += 1
        names = {place: layout.specs[place].name for place in prints}
        self.slots.stager.seal(slot, self._generation)
        self._flying[self._generation] = InFlight(intent, self.address(request), prints, names)
        return True

    def _unknown(self, prints: Mapping[int, bytes]) -> bool:
        """Whether there are frozen tensors that must be staged."""
        assert self.slots.layout is not None
        return len(self._frozen.skipped(self.slots.layout.specs, prints, in_turn=False)) < len(prints)

    # Places

    def _await_slot(self, urgent: bool) -> int:
        self._await(lambda: self._take_slot(urgent) is not None)
        slot = self._take_slot(urgent)  # the same one: nobody but this thread fills slots
        assert slot is not None
        return slot

    def _await(self, done: Callable[[], bool]) -> None:
        """Back-pressure: the training waits for earlier saves, as long as anything is heard of them.

        Raises:
            SaveFailed: no saver, or nothing is heard of it any more.
        """
        if done():
            return
        began = time.monotonic()
        try:
            while not done():
                self.process.send(messages.Hurry(on=True))  # again: it may be another saver by now
                if self.process.lost:
                    raise SaveFailed("there is no saver process any more; see what was said when it died")
                heard, gets_on = max(began, self._heard), max(began, self._gets_on)
                if (why := self.patience.over(heard=heard, gets_on=gets_on)) is not None:
                    raise SaveFailed(why)
                self.process.wait(self.patience.at_most(0.5))
                self._listen()
        finally:
            self.process.send(messages.Hurry(on=False))

    def _take_slot(self, urgent: bool) -> int | None:
        """A slot that holds nothing that matters any more: free, or in reserve, or, if time is short, not begun."""
        if (free := self.slots.first_free()) is not None:
            return free
        self._listen()
        rows = [row for row in self.process.control.rows() if row.slot in self.slots.usable and row.pending]
        for row in rows:
            if (row.intent is Intent.RESERVE or urgent) and self._taken_back(row):
                return row.slot
        return None

    def _reserves(self) -> list[Row]:
        return [row for row in self.process.control.rows() if row.pending and row.intent is Intent.RESERVE]

    def _reserve_slot(self) -> int | None:
        """Where a reserve may go: not over the one that there is, as long as there is another place."""
        if (free := self.slots.first_free()) is not None:
            return free
        return next((row.slot for row in self._reserves() if self._taken_back(row)), None)

    def _landed(self) -> None:
        """Takes what has become of a copy that was under way; a reserve is given up once a newer one is complete."""
        self.slots.stager.settle(0)
        for generation, why in self.slots.stager.lost():
            self._lost(generation, why)
        self._give_up(self._reserves()[:-1])  # as they are now: the slot of an older one may have been used again

    def _give_up(self, reserves: Sequence[Row]) -> None:
        for row in reserves:
            try:
                self._taken_back(row)
            except SaveFailed as error:  # the saver was stopped right there: there will be another time
                self.tell(logging.WARNING, str(error))

    def _lost(self, generation: int, why: str) -> None:
        flown = self._flying.get(generation)
        row = next((row for row in self.process.control.rows() if row.generation == generation), None)
        if flown is None:
            return
        if row is not None and not (row.pending and self.process.control.take_back(row)):
            self.tell(logging.ERROR, f"{flown.target.address} is being saved, and should not be relied on: {why}")
            return
        del self._flying[generation]
        if flown.intent is Intent.SAVE:
            self._outcomes.append(GivenUp(target=flown.target, error=SaveFailed(why)))
        else:
            self.tell(logging.WARNING, f"{flown.target.address} is not kept in reserve: {why}")

    def _taken_back(self, row: Row) -> bool:
        if not self.process.control.take_back(row):
            return False
        flown = self._flying.pop(row.generation, None)
        if row.intent is Intent.SAVE and flown is not None:
            text = f"{flown.target.address} was given up for a newer one, for time is short"
            self._outcomes.append(GivenUp(target=flown.target, error=SaveFailed(text), on_purpose=True))
        return True

    # What the saver says

    def outcomes(self) -> list[Outcome]:
        """What has happened since."""
        self._listen()
        found, self._outcomes = self._outcomes, []
        return found

    def drain(self, seconds: float) -> bool:
        """Waits until nothing is in flight and what follows was done; for so long without a sign of progress."""
        began = time.monotonic()
        self._listen()
        try:
            while (busy := self._busy()) and time.monotonic() < max(began, self._gets_on) + seconds:
                self.process.send(messages.Hurry(on=True))
                self.process.wait(0.2)
                self._listen()
        finally:
            self.process.send(messages.Hurry(on=False))
        return not busy

    def _busy(self) -> bool:
        rescued = self._rescued if self._rescued > self._saved else 0
        reserves = {row.generation for row in self._reserves()} - {rescued}
        return self.asides.waiting or any(generation not in reserves for generation in self._flying)

    def rescue(self, kind: str, reason: str) -> None:
        """The newest reserve, if nothing newer was saved, becomes a checkpoint."""
        self.slots.stager.settle(self.patience.at_most(READY_SECONDS))
        self._landed()
        self._rescued = max((row.generation for row in self._reserves()), default=0)
        if self._rescued:
            self._rescue = messages.Rescue(kind=kind, reason=reason)
            self.process.send(self._rescue)

    def close(self, seconds: float) -> None:
        """Lets the saver finish and end; one that takes longer finishes without this process."""
        if self._pieces is not None:
            self._pieces.close(seconds)
        self.slots.close(seconds)
        # The training has ended well, or what mattered of it is being rescued.
        self._give_up([row for row in self._reserves() if row.generation != self._rescued])
        self._closed = True  # what is in flight then goes on without this process
        if not self.process.close(seconds, self._hear):
            self.tell(logging.WARNING, f"the saver is still at work after {seconds:.0f} s; it finishes by itself")

    def restored(self) -> None:
        """The state is another one: nothing is known of its frozen tensors, and no reserve is of this line."""
        self.process.begin()  # not before: it would have taken a processor from the loading
        self._frozen.forget()
        self.slots.stager.forget()
        self._give_up(self._reserves())

    def _listen(self) -> None:
        unread, self._unread = self._unread, []
        signs = self._heard, self._gets_on
        for message in unread:
            self._hear(message)
        self._heard, self._gets_on = signs  # what was heard before is no sign of life
        for message in self.process.received():
            self._hear(message)
        if self.process.starts != self._starts:
            under_way = not self.slots.stager.settle(0)  # no saver is through with that copy
            self._before, self._starts = self._generation - under_way if self._starts else 0, self.process.starts
            self._told.clear()
            self._ask_again()
        if self.process.lost and not self._closed and (self._flying or self.asides.waiting):
            self._lose_all()
        self._landed()
        self.slots.give_back()

    def _settle(self) -> None:
        """Another saver stands by: what it has not told of it did not find, for the slot was used again."""
        there = self._told | {row.generation for row in self.process.control.rows()}
        lost = [one for one in self._flying if one <= self._before and one not in there]
        self._outcomes += unheard([self._flying.pop(one) for one in lost], self.read)

    def _ask_again(self) -> None:
        """The saver that died may have heard what was asked for, and done nothing of it."""
        self.asides.again()
        if self._rescue is not None:
            self.process.send(self._rescue)

    def _hear(self, message: messages.Message) -> None:
        self._heard = time.monotonic()
        if not isinstance(message, messages.Said):
            self._gets_on = self._heard
        if isinstance(message, messages.Committed | messages.GivenUp):
            self._told.add(message.generation)
        if isinstance(message, messages.Ready):
            self._settle()
        elif isinstance(message, messages.Committed):
            self._committed(message)
        elif isinstance(message, messages.GivenUp):
            self._given_up(message)
        elif isinstance(message, messages.Followed):
            self._followed(message)
        elif isinstance(message, messages.Noted):
            self.asides.noted(message.number)
        elif isinstance(message, messages.Progress):
            self.progress(message)
        elif isinstance(message, messages.Said):
            logger.log(message.level, "%s", message.text)

    def _committed(self, message: messages.Committed) -> None:
        flown = self._flying.get(message.generation)
        if flown is None or flown.committed is not None:
            return
        self.progress.close()
        if (record := self._record(flown.target, message)) is None:
            return
        flown.committed, self._saved = record, message.generation
        self._frozen.committed(flown.target, {flown.names[place]: found for place, found in flown.frozen.items()})
        self._outcomes.append(Committed(record=record))

    def _record(self, target: Target, message: messages.Committed) -> Record | None:
        """The record that was committed; None: it cannot be read right now, and is asked for again."""
        try:
            return record_of(message, target, self.read)
        except (StorageError, Damaged) as error:
            self.tell(logging.WARNING, f"{target.address} is committed, and cannot be read back yet: {error}")
            self._unread.append(message)
            return None

    def _given_up(self, message: messages.GivenUp) -> None:
        flown = self._flying.pop(message.generation, None)
        self.progress.close()
        if message.restage:
            self._frozen.forget()
        if flown is not None and flown.committed is None:
            error = error_of(message.kind, message.text)
            self._outcomes.append(GivenUp(target=flown.target, error=error, on_purpose=message.on_purpose))

    def _followed(self, message: messages.Followed) -> None:
        if any(one.generation == message.generation for one in self._unread if isinstance(one, messages.Committed)):
            self._unread.append(message)  # first comes what it follows
            return
        flown = self._flying.pop(message.generation, None)
        for generation in [one for one in self._flying if one < message.generation and self._flying[one].committed]:
            del self._flying[generation]  # the saver that should have told of it has died
        if message.restage:
            self._frozen.forget()
        problem = "damaged when it was read back" if message.damaged else None
        record = flown.committed if flown else None
        self._outcomes.append(Followed(record=record, problem=problem, deleted=message.deleted))

    def _lose_all(self) -> None:
        for flown in self._flying.values():
            if flown.committed is None:
                text = f"{flown.target.address} was not saved: there is no saver process any more"
                self._outcomes.append(GivenUp(target=flown.target, error=SaveFailed(text)))
        for target in self.asides.lost():
            self.tell(logging.ERROR, f"{target.address} was not given its metrics or name: there is no saver")
        self._flying = {}
        for row in self.process.control.rows():
            self.process.control.done(row)
