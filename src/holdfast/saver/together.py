"""Several ranks make one checkpoint: each hands in its part, the saver of rank 0 commits, the others wait for it.

There is no message between them but what lies in the store, and every wait has
an end: a rank that is late, dead or failed makes the save fail on all ranks.
Once a part is handed in, its rank does not know whether it will be published;
only the record, the word of rank 0 that it gives up, or the name of the record
won by somebody else tells.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from holdfast.catalog.holds import find_saves
from holdfast.catalog.objects import exists
from holdfast.catalog.owners import Liveness
from holdfast.catalog.parts import Part, Parts, Prints
from holdfast.catalog.saves import SaveAttempt
from holdfast.catalog.store import Store
from holdfast.errors import Damaged, ObjectMissing, SaveFailed, StorageError
from holdfast.ids import Digest, ObjectName, RecordAddress
from holdfast.records import Record, Sizes, Timing
from holdfast.saver.jobs import SaveRequest
from holdfast.saver.merging import Merging, pack_boxes, without_boxes
from holdfast.saver.merging_values import merge_values
from holdfast.saver.noticing import noticed
from holdfast.saver.publishing import Made, Whole, published, record_of
from holdfast.trees import Manifest, Skeleton, decode_skeleton

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25
"""Seconds between two looks for what others have handed in."""
ORPHAN_SECONDS = 5.0
"""How long a saver whose trainer is gone waits for ranks of which there is no sign that they save this, too."""


class NotTogether(SaveFailed):
    """The ranks did not bring this save about; the same save would not succeed a moment later."""


class Handed(NamedTuple):
    """A part, and the texts that it refers to."""

    part: Part
    documents: list[bytes]


@dataclass(slots=True)
class Together:
    """The side of one rank, for the saves of one launch, one at a time. Not thread-safe."""

    orphaned: Callable[[], bool] = lambda: False
    """Whether the trainer is gone."""
    unsure: Callable[[], bool] = lambda: False
    """Whether other ranks may not save this: a signal has had it done, and they may have got none."""
    overtaken: Callable[[], bool] = lambda: False
    """Whether the trainer has meanwhile handed over something newer, which all ranks have; only where `unsure`."""
    alive: Callable[[int], None] = lambda _: None
    """Told at each look, so that whoever waits for this saver goes on waiting."""
    merging: Merging = field(default_factory=Merging)
    _known: dict[bytes, Skeleton] = field(default_factory=dict)
    """Structures without boxes, by digest."""

    def commit(
        self,
        made: Made,
        attempt: SaveAttempt,
        parent: RecordAddress | None,
        earlier: Manifest | None,
        *,
        trained: bool,
        others: Sequence[Handed] | None = None,
    ) -> tuple[Record, Manifest]:
        """The record, and the manifest to compare the next save with; arguments as of `Saving.commit`.

        Raises:
            NotTogether: a rank is late or has failed, or they contradict each other; it is named.
            Conflict, StorageError: it is not committed.
        """
        request, store = made.request, attempt.launch.run.store
        parts = Parts(store.storage, attempt.address, request.attempt)
        part, documents = handed(made, store)
        if others is None and request.rank in parts.failures():
            # The others have heard it, and have removed what they had written.
            raise NotTogether(f"rank {request.rank} has given up the save of step {request.step} before its saver died")
        if request.rank:
            attempt.contribute(parts, part, documents)
            return self._await_record(request, attempt, parts), made.state
        texts = [*documents, *(text for one in others or () for text in one.documents)]
        known = {bytes(Digest.of(text)): text for text in texts}
        try:
            brought = None if others is None else [_checked(one.part, request) for one in others]
            gathered = [part, *(self._gather(request, attempt, parts) if brought is None else brought)]
            state, whole = self._merged(gathered, parts, known, attempt, earlier, trained=trained)
        except (SaveFailed, Damaged, ObjectMissing) as error:
            raise NotTogether(str(error)) from error
        timing = msgspec.structs.replace(whole.timing, durable=time.monotonic() - request.began)
        whole = msgspec.structs.replace(whole, timing=timing)
        sizes = {name: size for one in gathered for name, size in one.packs}
        record = published(attempt, record_of(made, attempt, parent, whole), sizes)
        if others is None:
            with suppress(StorageError):  # the next launch removes what is left
                parts.remove()
        return record, state

    def meet(self, request: SaveRequest, attempt: SaveAttempt) -> None:
        """Waits until all ranks save this, if that is not sure: before then nothing of it is written.

        Raises:
            NotTogether: they do not, or there is something newer to save.
        """
        if request.world == 1 or not self.unsure():
            return
        parts = Parts(attempt.launch.run.store.storage, attempt.address, request.attempt)
        for _ in self._waits(request, attempt):
            if not self.unsure() or self._all_at_work(attempt, request.world):
                return
            if failures := parts.failures():
                raise NotTogether(_failed(failures))
        raise NotTogether(f"what is in reserve of step {request.step} is not saved, for not all ranks save it")

    def give_up(self, store: Store, address: RecordAddress, request: SaveRequest, error: Exception) -> None:
        """Tells the others that this rank does not go on; if it cannot be told, they wait until their time is over."""
        try:
            if not exists(store.storage, address.name):  # else that tells them, and nothing is left in the store
                Parts(store.storage, address, request.attempt).give_up(request.rank, f"{type(error).__name__}: {error}")
        except StorageError as failure:
            error.add_note(f"the other ranks could not be told: {failure}")

    # Rank 0

    def _gather(self, request: SaveRequest, attempt: SaveAttempt, parts: Parts) -> list[Part]:
        """The parts of all other ranks, in order."""
        found: dict[int, Part] = {}
        for _ in self._waits(request, attempt):
            for rank, name in parts.names().items():
                if rank not in found and 0 < rank < request.world:
                    found[rank] = _checked(parts.read(name), request)
            if len(found) == request.world - 1:
                return [found[rank] for rank in sorted(found)]
            if failures := parts.failures():
                raise NotTogether(_failed(failures))
            attempt.published()  # whoever gave up on this save has taken its name
        missing = sorted(set(range(1, request.world)) - found.keys())
        raise NotTogether(
            f"{_ranks(missing)} of {request.world} did not hand in what they have of step {request.step} within "
            f"{request.patience:.0f} s; is save() called on every rank, and does each see this store?"
        )

    def _merged(
        self,
        gathered: Sequence[Part],
        parts: Parts,
        documents: Mapping[bytes, bytes],
        attempt: SaveAttempt,
        earlier: Manifest | None,
        *,
        trained: bool,
    ) -> tuple[Manifest, Whole]:
        def document(digest: bytes) -> bytes:
            return documents[digest] if digest in documents else parts.document(digest)

        # Thousands of ranks have a few structures: each is decoded once.
        skeletons = {digest: self._skeleton(digest, document) for digest in {one.tensors: None for one in gathered}}
        self._known = skeletons
        if odd := drifted(gathered, skeletons):
            raise NotTogether("; ".join(odd))
        ranks = {one.values: one.rank for one in reversed(gathered)}
        values = merge_values({rank: document(digest) for digest, rank in reversed(ranks.items())})
        state = self.merging.merge(gathered, skeletons, values)
        return state, Whole(
            manifest=attempt.write_manifest(state),
            packs=sorted({name for one in gathered for name, _ in one.packs}),
            tensors=len(state.skeleton.tensors),
            sizes=_sizes(state.skeleton, gathered),
            anomalies=[
                *_anomalies(gathered),
                *noticed(state, earlier, trained=trained),
            ],
            fingerprinted=_fingerprinted(state.skeleton, gathered, skeletons),
            timing=_timing(gathered),
        )

    def _skeleton(self, digest: bytes, document: Callable[[bytes], bytes]) -> Skeleton:
        known = self._known.get(digest)
        return known or decode_skeleton("the structure of a rank", document(digest), Digest(digest))

    # The others

    def _await_record(self, request: SaveRequest, attempt: SaveAttempt, parts: Parts) -> Record:
        for _ in self._waits(request, attempt, factor=1.5):
            with suppress(StorageError):  # a storage that does not answer now may do so before the time is over
                if (record := attempt.published()) is not None:
                    return attempt.adopt(record)
                if 0 in (failures := parts.failures()):
                    raise NotTogether(_failed(failures))
        # Nobody knows whether rank 0 still will: its name decides, when this attempt is abandoned.
        raise NotTogether(f"rank 0 did not commit step {request.step} within {1.5 * request.patience:.0f} s")

    def _waits(self, request: SaveRequest, attempt: SaveAttempt, factor: float = 1.0) -> Iterator[None]:
        """Looks, at growing intervals, until the time is over."""
        end, pause = time.monotonic() + factor * request.patience, FIRST_PAUSE
        lonely: float | None = None
        while True:
            yield
            now = time.monotonic()
            self.alive(0)
            lonely = (lonely or now) if self._lonely(attempt, request.world) else None
            longest = 0.0 if self.overtaken() else ORPHAN_SECONDS
            if now >= end or (lonely is not None and now >= lonely + longest):
                return
            time.sleep(min(pause, max(0.0, end - now)))
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def _lonely(self, attempt: SaveAttempt, world: int) -> bool:
        """Whether this saver has no trainer that waits for this, and some ranks do not save it."""
        return (self.orphaned() or self.overtaken()) and not self._all_at_work(attempt, world)

    def _all_at_work(self, attempt: SaveAttempt, world: int) -> bool:
        """Whether all ranks save this: who has handed in still holds."""
        holds = find_saves(attempt.launch.run.store, attempt.address.run)
        at_work = [one for one in holds if one.publishes == attempt.address and one.liveness is not Liveness.DEAD]
        return len(at_work) >= world


def handed(made: Made, store: Store) -> Handed:
    """What this rank contributes."""
    structure = without_boxes(made.shape.skeleton).encode()
    counts, boxes = pack_boxes(made.shape.skeleton.tensors)
    part = Part(
        rank=made.request.rank,
        world=made.request.world,
        tensors=bytes(Digest.of(structure)),
        values=bytes(Digest.of(made.shape.values)),
        counts=counts,
        boxes=boxes,
        digests=made.state.digests,
        inline=made.shape.inline,
        own=made.shape.own,
        packs=_lengths(store, made.packs),
        prints=list(made.shape.prints),
        anomalies=made.anomalies(),
        fingerprinted=made.fingerprinted,
        sizes=(made.sizes.logical, made.sizes.new, made.sizes.stored),
        seconds=(made.timing.stall, made.timing.staging, made.timing.hashing, made.timing.writing),
    )
    return Handed(part, [structure, made.shape.values])


def _lengths(store: Store, packs: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, store.footers.get(ObjectName(name)).size) for name in packs]


def _checked(part: Part, request: SaveRequest) -> Part:
    if part.world != request.world:
        raise NotTogether(f"rank {part.rank} is one of {part.world}, and rank 0 one of {request.world}")
    return part


def _failed(failures: Mapping[int, str]) -> str:
    return "; ".join(f"rank {rank}: {text}" for rank, text in sorted(failures.items()))


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _sizes(skeleton: Skeleton, parts: Sequence[Part]) -> Sizes:
    logical = sum(spec.nbytes for spec in skeleton.tensors)
    new, stored = (sum(one.sizes[i] for one in parts) for i in (1, 2))
    return Sizes(logical=logical, new=new, stored=stored)


def _timing(parts: Sequence[Part]) -> Timing:
    """The longest of each."""
    stall, staging, hashing, writing = (max(one.seconds[i] for one in parts) for i in range(4))
    return Timing(stall=stall, staging=staging, hashing=hashing, writing=writing)


def _anomalies(parts: Sequence[Part]) -> list[str]:
    """Each once, with the ranks that say it if not all do."""
    said: dict[str, list[int]] = {}
    for one in parts:
        for text in one.anomalies:
            said.setdefault(text, []).append(one.rank)
    return [text if len(by) == len(parts) else f"{text} ({_ranks(by)})" for text, by in said.items()]


def _fingerprinted(
    skeleton: Skeleton, parts: Sequence[Part], skeletons: Mapping[bytes, Skeleton]
) -> list[tuple[int, int]]:
    """Positions in the structure of all, as first and last of neighbours."""
    if not any(one.fingerprinted for one in parts):
        return []
    places = {spec.name: place for place, spec in enumerate(skeleton.tensors)}
    known = {
        places[skeletons[one.tensors].tensors[at].name]
        for one in parts
        for first, last in one.fingerprinted
        for at in range(first, last + 1)
    }
    found: list[tuple[int, int]] = []
    for place in sorted(known):
        found.append((found.pop()[0] if found and found[-1][1] == place - 1 else place, place))
    return found


def drifted(parts: Sequence[Part], skeletons: Mapping[bytes, Skeleton]) -> list[str]:
    """Which tensors, that should be the same on several ranks, are not; one sentence for each group of ranks."""
    groups: dict[tuple[tuple[int, ...], bytes], list[tuple[Part, Prints]]] = {}
    for one in parts:
        for prints in one.prints:
            groups.setdefault((prints.ranks, prints.places), []).append((one, prints))
    return [text for several in groups.values() for text in _drifted(several, skeletons)]


def _drifted(several: Sequence[tuple[Part, Prints]], skeletons: Mapping[bytes, Skeleton]) -> Iterator[str]:
    if len({prints.prints for _, prints in several}) == 1:
        return
    part, prints = several[0]
    places = array("I", prints.places)
    odd: dict[tuple[int, ...], list[str]] = {}
    for number, place in enumerate(places):
        ranks = _odd_ranks([(one.rank, p.prints[16 * number : 16 * number + 16]) for one, p in several])
        if ranks:
            odd.setdefault(ranks, []).append(skeletons[part.tensors].tensors[place].name)
    for ranks, names in odd.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield (
            f"replicas have drifted apart: {', '.join(names[:3])}{more} on {_ranks(ranks)} differs from the other "
            "replicas, so there is no one state to be saved; look after that rank's device, and start again from the "
            "last checkpoint"
        )


def _odd_ranks(prints: Sequence[tuple[int, bytes]]) -> tuple[int, ...]:
    """Who has something else than most; all but the first where nobody has a majority."""
    by_print: dict[bytes, list[int]] = {}
    for rank, one in prints:
        by_print.setdefault(one, []).append(rank)
    usual = max(by_print.values(), key=len)
    return tuple(sorted(rank for ranks in by_print.values() if ranks is not usual for rank in ranks))
