"""Saving in a process of its own: the training loop waits for a copy in memory, and for nothing else.

Once the copy is sealed, the checkpoint becomes durable whatever happens to this
process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from torch import Tensor

from holdfast import errors
from holdfast.errors import SaveFailed
from holdfast.packs.format import BLOCK, aligned
from holdfast.records import Record, Target
from holdfast.recovery.inline import shape_of
from holdfast.recovery.outcomes import Committed, Followed, GivenUp, Outcome, Saves
from holdfast.saver import SaveRequest, messages
from holdfast.saver.arena import Layout
from holdfast.saver.asides import pack_metrics
from holdfast.saver.control import Intent, Row
from holdfast.saver.handle import SaverProcess
from holdfast.saver.jobs import encode_job
from holdfast.saver.memory import Slab
from holdfast.saver.planning import MemoryPlan, plan_memory
from holdfast.seals import unseal
from holdfast.state import Snapshot
from holdfast.state.frozen import FrozenTensors
from holdfast.state.staging import Destination
from holdfast.trees import Lifetime

logger = logging.getLogger(__name__)

SLOT_SECONDS = 600.0
"""How long a save waits for a place in memory while earlier ones are being saved; then it has failed."""

READY_SECONDS = 30.0
"""How long a save waits for a saver that is just being started."""


@dataclass(slots=True)
class _InFlight:
    """A save that was handed over."""

    target: Target
    frozen: Mapping[int, bytes]
    """Fingerprints of the frozen tensors, by place in the layout."""
    names: Mapping[int, str]
    committed: Record | None = None


@dataclass(slots=True)
class BackgroundSaves:
    """See `holdfast.recovery.outcomes.Saves`."""

    process: SaverProcess
    address: Callable[[SaveRequest], Target]
    budget: int
    survives: str
    wanted_slots: int
    check_staging: bool
    tell: Callable[[int, str], None]
    progress: Callable[[messages.Progress], None]
    fallback: Callable[[], Saves]
    """Makes saves in this process, piece by piece, where the state does not fit into memory a second time."""
    plan: MemoryPlan | None = None
    _layout: Layout | None = None
    _destinations: dict[int, Destination] = field(default_factory=dict)
    _frozen: FrozenTensors = field(default_factory=FrozenTensors)
    _flying: dict[int, _InFlight] = field(default_factory=dict)
    _outcomes: list[Outcome] = field(default_factory=list)
    _generation: int = 0
    _pieces: Saves | None = None
    _warming: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def reserves(self) -> bool:
        """A reserve outlives this process."""
        return True

    # Memory

    def prepare(self, snapshot: Snapshot) -> None:
        """Makes the slots for this structure, if there are none for it yet, and touches their memory."""
        specs = tuple(spec for spec, _ in snapshot.tensors)
        if self._layout is not None and self._layout.specs == specs:
            return
        self._settle_warming()
        self._layout = layout = Layout(specs)
        frozen = sum(spec.nbytes for spec in specs if spec.lifetime is Lifetime.FROZEN)
        plan = plan_memory(trained=layout.trained, frozen=frozen, budget=self.budget, wanted=self.wanted_slots)
        if self.plan is None or plan.peak != self.plan.peak:
            self.tell(logging.INFO if plan.slots > 1 else logging.WARNING, str(plan))
        self.plan = plan
        self._destinations = {}
        self._warm(range(plan.slots), layout)

    def _warm(self, slots: range, layout: Layout) -> None:
        """Touching memory for the first time takes thirty times as long as copying into it: not in the loop."""
        slabs = [self._slab(slot, layout) for slot in slots if self._free(slot)]
        self._stop = stop = threading.Event()

        def warm() -> None:
            for slab in slabs:
                slab.reserve(0, layout.trained, stop)
                slab.populate(0, layout.trained, stop)

        self._warming = threading.Thread(target=warm, name="holdfast-warm", daemon=True)
        self._warming.start()

    def _settle_warming(self) -> None:
        self._stop.set()
        if self._warming is not None:
            self._warming.join()
            self._warming = None

    def _slab(self, slot: int, layout: Layout, document: int = 0) -> Slab:
        """The memory of a free slot, long enough; touched only where it is used."""
        slab = self.process.slabs.get(slot)
        if slab is None or slab.length < layout.length + aligned(document, BLOCK):
            self._destinations.pop(slot, None)
            self.process.control.unseal(slot)
            slab = Slab.make(layout.slab_bytes() + aligned(document, BLOCK))
            self.process.add_slab(slot, slab)
        return slab

    def _destination(self, slot: int, layout: Layout) -> Destination:
        known = self._destinations.get(slot)
        if known is None or known.layout is not layout:
            known = self._destinations[slot] = Destination(self.process.slabs[slot], layout)
        return known

    # Saving

    def save(self, snapshot: Snapshot, request: SaveRequest, *, urgent: bool) -> None:
        """Copies the state and hands it over.

        Raises:
            SaveFailed: no saver, no memory, or no place in it for too long.
        """
        self.prepare(snapshot)
        if self._slots():
            self._stage(self._await_slot(urgent), snapshot, request, Intent.SAVE)
            self.process.send(messages.Hurry(on=True) if urgent else messages.Staged())
            self._await_saver()
        else:
            self._save_in_pieces(snapshot, request)

    def _await_saver(self) -> None:
        """Only a launch that finds a saver standing by waits for what it finishes; one that starts takes a moment."""
        end = time.monotonic() + READY_SECONDS
        while not self.process.ready and not self.process.lost and time.monotonic() < end:
            self.process.wait(0.5)
            self._listen()

    def _save_in_pieces(self, snapshot: Snapshot, request: SaveRequest) -> None:
        self.drain(SLOT_SECONDS)
        self._pieces = self._pieces or self.fallback()
        self._pieces.save(snapshot, msgspec.structs.replace(request, survives="nothing"), urgent=True)
        self._outcomes += self._pieces.outcomes()

    def reserve(self, snapshot: Snapshot, request: SaveRequest) -> None:
        """Copies the state beside the one that is in reserve, and only then gives that one up."""
        self.prepare(snapshot)
        older = self._reserves()
        slot = self._reserve_slot()
        if slot is not None:
            self._stage(slot, snapshot, request, Intent.RESERVE)
            for row in older:
                self._taken_back(row)

    def _stage(self, slot: int, snapshot: Snapshot, request: SaveRequest, intent: Intent) -> None:
        layout, control = self._layout, self.process.control
        assert layout is not None
        control.unseal(slot)
        began = time.monotonic()
        prints = self._frozen.look(layout.specs, [tensor for _, tensor in snapshot.tensors])
        skipped = self._frozen.skipped(layout.specs, prints)
        staged = [place for place in range(len(layout.specs)) if place not in skipped]
        self._copy(slot, layout, snapshot, staged)
        request = msgspec.structs.replace(
            request, stall=time.monotonic() - request.began, staging=time.monotonic() - began, survives=self.survives
        )
        offsets = [-1 if place in skipped else offset for place, offset in enumerate(layout.offsets)]
        document = encode_job(request, shape_of(snapshot), offsets, self._frozen.stored_in if skipped else None)
        self._write(slot, layout, intent, document)
        self._generation += 1
        names = {place: layout.specs[place].name for place in prints}
        self._flying[self._generation] = _InFlight(self.address(request), prints, names)
        control.seal(slot, self._generation)

    def _copy(self, slot: int, layout: Layout, snapshot: Snapshot, staged: list[int]) -> None:
        slab = self._slab(slot, layout)
        slab.reserve(0, layout.trained)
        if any(layout.specs[place].lifetime is Lifetime.FROZEN for place in staged):
            slab.reserve(layout.trained, layout.length - layout.trained)
        sources: list[Tensor] = [snapshot.tensors[place][1] for place in staged]
        destination = self._destination(slot, layout)
        destination.copy(staged, sources)
        if self.check_staging and (other := destination.differing(staged, sources)):
            raise SaveFailed(f"what was staged is not the live state: {', '.join(other[:5])} changed during the copy")

    def _write(self, slot: int, layout: Layout, intent: Intent, document: bytes) -> None:
        slab = self.process.slabs[slot]
        if slab.length < layout.length + len(document):
            raise SaveFailed(f"the values of this state ({len(document)} bytes) do not fit beside it; save again")
        slab.reserve(layout.length, len(document))
        slab.memory[layout.length : layout.length + len(document)] = document
        self.process.control.describe(slot, intent, slab.serial, layout.length, document)

    # Places

    def _slots(self) -> range:
        return range(self.plan.slots if self.plan else 0)

    def _free(self, slot: int) -> bool:
        row = self.process.control.row(slot)
        return row is None or not row.pending

    def _await_slot(self, urgent: bool) -> int:
        if (slot := self._take_slot(urgent)) is not None:
            return slot
        self.process.send(messages.Hurry(on=True))
        try:
            return self._await_free_slot(urgent)
        finally:
            self.process.send(messages.Hurry(on=False))

    def _await_free_slot(self, urgent: bool) -> int:
        end = time.monotonic() + SLOT_SECONDS
        while (slot := self._take_slot(urgent)) is None:
            if self.process.lost:
                raise SaveFailed("there is no saver process any more; see what was said when it died")
            if time.monotonic() >= end:
                raise SaveFailed(f"earlier saves have taken all staging memory for {SLOT_SECONDS:.0f} s")
            self.process.wait(0.5)
            self._listen()
        return slot

    def _take_slot(self, urgent: bool) -> int | None:
        """A slot that holds nothing that matters any more: free, or in reserve, or, if time is short, not begun."""
        free = next((slot for slot in self._slots() if self._free(slot)), None)
        if free is not None:
            return free
        self._listen()
        rows = [row for row in self.process.control.rows() if row.slot in self._slots() and row.pending]
        for row in rows:
            if (row.intent is Intent.RESERVE or urgent) and self._taken_back(row):
                return row.slot
        return None

    def _reserves(self) -> list[Row]:
        return [row for row in self.process.control.rows() if row.pending and row.intent is Intent.RESERVE]

    def _reserve_slot(self) -> int | None:
        """Where a reserve may go: not over the one that there is, as long as there is another place."""
        free = next((slot for slot in self._slots() if self._free(slot)), None)
        if free is not None:
            return free
        return next((row.slot for row in self._reserves() if self._taken_back(row)), None)

    def _taken_back(self, row: Row) -> bool:
        if not self.process.control.take_back(row):
            return False
        flown = self._flying.pop(row.generation, None)
        if row.intent is Intent.SAVE and flown is not None:
            text = f"{flown.target.address} was given up for a newer one, for time is short"
            self._outcomes.append(GivenUp(target=flown.target, error=SaveFailed(text)))
        return True

    # What the saver says

    def outcomes(self) -> list[Outcome]:
        """What has happened since."""
        self._listen()
        found, self._outcomes = self._outcomes, []
        return found

    def drain(self, seconds: float) -> bool:
        """Waits until nothing is in flight and what follows was done."""
        end = time.monotonic() + seconds
        self._listen()
        while (busy := self._busy()) and time.monotonic() < end:
            self.process.send(messages.Hurry(on=True))
            self.process.wait(0.2)
            self._listen()
        self.process.send(messages.Hurry(on=False))
        return not busy

    def _busy(self) -> bool:
        reserves = {row.generation for row in self._reserves()}
        return any(generation not in reserves for generation in self._flying)

    def add_metrics(self, target: Target, metrics: Mapping[str, Any]) -> None:
        """After the record is committed."""
        self.process.send(messages.AddMetrics(target=target, metrics=pack_metrics(dict(metrics))))

    def add_tag(self, target: Target, tag: str) -> None:
        """After the record is committed."""
        self.process.send(messages.AddTag(target=target, tag=tag))

    def rescue(self, kind: str, reason: str) -> None:
        """The newest reserve, if nothing newer was saved, becomes a checkpoint."""
        if self._reserves():
            self.process.send(messages.Rescue(kind=kind, reason=reason))

    def close(self, seconds: float) -> None:
        """Lets the saver finish and end; one that takes longer finishes without this process."""
        self._settle_warming()
        for row in self._reserves():
            self._taken_back(row)  # the training has ended well, or what mattered of it was rescued
        self._destinations = {}
        if not self.process.close(seconds):
            self.tell(logging.WARNING, f"the saver is still at work after {seconds:.0f} s; it finishes by itself")

    def restored(self) -> None:
        """The state is another one: nothing is known of its frozen tensors, and no reserve is of this line."""
        self._frozen.forget()
        for row in self._reserves():
            self._taken_back(row)

    def _listen(self) -> None:
        for message in self.process.received():
            self._hear(message)
        if self.process.lost and self._flying:
            self._lose_all()

    def _hear(self, message: messages.Message) -> None:
        if isinstance(message, messages.Committed):
            self._committed(message)
        elif isinstance(message, messages.GivenUp):
            self._given_up(message)
        elif isinstance(message, messages.Followed):
            self._followed(message)
        elif isinstance(message, messages.Progress):
            self.progress(message)
        elif isinstance(message, messages.Said):
            logger.log(message.level, "%s", message.text)

    def _committed(self, message: messages.Committed) -> None:
        flown = self._flying.get(message.generation)
        if flown is None:
            return
        record = unseal(flown.target.address.name, message.record, Record)
        flown.committed = record
        self._frozen.committed(flown.target, {flown.names[place]: found for place, found in flown.frozen.items()})
        self._release_frozen()
        self._outcomes.append(Committed(record=record))

    def _given_up(self, message: messages.GivenUp) -> None:
        flown = self._flying.pop(message.generation, None)
        if message.restage:
            self._frozen.forget()
        if flown is not None:
            self._outcomes.append(GivenUp(target=flown.target, error=_error(message.kind, message.text)))

    def _followed(self, message: messages.Followed) -> None:
        flown = self._flying.pop(message.generation, None)
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
        self._flying = {}
        for row in self.process.control.rows():
            self.process.control.done(row)

    def _release_frozen(self) -> None:
        """Gives the memory of frozen tensors back: most of them are not staged again for a while."""
        layout = self._layout
        if layout is None or layout.length <= layout.trained:
            return
        for slot, slab in self.process.slabs.items():
            if self._free(slot):
                slab.release(layout.trained, layout.length - layout.trained)


def _error(kind: str, text: str) -> errors.HoldfastError:
    """An error of the saver process, as if it had been raised here."""
    found = next((one for one in vars(errors).values() if getattr(one, "kind", None) == kind), errors.SaveFailed)
    return found(text) if isinstance(found, type) and issubclass(found, errors.HoldfastError) else SaveFailed(text)
