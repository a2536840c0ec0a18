"""A save in flight: hold, fence check, tombstones; then the caller writes; then the record, which is the commit.

The order of these steps is the protocol. docs/design/0002-holds-protocol.md
has the failure that follows from leaving out any of them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Self

from holdfast.catalog import layout
from holdfast.catalog.holds import save_hold_name, take_name
from holdfast.catalog.keeping import Keeps
from holdfast.catalog.launches import Launch
from holdfast.catalog.manifests import encode_trees, put_tree, read_reach
from holdfast.catalog.objects import create_once, exists
from holdfast.catalog.parts import Part, Parts
from holdfast.catalog.runs import read_record
from holdfast.catalog.sources import read_sources
from holdfast.catalog.standing import Standing
from holdfast.catalog.tombstones import Tombstones, await_clear, read_tombstones
from holdfast.clock import utc_now
from holdfast.errors import (
    Damaged,
    Fenced,
    ObjectExists,
    ObjectMissing,
    RecordConflict,
    SaveFailed,
    StorageError,
    StorageFull,
)
from holdfast.ids import Digest, ObjectName, Order, RecordAddress, RecordId, nonce
from holdfast.packs.footer import Footer
from holdfast.packs.index import SegmentIndex
from holdfast.records import Aborted, Hold, Owner, Record, Target
from holdfast.storage.protocol import Storage
from holdfast.trees import Manifest

_log = logging.getLogger(__name__)

SWEEP_SECONDS = 30.0
"""How long a save waits for a sweep that is deleting a manifest or skeleton equal to its own."""


class SaveAttempt:
    """One attempt to publish one record. `known` and `owns` are thread-safe, the rest belongs to one thread.

    As a context manager it is abandoned unless it was published.
    """

    def __init__(
        self,
        launch: Launch,
        address: RecordAddress,
        bases: list[RecordAddress],
        *,
        shared: bool,
        attempt: str | None = None,
    ) -> None:
        self.launch = launch
        self.address = address
        self.nonce = attempt or nonce()
        self.owner: Owner = launch.run.store.owner
        self._store = launch.run.store
        self._bases = bases
        self._shared = shared
        self._hold = save_hold_name(address, nonce())  # never used twice, unlike the nonce of a save that is repeated
        self._tombstones = Tombstones(sweeps=(), damaged=())
        self._sources = SegmentIndex()
        self._own: dict[ObjectName, Footer | None] = {}
        self._tried = self._left = self._contributed = False
        self._published: Record | None = None

    @property
    def storage(self) -> Storage:
        """Where to write packs: removing a shared pack through it does nothing, for others may use it already."""
        return Keeps(self._store.storage, layout.SHARED_PACKS)

    @property
    def target(self) -> Target:
        """The record that is to be, as fields."""
        return Target.of(self.address)

    def known(self, digest: Digest) -> bool:
        """Whether a segment lies in a pack that this save may rely on, so that it need not be written."""
        return digest in self._sources

    def owns(self, pack: ObjectName) -> None:
        """Takes note of a pack that this save begins to write."""
        self._own.setdefault(pack, None)

    def wrote(self, footers: Iterable[Footer]) -> None:
        """Takes note of packs that this save has committed."""
        for footer in footers:
            self._own[footer.name] = self._store.footers.add(footer)

    def packs(self, digests: Iterable[Digest]) -> list[str]:
        """The packs that hold ``digests``, by name, for the record.

        Raises:
            SaveFailed: a segment is neither reused nor in the packs of this save.
        """
        own = SegmentIndex(self._own_footers())
        found: set[str] = set()
        for digest in set(digests):
            location = own.get(digest) or self._sources.get(digest)
            if location is None:
                raise SaveFailed(f"segment {digest.short} of {self.address} is in no pack; save again")
            found.add(str(location.pack))
        return sorted(found)

    def write_manifest(self, manifest: Manifest) -> Digest:
        """Writes skeleton and manifest, durably, where no sweep can be deleting them; gives the manifest's digest.

        Raises:
            SaveFailed: a sweep has announced the very same object and does not get on.
        """
        trees = encode_trees(self.launch.run, manifest)
        for name, data in trees.objects:
            _await_sweep(self, name)
            put_tree(self._store.storage, name, data)
        return trees.manifest

    def contribute(self, parts: Parts, part: Part, documents: Iterable[bytes]) -> None:
        """Hands over to whoever commits: from here on nobody but he, or who takes the name, knows what becomes of it.

        Raises:
            StorageError: not known to be handed over.
        """
        self._tried = self._contributed = True
        parts.put(part, documents)

    def leave(self) -> None:
        """What was written is left to whoever commits, and protected by his hold; `abandon` still removes it."""
        self._left = True
        _release(self)

    def adopt(self, record: Record) -> Record:
        """Somebody else has published this very save."""
        self._published = record
        _release(self)
        return record

    def published(self) -> Record | None:
        """The record of this very save, if it was published; None: nobody has taken the name.

        Raises:
            Fenced, SaveFailed, RecordConflict: the name is taken by something else.
        """
        if not exists(self._store.storage, self.address.name):
            return None
        found = read_record(self._store, self.address)
        if isinstance(found, Record) and found.attempt == self.nonce:
            return found
        raise _taken(self)

    def publish(self, record: Record, sizes: Mapping[str, int] | None = None) -> Record:
        """Commits: ``record`` is durable and visible when this returns, and everything that it names was before.

        ``sizes`` has the lengths of packs that others have written.

        Raises:
            Fenced: a newer launch has given up on this save.
            SaveFailed: somebody else has, or a pack or tree is not there (any more).
            RecordConflict: another save published under this id.
            StorageError: not known to be published; try again with the same record, or abandon.
        """
        _check_packs(self, record, sizes or {})
        _check_trees(self, record)
        doubted, self._tried = self._tried, True
        try:
            create_once(self._store.storage, record.name, record)
        except ObjectExists:
            raise _taken(self) from None
        except StorageFull:
            # If it is not there, nothing has to be settled and all can be tried again; the folder may have been full.
            self._tried = doubted or _may_exist(self._store.storage, record.name)
            raise
        self._published = record
        _release(self)
        return record

    def abandon(self) -> Record | None:
        """Gives up: nothing of this save will appear, and its private packs are removed; idempotent.

        Returns:
            The record, if it turns out to be published after all (its answer had been lost); then nothing is removed.

        Raises:
            StorageError: it cannot be told whether it is published; nothing was removed.
        """
        if self._published is None and self._tried:
            self._published = _settle_own(self)
        if self._published is None:
            # Manifests may be shared with other saves, shared packs with other runs: these are left to sweeps.
            own = [name for name in self._own if not name.startswith(layout.SHARED_PACKS)]
            self._store.storage.delete(own)
        _release(self)
        return self._published

    def _own_footers(self) -> list[Footer]:
        return [footer or self._store.footers.get(name) for name, footer in self._own.items()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._published is not None or self._left:
            return
        try:
            self.abandon()
        except StorageError as error:
            # The hold stays and says that something is unfinished; a launch or a sweep settles it.
            _log.warning("the save of %s could not be cleaned up: %s", self.address, error)


def begin_save(
    launch: Launch,
    timeline: int,
    step: int,
    *,
    bases: Iterable[RecordAddress] = (),
    shared: bool = True,
    quarantined: Collection[ObjectName] = (),
    standing: Standing | None = None,
    attempt: str | None = None,
) -> SaveAttempt:
    """Begins to save ``step``; from here on no sweep removes what the save may reuse.

    Args:
        launch: who saves.
        timeline: restores done in this launch.
        step: completed optimizer steps.
        bases: committed records of the run whose segments may be reused.
        shared: whether shared packs may be reused or written.
        quarantined: packs known to be damaged; what only they have is written again.
        standing: the standing hold of this saver: while it stands, a newer launch waits for it.
        attempt: the nonce for the record, where an earlier process may have published this very save; None: a new one.

    Raises:
        Fenced: a newer launch owns the run.
        RecordConflict: the record exists.
        SaveFailed: the save was given up before, or its name is being swept.
        StorageError: not begun.
    """
    run = launch.run
    order = Order(launch.number, timeline, step)
    address = RecordAddress(run.number, order, RecordId.derive(run.store.info.id, run.number, order))
    save = SaveAttempt(launch, address, list(bases), shared=shared, attempt=attempt)
    try:
        _announce(save)
        _check_fence(save, standing)
        save._tombstones = _read_tombstones(save)
        _check_name(save)
        save._sources = _find_sources(save, quarantined)
    except BaseException:
        _release(save)
        raise
    return save


def _announce(attempt: SaveAttempt) -> None:
    """Step 1: the hold. Whoever looks for holds after this finds it."""
    hold = Hold(
        run=int(attempt.address.run),
        created=utc_now(),
        owner=attempt.owner,
        publishes=attempt.target,
        reads=[Target.of(base) for base in attempt._bases],
        reads_shared=attempt._shared,
        attempt=attempt.nonce,
    )
    create_once(attempt._store.storage, attempt._hold, hold)
    attempt._store.await_visibility()


def _check_fence(attempt: SaveAttempt, standing: Standing | None) -> None:
    """Step 2: a launch that did not see the hold has made its file before; here it is seen.

    Unless it waits for this very saver: then the standing hold is still there, and it looks for holds after that.
    """
    if attempt.launch.fenced() and not (standing is not None and standing.stands()):
        launch = attempt.launch
        raise Fenced(f"launch {launch.number} of {attempt.address.run} may save no more: {launch.said_fenced()}")


def _read_tombstones(attempt: SaveAttempt) -> Tombstones:
    """Step 3: a sweep that did not see the hold has announced before; here it is seen."""
    return read_tombstones(attempt._store)


def _check_name(attempt: SaveAttempt) -> None:
    name = attempt.address.name
    if name in attempt._tombstones.names:
        raise SaveFailed(f"{attempt.address} is being deleted by a sweep; save again at the next step")
    try:
        attempt._store.storage.size(name)
    except ObjectMissing:
        return
    raise _taken(attempt)


def _find_sources(attempt: SaveAttempt, quarantined: Collection[ObjectName]) -> SegmentIndex:
    """Step 4: only after the tombstones, for a sweep that is through has removed its own."""
    return read_sources(
        attempt.launch.run,
        bases=attempt._bases,
        shared=attempt._shared,
        tombstones=attempt._tombstones,
        quarantined=quarantined,
    )


def _await_sweep(attempt: SaveAttempt, name: ObjectName) -> None:
    """A tree's name is its content, so it cannot be avoided like a pack: wait until the sweep is through."""
    if name not in attempt._tombstones.names:
        return  # later sweeps see the hold
    if not await_clear(attempt._store, frozenset([name]), seconds=SWEEP_SECONDS):
        raise SaveFailed(f"a sweep announced {name} and did not end in {SWEEP_SECONDS:.0f} s; end it and save again")


def _check_packs(attempt: SaveAttempt, record: Record, sizes: Mapping[str, int]) -> None:
    """Step 5: the length of every pack, right before a record names it (purged and truncated ones are found)."""
    for name in map(ObjectName, record.packs):
        try:
            expected = sizes[name] if name in sizes else attempt._store.footers.get(name).size
            found = attempt._store.storage.size(name)
        except (Damaged, ObjectMissing) as error:
            raise SaveFailed(f"{record.address} was not published, {name} is not there: {error}") from error
        if found != expected:
            raise SaveFailed(f"{record.address} was not published, {name} has {found} bytes instead of {expected}")


def _check_trees(attempt: SaveAttempt, record: Record) -> None:
    """Step 6: manifest and skeleton are there, and no sweep that began before this save may still delete them."""
    manifest = layout.tree(attempt.address.run, record.manifest_digest)
    _await_sweep(attempt, manifest)
    try:
        skeleton = layout.tree(attempt.address.run, read_reach(attempt.launch.run, record.manifest_digest).skeleton)
        _await_sweep(attempt, skeleton)
        attempt._store.storage.size(skeleton)
    except (Damaged, ObjectMissing) as error:
        raise SaveFailed(f"{record.address} was not published, its manifest is not there: {error}") from error


def _may_exist(storage: Storage, name: ObjectName) -> bool:
    try:
        return exists(storage, name)
    except StorageError:
        return True


def _taken(attempt: SaveAttempt) -> Exception:
    try:
        found = read_record(attempt._store, attempt.address)
    except Damaged as error:
        return RecordConflict(f"{attempt.address.name} is taken by something that cannot be read: {error}")
    if isinstance(found, Aborted):
        text = f"the save of {attempt.address} was given up: {found.reason}"
        return Fenced(f"{text}; {attempt.launch.said_fenced()}") if attempt.launch.fenced() else SaveFailed(text)
    return RecordConflict(f"{attempt.address} was published by another save; a save of this step exists already")


def _settle_own(attempt: SaveAttempt) -> Record | None:
    """Takes the name of a record whose publication is in doubt; the record, if it was published."""
    take_name(attempt._store, attempt.address, saver=attempt.owner, reason="the saver gave up after a failure")
    try:
        found = read_record(attempt._store, attempt.address)
    except Damaged as error:
        if attempt._contributed:
            raise StorageError(f"{attempt.address} cannot be read, and may be of this save: {error}") from error
        return None
    return found if isinstance(found, Record) and found.attempt == attempt.nonce else None


def _release(attempt: SaveAttempt) -> None:
    """Last: the hold goes when it protects nothing any more; left behind, it does no harm once the name is taken."""
    try:
        attempt._store.storage.delete([attempt._hold])
    except StorageError as error:
        _log.warning("%s could not be removed: %s", attempt._hold, error)
