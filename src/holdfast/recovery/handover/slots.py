"""The memory that states are staged in: planned and made for a structure, given back when it is not needed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from holdfast.errors import SaveFailed
from holdfast.packs.format import BLOCK, aligned
from holdfast.records import Kind
from holdfast.saver import SaveRequest
from holdfast.saver.arena import Layout
from holdfast.saver.control import Intent
from holdfast.saver.handle import SaverProcess
from holdfast.saver.memory import PIECE, Slab
from holdfast.saver.planning import MemoryPlan, plan_memory
from holdfast.state import Snapshot
from holdfast.state.stager import Stager
from holdfast.state.staging import Destination
from holdfast.trees import Lifetime

logger = logging.getLogger(__name__)

_DOCUMENT = 1 << 20
"""Bytes of a document beside values, small tensors and structure, and what these may grow by between saves."""


@dataclass(slots=True)
class Slots:
    """One slab a slot, and what is known of it. Not thread-safe.

    Args:
        process: who shares the slabs.
        budget: bytes that may be taken.
        wanted: slots, at most.
        tell: told of the plan, with a level of `logging`.
        stager: who copies into the slots.
    """

    process: SaverProcess
    budget: int
    wanted: int
    tell: Callable[[int, str], None]
    stager: Stager
    plan: MemoryPlan | None = None
    layout: Layout | None = None
    _destinations: dict[int, Destination] = field(default_factory=dict)
    _frozen: set[int] = field(default_factory=set)
    """Slots with memory for frozen tensors."""
    _skeleton: int = 0
    """Bytes of the structure in a document."""
    _room: int = 0
    """Bytes for a document that are in the plan."""
    _warming: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def usable(self) -> range:
        """The slots that fit into the budget."""
        return range(self.plan.slots if self.plan else 0)

    def free(self, slot: int) -> bool:
        """Whether nothing is in a slot that somebody may still read, or is still writing."""
        row = self.process.control.row(slot)
        return (row is None or not row.pending) and not self.stager.writing(self.process.slabs.get(slot))

    def first_free(self) -> int | None:
        """A slot that fits into the budget and is free."""
        return next((slot for slot in self.usable if self.free(slot)), None)

    # Before

    def prepare(self, snapshot: Snapshot) -> None:
        """Plans and makes the slots for this structure, if that was not done, and touches their memory.

        What an earlier structure needed, and this one does not, is given back.

        Raises:
            SaveFailed: there is no memory that can be shared.
        """
        specs = tuple(spec for spec, _ in snapshot.tensors)
        if self.layout is not None and self.layout.specs == specs and self._document(snapshot) <= self._room:
            return
        self.settle()
        for slab in self.process.slabs.values():
            self.stager.unpin(slab)
        self._skeleton = len(snapshot.skeleton.encode())
        self.layout = layout = Layout(specs)
        self._plan(layout, snapshot)
        self._destinations = {}
        self.give_back(everything=True)
        self._warm(layout, snapshot)

    def _plan(self, layout: Layout, snapshot: Snapshot) -> None:
        self._room = self._document(snapshot) * 5 // 4
        # The document begins anywhere in a piece, and ends anywhere in another one.
        slot = aligned(layout.trained, PIECE) + aligned(self._room, PIECE) + PIECE
        frozen = aligned(layout.length - layout.frozen_from, PIECE)
        plan = plan_memory(trained=slot, frozen=frozen, budget=self.budget, wanted=self.wanted)
        if self.plan is None or plan.peak != self.plan.peak:
            self.tell(logging.INFO if plan.slots > 1 else logging.WARNING, str(plan))
        self.plan = plan

    def _warm(self, layout: Layout, snapshot: Snapshot) -> None:
        """Touching memory for the first time takes thirty times as long as copying into it: not in the loop."""
        slabs = [self._slab(slot, layout, snapshot) for slot in self.usable if self.free(slot)]
        self._stop = stop = threading.Event()

        def warm() -> None:
            try:
                for slab in slabs:
                    slab.reserve(0, layout.trained, stop)
                    slab.populate(0, layout.trained, stop)
            except SaveFailed as error:
                logger.debug("memory was not set aside early, the save will tell: %s", error)

        self._warming = threading.Thread(target=warm, name="holdfast-warm", daemon=True)
        self._warming.start()

    def settle(self) -> None:
        """Memory is not touched by anybody else any more."""
        self._stop.set()
        if self._warming is not None:
            self._warming.join()
            self._warming = None

    # One generation

    def destination(self, slot: int, staged: Iterable[int], snapshot: Snapshot) -> Destination:
        """Where the large tensors at the places ``staged`` go in a free slot; their memory is set aside.

        Raises:
            SaveFailed: there is no memory for them.
        """
        layout = self.layout
        assert layout is not None
        slab = self._slab(slot, layout, snapshot)
        slab.reserve(0, layout.trained)
        for place in staged:
            if layout.specs[place].lifetime is Lifetime.FROZEN:
                self._frozen.add(slot)
                slab.reserve(layout.offsets[place], layout.ends[place] - layout.offsets[place])
        known = self._destinations.get(slot)
        if known is None or known.layout is not layout or known.slab is not slab:
            known = self._destinations[slot] = Destination(slab, layout)
        return known

    def copy(self, slot: int, staged: Sequence[int], snapshot: Snapshot, request: SaveRequest) -> None:
        """Copies the large tensors at the places ``staged`` into a free slot.

        Of a save that nobody has asked for, what lives on devices may still be copied when this returns. Whoever asks
        wants a private copy when the call is over.

        Raises:
            SaveFailed: there is no memory, a device has failed, or the state changed meanwhile.
        """
        destination = self.destination(slot, staged, snapshot)
        sources = [snapshot.tensors[place][1] for place in staged]
        late = request.kind in (Kind.REGULAR, Kind.BEST)
        self.stager.copy(destination, staged, sources, step=request.step, late=late)

    def write(self, slot: int, intent: Intent, document: bytes) -> None:
        """Writes the document behind the tensors.

        Raises:
            SaveFailed: it is longer than it was thought to become.
        """
        slab, layout = self.process.slabs[slot], self.layout
        assert layout is not None
        if slab.length < layout.length + len(document):
            raise SaveFailed(f"the values of this state ({len(document)} bytes) do not fit beside it; save again")
        slab.reserve(layout.length, len(document))
        slab.memory[layout.length : layout.length + len(document)] = document
        self.process.control.describe(slot, intent, slab.serial, layout.length, document)

    def _slab(self, slot: int, layout: Layout, snapshot: Snapshot) -> Slab:
        """The memory of a free slot, long enough; touched only where it is used."""
        document = aligned(self._document(snapshot), BLOCK)
        slab = self.process.slabs.get(slot)
        if slab is None or slab.length < layout.length + document:
            self.settle()  # nobody sets memory aside in a slab that goes
            self._destinations.pop(slot, None)
            self._frozen.discard(slot)
            self.process.control.unseal(slot)
            self.stager.unpin(slab)
            slab = Slab.make(layout.slab_bytes() + document)
            self.process.add_slab(slot, slab)
        return slab

    def _document(self, snapshot: Snapshot) -> int:
        """Bytes of a document, or a few more."""
        return self._skeleton + len(snapshot.values_bytes) + len(snapshot.own) + len(snapshot.inline) + _DOCUMENT

    # Afterwards

    def frozen_elsewhere(self, slot: int) -> bool:
        """Whether another slot holds frozen tensors: there is memory for one set of them only."""
        return any(one != slot and not self.free(one) for one in self._frozen)

    def give_back(self, *, everything: bool = False) -> None:
        """Gives the memory of frozen tensors back where they are stored: most are not staged again for a while.

        Args:
            everything: also that of slots which do not fit into the plan any more, and of longer structures.
        """
        layout = self.layout
        if layout is None:
            return
        for slot, slab in self.process.slabs.items():
            if self.free(slot) and (everything or slot in self._frozen):
                begin = (layout.trained if everything else layout.frozen_from) if slot in self.usable else 0
                # The document behind it stays: it tells a successor of the saver what was saved, and not looked at yet.
                end = slab.length if everything or slot not in self.usable else layout.length
                slab.release(begin, end - begin)
                self._frozen.discard(slot)

    def close(self, seconds: float) -> None:
        """Lets go of what looks at the memory; the saver process lets go of the memory itself.

        Args:
            seconds: how long a copy that is under way is waited for.
        """
        self.settle()
        self.stager.close(seconds)
        self._destinations = {}
