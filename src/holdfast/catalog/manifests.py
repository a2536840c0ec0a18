"""Manifests and skeletons in a run's ``trees/``: written once under their digest, verified whenever they are read.

A tree object is named by the digest of its content, so two saves of equal
state share it, and a damaged one can be written again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.objects import read_bytes, unreadable
from holdfast.errors import Missing, ObjectExists, ObjectMissing, Unreadable
from holdfast.ids import Digest, ObjectName, nonce
from holdfast.storage.protocol import Storage
from holdfast.trees import (
    Manifest,
    Page,
    Skeleton,
    decode_head,
    decode_skeleton,
    encode_manifest,
    head_end,
    page_bytes,
)

if TYPE_CHECKING:
    from holdfast.catalog.runs import Run


_READ_WHOLE = 1 << 20
"""Bytes up to which a manifest is read in one go."""
_FIRST_READ = 1 << 16


class Trees(NamedTuple):
    """The two tree objects of a checkpoint, encoded, with the names under which they belong."""

    manifest: Digest
    objects: tuple[tuple[ObjectName, bytes], ...]
    """In the order of writing: skeleton, then manifest."""


def encode_trees(run: Run, manifest: Manifest) -> Trees:
    """Skeleton and manifest as objects, not yet written."""
    skeleton, (digest, data) = manifest.skeleton.encode(), encode_manifest(manifest)
    objects = ((layout.tree(run.number, manifest.skeleton_digest), skeleton), (layout.tree(run.number, digest), data))
    return Trees(digest, objects)


def manifest_of(skeleton: Skeleton, values: bytes, inline: bytes, digests: Iterable[Digest]) -> Manifest:
    """The manifest of a state in one part."""
    return Manifest(skeleton, Digest.of(skeleton.encode()), values, inline, b"".join(digests))


def write_manifest(run: Run, skeleton: Skeleton, values: bytes, inline: bytes, digests: Iterable[Digest]) -> Digest:
    """Writes skeleton and manifest of a state in one part, durably, and gives the manifest's digest; idempotent.

    Within a save use `SaveAttempt.write_manifest`, which heeds sweeps.
    """
    trees = encode_trees(run, manifest_of(skeleton, values, inline, digests))
    for name, data in trees.objects:
        put_tree(run.store.storage, name, data)
    return trees.manifest


def put_tree(storage: Storage, name: ObjectName, data: bytes) -> None:
    """Makes sure that ``name`` holds ``data``, whose digest it is; heals a damaged object."""
    try:
        storage.create(name, data)
    except ObjectExists:
        first, second = _stored(storage, name), _stored(storage, name)
        # Twice in the same way: one read may be wrong, or fail in passing.
        if first == second != data:
            _replace(storage, name, data)


def _replace(storage: Storage, name: ObjectName, data: bytes) -> None:
    """All records of a run share a skeleton, so a disk that is full or sick is found before the old one goes."""
    spare = ObjectName(f"{name}.{nonce()}")
    storage.create(spare, data)
    storage.delete([name])
    storage.create(name, data)
    storage.delete([spare])


def _stored(storage: Storage, name: ObjectName) -> bytes | None:
    try:
        return read_bytes(storage, name)
    except (ObjectMissing, Unreadable):
        return None


def read_manifest(run: Run, digest: Digest) -> Manifest:
    """A whole manifest with its skeleton, every byte verified.

    Raises:
        Missing: the manifest or its skeleton is not there.
        Corrupt: damaged bytes.
        Unreadable: the storage cannot give them.
        UnknownFormat: written by a newer holdfast.
    """
    opened = OpenManifest(run, digest)
    parts = range(len(opened.head.parts))
    own = tuple(map(opened.own, parts))
    digests = b"".join(map(opened.digests, parts))
    skeleton = Digest(opened.head.skeleton)
    counts = opened.head.counts()
    return Manifest(opened.skeleton, skeleton, opened.values, opened.inline, digests, own, counts)


class OpenManifest:
    """A manifest of which only those pages are looked at that are asked for; each is verified. Not thread-safe.

    Args:
        run: where it is.
        digest: of the manifest.

    Raises:
        Damaged: as `read_manifest`, here and later.
    """

    def __init__(self, run: Run, digest: Digest) -> None:
        self._name = layout.tree(run.number, digest)
        self._bytes = _Bytes(run, self._name)
        begin = self._bytes.get(0, _FIRST_READ)
        self.head, self._base = decode_head(self._name, self._bytes.get(0, head_end(begin)), digest)
        self.skeleton = read_skeleton(run, Digest(self.head.skeleton))
        """What the pages are of."""

    @property
    def values(self) -> bytes:
        """Tagged JSON of what all ranks have in common."""
        return bytes(self._page(self.head.values))

    @property
    def inline(self) -> bytes:
        """Small tensors back to back."""
        return bytes(self._page(self.head.inline))

    def own(self, part: int) -> bytes:
        """Tagged JSON of what belongs to the rank of that part alone."""
        return bytes(self._page(self.head.own[part]))

    def digests(self, part: int) -> bytes:
        """The digests of one part."""
        return b"".join(map(self._page, self.head.pages_of(part)))

    def _page(self, page: Page) -> memoryview:
        body = self._bytes.get(self._base + page.offset, page.length)
        return page_bytes(self._name, body, -page.offset, page)


class _Bytes:
    """Stretches of an object: of a long one only those that are asked for are read."""

    def __init__(self, run: Run, name: ObjectName) -> None:
        self._run, self._name = run, name
        self._whole: memoryview | None = None
        if _size(run, name) <= _READ_WHOLE:
            self._whole = memoryview(_read(run, name))

    def get(self, offset: int, length: int) -> memoryview:
        """What is there of it: less at the end."""
        if self._whole is not None:
            return self._whole[offset : offset + length]
        with unreadable(self._name), self._run.store.storage.source(self._name) as source:
            found = memoryview(bytearray(max(0, min(length, source.size - offset))))
            source.read_into(offset, found)
        return found


def _size(run: Run, name: ObjectName) -> int:
    try:
        return run.store.storage.size(name)
    except ObjectMissing:
        raise _missing(run, name) from None


def read_skeleton(run: Run, digest: Digest) -> Skeleton:
    """A skeleton, verified; errors as in `read_manifest`."""
    name = layout.tree(run.number, digest)
    return decode_skeleton(name, _read(run, name), digest)


class Reach(NamedTuple):
    """What a manifest names, without its values."""

    skeleton: Digest
    digests: bytes
    """32 bytes a segment."""


def read_reach(run: Run, digest: Digest) -> Reach:
    """The skeleton's digest and the segment digests of a manifest, verified; the skeleton itself is not read."""
    name = layout.tree(run.number, digest)
    data = _read(run, name)
    head, base = decode_head(name, data, digest)
    return Reach(Digest(head.skeleton), b"".join(page_bytes(name, data, base, page) for page in head.pages))


def _read(run: Run, name: ObjectName) -> bytes:
    try:
        return read_bytes(run.store.storage, name)
    except ObjectMissing:
        raise _missing(run, name) from None


def _missing(run: Run, name: ObjectName) -> Missing:
    return Missing(f"{name} is not there, and a record of {run.number} names it; run 'holdfast verify'")
