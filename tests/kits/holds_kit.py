"""Whole checkpoints in a few lines, and a scheduler that decides who does the next storage operation.

Actors run the real code in threads, but only one at a time: each operation of
their storage waits until the scheduler lets it go on. So an interleaving is a
list of choices, and the same choices give the same history.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from holdfast.catalog import layout
from holdfast.catalog.launches import Launch
from holdfast.catalog.locating import read_footers
from holdfast.catalog.manifests import manifest_of, read_manifest
from holdfast.catalog.objects import _read_some
from holdfast.catalog.owners import Liveness
from holdfast.catalog.runs import Run, read_record
from holdfast.catalog.saves import begin_save
from holdfast.catalog.standing import Standing
from holdfast.catalog.store import Store, create_store
from holdfast.catalog.waiting import Waiter
from holdfast.clock import utc_now
from holdfast.errors import HoldfastError, ObjectMissing
from holdfast.ids import Digest, RecordAddress
from holdfast.packs.codec import Codec
from holdfast.packs.index import Footers, SegmentIndex
from holdfast.packs.writer import write_segments
from holdfast.records import Aborted, Kind, Owner, Record, Sizes, Target, Timing
from holdfast.seals import unseal
from holdfast.storage.memory import memory_storage
from holdfast.trees import Lifetime, Skeleton, TensorSpec

SKELETON = Skeleton(tensors=(TensorSpec(name="w", dtype="uint8", shape=(4096,), lifetime=Lifetime.PARAMETER),))


def draft(attempt, manifest: Digest, packs: list[str], parent: RecordAddress | None = None, **fields) -> Record:
    """The record of an attempt, ready to be published."""
    defaults = {
        "parent": None if parent is None else Target.of(parent),
        "created": utc_now(),
        "kind": Kind.REGULAR,
        "reason": "test",
        "manifest": str(manifest),
        "packs": packs,
        "tensors": 1,
        "bytes": Sizes(logical=1, new=1, stored=1),
        "timing": Timing(stall=0, staging=0, hashing=0, writing=0),
        "codec": "raw",
        "owner": attempt.owner,
        "attempt": attempt.nonce,
    }
    return Record(**{**attempt.target.fields(), **defaults, **fields})


def fill(attempt, step: int, parts: list[bytes], frozen: list[bytes] = (), values: bytes | None = None) -> Record:
    """Writes packs and manifest of an attempt; the record is not yet published."""
    digests = []
    for folder, some in ((layout.private_packs(attempt.address.run), parts), (layout.SHARED_PACKS, frozen)):
        if some:
            written = write_segments(
                attempt.storage, folder, map(memoryview, some), known=attempt.known, codec=Codec.RAW, threads=1
            )
            attempt.wrote(written.footers)
            digests += written.digests
    content = f'{{"step": {step}}}'.encode() if values is None else values
    manifest = attempt.write_manifest(manifest_of(SKELETON, content, b"", digests))
    return draft(attempt, manifest, attempt.packs(digests))


def save(
    launch: Launch,
    step: int,
    parts: list[bytes],
    *,
    timeline: int = 0,
    frozen: list[bytes] = (),
    bases: list[RecordAddress] = (),
    values: bytes | None = None,
    standing: Standing | None = None,
) -> Record:
    """A whole checkpoint of the given segments."""
    with begin_save(launch, timeline, step, bases=bases, shared=bool(frozen), standing=standing) as attempt:
        return attempt.publish(fill(attempt, step, parts, frozen, values))


def load_all(store: Store, address: RecordAddress) -> None:
    """Reads a record, its manifest and the places of all its segments.

    Raises:
        HoldfastError: something of it is not there.
    """
    record = read_record(store, address)
    assert isinstance(record, Record), f"{address} is {record}"
    manifest = read_manifest(Run(store, store.run(address.run).info), record.manifest_digest)
    folders = (layout.private_packs(address.run), layout.SHARED_PACKS)
    packs = [listed.name for folder in folders for listed in store.storage.list(folder)]
    # Garbage may go while this looks; what is needed is looked for by digest.
    index = SegmentIndex(read_footers(Footers(store.storage), packs).footers)
    lost = [digest.short for digest in manifest.segment_digests() if digest not in index]
    assert not lost, f"{address} lost segments {lost}"


class Killed(BaseException):
    """What an actor gets instead of its next storage operation when it is killed."""


class Actor:
    """One process: a thread that runs ``script(store)`` against its own view of the storage."""

    def __init__(self, world: World, name: str, script: Callable[[Store], object], host: str = "here") -> None:
        self.world, self.name, self.script = world, name, script
        self.owner = Owner(host=host, boot="boot", pid=len(world.actors) + 1, started=name)
        self.done = self.killed = False
        self.steps = self.sleeps = 0
        self.error: BaseException | None = None
        self.result: object = None
        self._go, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        self._parked.acquire()

    def step(self) -> None:
        """Lets it do one storage operation and run on to the next."""
        self.steps += 1
        self._go.release()
        self._parked.acquire()

    def until_it_sleeps(self) -> None:
        """Lets it go on until it waits for somebody else, or is done."""
        before = self.sleeps
        while not self.done and self.sleeps == before:
            self.step()

    def kill(self) -> None:
        """Ends it at the operation that it is about to do."""
        self.killed = True
        while not self.done:
            self.step()

    def gate(self) -> None:
        """Called by its storage before each operation."""
        self._parked.release()
        self._go.acquire()
        if self.killed:
            raise Killed

    def store(self) -> Store:
        """The store as this process sees it."""
        return Store(
            storage=Gated(self),
            info=self.world.info,
            whoami=lambda: self.owner,
            liveness=self.world.liveness,
            waiter=Waiter(now=lambda: self.world.time, sleep=self._sleep),
        )

    def _sleep(self, seconds: float) -> None:
        self.gate()
        self.world.time += seconds
        self.sleeps += 1

    def _main(self) -> None:
        try:
            self._parked.release()
            self._go.acquire()
            if not self.killed:
                self.result = self.script(self.store())
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._parked.release()


class Gated:
    """The world's storage, one operation at a time; a delete of many names is many operations."""

    def __init__(self, actor: Actor) -> None:
        self.actor, self.inner, self.world = actor, actor.world.storage, actor.world
        self.url = self.inner.url

    def create(self, name, data):
        self.actor.gate()
        self.inner.create(name, data)
        self.world.created(name)

    def read(self, name):
        self.actor.gate()
        return self.inner.read(name)

    def size(self, name):
        self.actor.gate()
        return self.inner.size(name)

    def list(self, prefix):
        self.actor.gate()
        return iter(list(self.inner.list(prefix)))

    def delete(self, names):
        for name in list(names):
            self.actor.gate()
            self.inner.delete([name])
            self.world.deleted(name)

    def sink(self, name, reserve):
        return GatedSink(self.actor, self.inner.sink(name, reserve))

    def source(self, name):
        self.actor.gate()
        return self.inner.source(name)

    def sweep_unfinished(self):
        return 0


class GatedSink:
    def __init__(self, actor, inner):
        self.actor, self.inner, self.alignment = actor, inner, inner.alignment

    def write(self, offset, data):
        self.inner.write(offset, data)

    def commit(self, length):
        self.actor.gate()
        self.inner.commit(length)

    def abort(self):
        self.inner.abort()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.abort()


@dataclass
class World:
    """One store and everybody who is at work in it."""

    storage: object = field(default_factory=memory_storage)
    actors: list[Actor] = field(default_factory=list)
    time: float = 0.0
    violations: list[str] = field(default_factory=list)
    resolved: dict[int, int] = field(default_factory=dict)
    """By run: the newest launch that has gone on to choose what to resume from."""
    committed: set[str] = field(default_factory=set)
    unwanted: set[RecordAddress] = field(default_factory=set)
    """What somebody meant to delete."""
    relied_on: dict[str, RecordAddress] = field(default_factory=dict)
    """Records that somebody was told will stay: by the tag, fork or reader."""
    staged: RecordAddress | None = None
    """The newest record that a trainer was promised when it was killed."""

    def __post_init__(self) -> None:
        self.plain = create_store(self.storage)
        self.info = self.plain.info

    def actor(self, name: str, script: Callable[[Store], object], host: str = "here") -> Actor:
        actor = Actor(self, name, script, host)
        self.actors.append(actor)
        return actor

    def liveness(self, owner: Owner) -> Liveness:
        """As all processes are on one host, unless they say otherwise; a namesake of it has another boot id."""
        if owner.host == "namesake":
            return Liveness.REBOOTED
        if owner.host != "here":
            return Liveness.UNKNOWN
        mine = [actor for actor in self.actors if actor.owner == owner]
        return Liveness.DEAD if not mine or mine[0].killed or mine[0].done else Liveness.ALIVE

    def created(self, name: str) -> None:
        if "/records/" not in name:
            return
        content = unseal(name, self.storage.read(name), (Record, Aborted))
        if isinstance(content, Record):
            self.committed.add(content.name)
            if content.launch < self.resolved.get(content.run, 0):
                self.violations.append(f"{content.address} of launch {content.launch} after a newer one had resolved")
            self.check_whole(content.address)

    def deleted(self, name: str) -> None:
        if "/holds/" in name or "/sweeps/" in name:
            return
        if name in self.committed and (address := RecordAddress.from_name(name)) not in self.unwanted:
            self.violations.append(f"{address} was deleted and nobody had asked for it")
        self.check()

    def check(self) -> None:
        """Every visible record is whole, and every granted tag has its record."""
        for number in self.plain.numbers():
            for record in self.plain.run(number).records():
                self.check_whole(record.address)
        for who, address in self.relied_on.items():
            try:
                self.storage.size(address.name)
            except ObjectMissing:
                self.violations.append(f"{who} relies on {address}, and it is gone")

    def check_whole(self, address: RecordAddress) -> None:
        try:
            load_all(self.plain, address)
        except (HoldfastError, AssertionError) as error:
            self.violations.append(f"{address} is visible and not whole: {error}")

    def finish(self) -> None:
        """Nobody is left at a gate; errors that are no refusals are violations."""
        for actor in self.actors:
            if not actor.done:
                actor.kill()
            if actor.error is not None and not isinstance(actor.error, HoldfastError):
                self.violations.append(f"{actor.name} failed: {actor.error!r}")
        self.check()


Scenario = Callable[[World], None]
Schedule = Callable[[World], None]


def play(scenario: Scenario, schedule: Schedule) -> World:
    """One history."""
    world = World()
    scenario(world)
    schedule(world)
    world.finish()
    return world


def to_the_end(actor: Actor) -> None:
    while not actor.done:
        actor.step()


def in_turns(one: Actor, other: Actor) -> None:
    """Each goes to its end, and whoever waits for the other one lets it do so."""
    while not (one.done and other.done):
        one.until_it_sleeps()
        other.until_it_sleeps()


def one_by_one(one: Actor, other: Actor) -> None:
    """Each goes to its end, and whoever waits does so in vain."""
    to_the_end(one)
    to_the_end(other)


def switches(first: int, before: int, between: int, *, patient: bool = False) -> Schedule:
    """Two actors: ``first`` does some operations, the other one some; then each goes to its end.

    With ``patient``, nobody waits for more than the other one's last operation: deadlines do not pass meanwhile.
    """

    def schedule(world: World) -> None:
        one, other = world.actors[first], world.actors[1 - first]
        for actor, count in ((one, before), (other, between)):
            for _ in range(count):
                if not actor.done:
                    actor.step()
        (in_turns if patient else one_by_one)(one, other)

    return schedule


def lengths(scenario: Scenario, *, patient: bool = False) -> list[int]:
    """How many operations each of two actors does, the more of both orders."""
    counts = [0, 0]
    for first in (0, 1):
        world = World()
        scenario(world)
        switches(first, 0, 0, patient=patient)(world)
        counts = [max(count, actor.steps) for count, actor in zip(counts, world.actors, strict=True)]
        world.finish()
    return counts


def two_switches(
    scenario: Scenario, every: int = 1, seed: int | None = None, *, patient: bool = False
) -> Iterator[tuple[str, World]]:
    """Histories of two actors with at most two preemptions: all of them, or one in ``every``, evenly spread.

    With ``seed`` in random order, which finds what a broken step leads to sooner.
    """
    counts = lengths(scenario, patient=patient)
    choices = [
        (first, before, between)
        for first in (0, 1)
        for before in range(counts[first] + 1)
        for between in range(before % every, counts[1 - first] + 1, every)
    ]
    if seed is not None:
        random.Random(seed).shuffle(choices)
    for choice in choices:
        yield str(choice), play(scenario, switches(*choice, patient=patient))


def shuffled(seed: int, *, kills: float = 0.0) -> Schedule:
    """Random choices, with runs of the same actor, and now and then a kill."""
    choice = random.Random(seed)

    def schedule(world: World) -> None:
        turn = None
        while waiting := [actor for actor in world.actors if not actor.done]:
            if turn not in waiting or choice.random() < 0.3:
                turn = choice.choice(waiting)
            if choice.random() < kills:
                turn.kill()
            else:
                turn.step()

    return schedule


@contextmanager
def reproducible(seed: int, monkeypatch) -> Iterator[None]:
    """Nonces and pack names from a seed, so that even the order of listings repeats; reads one after the other."""
    numbers = random.Random(seed)

    class Secrets:
        @staticmethod
        def token_hex(count):
            return numbers.randbytes(count).hex()

        @staticmethod
        def token_bytes(count):
            return numbers.randbytes(count)

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.ids.secrets", Secrets)
        patch.setattr("holdfast.packs.packing.secrets", Secrets)
        patch.setattr("holdfast.catalog.objects._read_each", _read_some)
        yield
