"""The order of a save, for whoever makes it: hold, packs, manifest, record. Knows no torch.

The trainer runs it in line, the saver process in the background; equal states
give equal manifests and equal sets of segments either way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.catalog import layout
from holdfast.catalog.launches import Launch
from holdfast.catalog.manifests import read_manifest
from holdfast.catalog.runs import read_record
from holdfast.catalog.saves import SaveAttempt, begin_save
from holdfast.catalog.standing import Standing
from holdfast.errors import Damaged, NotFound, SaveFailed
from holdfast.ids import Digest, ObjectName, RecordAddress
from holdfast.packs.codec import Codec
from holdfast.packs.parallel import THREADS, Pace
from holdfast.packs.writer import Written, write_segments
from holdfast.records import Record, Sizes, Timing
from holdfast.saver.ballast import Ballast
from holdfast.saver.coding import decided
from holdfast.saver.jobs import Content, Positions, SaveRequest, Shape
from holdfast.saver.noticing import Notices, tensors_of_segments
from holdfast.saver.publishing import Made, alone
from holdfast.saver.together import Handed, Together
from holdfast.trees import Lifetime, Manifest, Skeleton

_RECENT = 4
"""More than there are slots."""


def _nobody(codec: Codec, text: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A committed save."""

    record: Record
    manifest: Manifest
    packs: list[str]
    """Those that hold what this rank has contributed."""


@dataclass(slots=True, kw_only=True)
class Saving:
    """Saves of one launch, one at a time. Not thread-safe."""

    launch: Launch
    codec: Codec = Codec.RAW
    threads: int = THREADS
    pace: Pace | None = None
    progress: Callable[[int, int], None] | None = None
    """Told how many raw bytes of how many are done with, by one thread at a time; a second try begins anew."""
    standing: Standing | None = None
    """What entitles a saver whose trainer is gone to finish, although a newer launch waits."""
    undecided: bool = False
    """Whether the codec is chosen after the first save that tells enough."""
    chosen: Callable[[Codec, str], None] = _nobody
    """Told which codec was chosen, and why."""
    ballast: Ballast | None = None
    """Room for what commits and what clears up; a save does not begin to write without it."""
    damaged: set[ObjectName] = field(default_factory=set)
    """Packs that are no source: what only they have is written again."""
    together: Together = field(default_factory=Together)
    """How ranks that save together do it."""
    last: Saved | None = None
    recent: deque[Saved] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """The last ones: what is staged already may leave frozen tensors to one that retention has removed since."""
    _expected: dict[Lifetime, int] = field(default_factory=dict)
    _frozen: set[str] = field(default_factory=set)
    """Names of frozen tensors that checkpoints of this line have."""
    _mended: set[ObjectName] = field(default_factory=set)
    """Of the damaged packs, those whose content was written again since."""

    def save(self, request: SaveRequest, shape: Shape, content: Content) -> Record:
        """A committed record: complete, durable and visible when this returns; else nothing is visible.

        Raises:
            Fenced: a newer launch owns the run.
            RecordConflict: this very save was published by somebody else.
            SaveFailed: it was given up by somebody else, or what it relies on is gone.
            StorageError: it could not be written; what was written of it is removed.
        """
        if (done := self.finished(request)) is not None:
            return done
        if self.ballast is not None:
            self.ballast.hold()
        parent = self._parent(request)
        with self._begin(request, parent, shape) as attempt:
            self.together.meet(request, attempt)
            self._note_frozen(self._read(parent))
            made = self.write(request, shape, content, attempt)
            record = self.commit(made, attempt, parent)
            self._mended |= self.damaged
        self._choose_codec(record, shape, content)
        return record

    def write(self, request: SaveRequest, shape: Shape, content: Content, attempt: SaveAttempt) -> Made:
        """What this process contributes: its packs are durable when this returns, and nothing is visible.

        Raises:
            SaveFailed, StorageError: as `save`; whoever has the attempt abandons it.
        """
        kept = content.kept()
        _check_kept(attempt, kept)
        notices = Notices(shape.large)
        written = self._write(shape, content, kept, attempt, notices)
        digests = list(Positions(shape.large).merged({k: one.digests for k, one in written.items()}, kept))
        return Made(
            request=request,
            shape=shape,
            state=_manifest(shape, digests),
            packs=attempt.packs(digests),
            fingerprinted=_tensors_kept(shape, kept),
            nan=notices.nan_inside,
            sizes=_sizes(shape, written.values()),
            timing=self._timing(request, written.values()),
            codec=str(self.codec),
        )

    def commit(
        self,
        made: Made,
        attempt: SaveAttempt,
        parent: RecordAddress | None,
        others: Sequence[Handed] | None = None,
    ) -> Record:
        """Publishes what was written; errors as in `save`.

        Args:
            made: by this process.
            attempt: that it was made in.
            parent: the record before on this line.
            others: what the other ranks have handed over, if somebody brings it; None: it lies in the store.
        """
        earlier = self._read(parent)
        trained = parent is not None and parent.order.step < made.request.step
        if made.request.world == 1:
            record, state = alone(made, attempt, parent, earlier, trained=trained), made.state
        else:
            record, state = self.together.commit(made, attempt, parent, earlier, trained=trained, others=others)
        self.last = Saved(record=record, manifest=state, packs=made.packs)
        self.recent.append(Saved(record=record, manifest=made.state, packs=made.packs))
        return record

    def gave_up(self, request: SaveRequest, error: Exception) -> None:
        """Nobody tries any more to save this: those who wait for this rank are told."""
        if request.world > 1:
            self.together.give_up(self.launch.run.store, self.address(request), request, error)

    def _choose_codec(self, record: Record, shape: Shape, content: Content) -> None:
        if self.undecided and (choice := decided(record, shape, content, self.threads)) is not None:
            self.undecided, self.codec = False, Codec(choice[0])
            self.chosen(self.codec, f'codec="auto" is {choice[0]} for this launch: {choice[1]}')

    def packs_of(self, record: Record) -> list[str] | None:
        """The packs with what this process has contributed; None: a saver that has died knew it."""
        found = (one.packs for one in self.recent if one.record.address == record.address)
        return next(found, record.packs if record.world == 1 else None)

    def address(self, request: SaveRequest) -> RecordAddress:
        """The record that a request is for."""
        run = self.launch.run
        return request.address(run.store.info.id, run.number, self.launch.number)

    def finished(self, request: SaveRequest) -> Record | None:
        """The record of this very save, if a saver that was killed since has published it."""
        found = read_record(self.launch.run.store, self.address(request))
        return found if isinstance(found, Record) and found.attempt == request.attempt else None

    def _begin(self, request: SaveRequest, parent: RecordAddress | None, shape: Shape) -> SaveAttempt:
        return begin_save(
            self.launch,
            request.timeline,
            request.step,
            bases=[parent] if parent else [],
            shared=any(spec.lifetime is Lifetime.FROZEN for spec in shape.large),
            quarantined=self.damaged,
            standing=self.standing,
            attempt=request.attempt,
        )

    def _write(
        self, shape: Shape, content: Content, kept: Mapping[int, Digest], attempt: SaveAttempt, notices: Notices
    ) -> dict[Lifetime, Written]:
        """Writes the segments, lifetime by lifetime."""
        positions, owners = Positions(shape.large), tensors_of_segments(shape.large)
        written: dict[Lifetime, Written] = {}
        folders = {lifetime: self._folder(lifetime, shape) for lifetime in positions.by_lifetime}
        progress = _reporting(self.progress, _staged(shape, kept))
        for lifetime, places in positions.by_lifetime.items():
            tensors = [owners[place] for place in places if place not in kept]
            part = write_segments(
                attempt.storage,
                folders[lifetime],
                content.segments(lifetime),
                known=attempt.known,
                codec=self.codec,
                threads=self.threads,
                progress=progress,
                expected=self._likely(shape, lifetime, folders[lifetime]),
                pace=self.pace,
                inspect=notices.inspector(tensors),
            )
            attempt.wrote(part.footers)
            written[lifetime] = part
        self._expected |= {
            lifetime: size
            for lifetime, part in written.items()
            if folders[lifetime] != layout.SHARED_PACKS and (size := _in_packs(part))
        }
        return written

    def _likely(self, shape: Shape, lifetime: Lifetime, folder: str) -> int | None:
        """Bytes that will probably be new: room for them is set aside before any are written.

        Of what changes as much as was new the last time that something was, or all of it. What is frozen is stored
        once, perhaps by another run.
        """
        if folder != layout.SHARED_PACKS and (lifetime in self._expected or lifetime is Lifetime.FROZEN):
            return self._expected.get(lifetime)
        storage = self.launch.run.store.storage
        if lifetime is Lifetime.FROZEN and next(iter(storage.list(layout.SHARED_PACKS)), None) is not None:
            return None
        return sum(spec.held for spec in shape.large if spec.lifetime is lifetime)

    def _folder(self, lifetime: Lifetime, shape: Shape) -> str:
        """Where what is new goes.

        What checkpoints of this line have as frozen already, and is new all the same, is not what other runs have: it
        changes without gradients, as averages and target networks do, and is for the run's retention to delete.
        """
        shared = lifetime is Lifetime.FROZEN and (self._first(shape) or bool(self._lost_shared()))
        return layout.SHARED_PACKS if shared else layout.private_packs(self.launch.run.number)

    def _first(self, shape: Shape) -> bool:
        """Whether there are frozen tensors that no checkpoint of this line has as such."""
        return not _frozen_names(shape.skeleton) <= self._frozen

    def _lost_shared(self) -> set[ObjectName]:
        """Damaged shared packs: other runs, too, rely on what was in them."""
        return {name for name in self.damaged - self._mended if name.startswith(layout.SHARED_PACKS)}

    def _note_frozen(self, state: Manifest | None) -> None:
        if state is not None:
            self._frozen |= _frozen_names(state.skeleton)

    def _parent(self, request: SaveRequest) -> RecordAddress | None:
        """The newest record of the line: what the trainer knows, or a save of its own that it has not heard of yet."""
        if self.last is not None:
            order = self.last.record.address.order
            before = (order.launch, order.timeline) == (self.launch.number, request.timeline)
            if before and order.step < request.step:
                return self.last.record.address
        known = request.parent.address if request.parent else None
        return self._newer(request, known) or known

    def _newer(self, request: SaveRequest, known: RecordAddress | None) -> RecordAddress | None:
        """What an earlier saver of this launch has published in the same timeline, after ``known``."""
        mine = (self.launch.number, request.timeline)
        for address in reversed(self.launch.run.addresses()):
            order = address.order
            if (order.launch, order.timeline) == mine and order.step < request.step and address != known:
                if known is not None and order < known.order:
                    return None
                if isinstance(read_record(self.launch.run.store, address), Record):
                    return address
        return None

    def _read(self, parent: RecordAddress | None) -> Manifest | None:
        """The manifest of the parent, if it can be had: it is only compared with."""
        if parent is None:
            return None
        if self.last is not None and self.last.record.address == parent:
            return self.last.manifest
        store = self.launch.run.store
        try:
            found = read_record(store, parent)
            return read_manifest(store.run(parent.run), found.manifest_digest) if isinstance(found, Record) else None
        except (Damaged, NotFound):
            return None

    def _timing(self, request: SaveRequest, written: Iterable[Written]) -> Timing:
        parts = list(written)
        passed = time.monotonic() - request.began
        return Timing(
            stall=request.stall or passed,
            staging=request.staging,
            hashing=sum(part.hash_seconds for part in parts),
            writing=sum(part.write_seconds for part in parts),
            durable=passed,
        )


class Restage(SaveFailed):
    """Tensors that were recognised by fingerprint are in no pack that may be relied on: their bytes are needed."""


def _check_kept(attempt: SaveAttempt, kept: Mapping[int, Digest]) -> None:
    lost = [digest for digest in kept.values() if not attempt.known(digest)]
    if lost:
        raise Restage(
            f"{attempt.address}: {len(lost)} segments of frozen tensors were taken for stored and are in no pack; "
            "they are staged again with the next save"
        )


def _staged(shape: Shape, kept: Mapping[int, Digest]) -> int:
    """Bytes that are there to be hashed."""
    starts = Positions(shape.large).starts
    return sum(spec.held for spec, start in zip(shape.large, starts, strict=True) if start not in kept)


def _reporting(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return report


def _frozen_names(skeleton: Skeleton) -> set[str]:
    return {spec.name for spec in skeleton.tensors if spec.lifetime is Lifetime.FROZEN and not spec.inline}


def _in_packs(written: Written) -> int:
    return sum(pack.size for pack in written.packs)


def _manifest(shape: Shape, digests: Iterable[Digest]) -> Manifest:
    skeleton = Digest.of(shape.skeleton.encode())
    return Manifest(shape.skeleton, skeleton, shape.values, shape.inline, b"".join(digests), (shape.own,))


def _sizes(shape: Shape, written: Iterable[Written]) -> Sizes:
    parts = list(written)
    return Sizes(
        logical=shape.logical_bytes,
        new=sum(part.new_bytes for part in parts),
        stored=sum(part.stored_bytes for part in parts),
    )


def _tensors_kept(shape: Shape, kept: Mapping[int, Digest]) -> list[tuple[int, int]]:
    """The tensors with segments in ``kept``, as first and last positions in the skeleton of neighbours."""
    owners = tensors_of_segments(shape.large)
    known = {owners[place] for place in kept}
    large = [place for place, spec in enumerate(shape.skeleton.tensors) if not spec.inline]
    found: list[tuple[int, int]] = []
    for place in (large[number] for number in sorted(known)):
        if found and found[-1][1] == place - 1:
            found[-1] = found[-1][0], place
        else:
            found.append((place, place))
    return found
