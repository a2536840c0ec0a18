"""Manifests and skeletons in a run's ``trees/``: written once under their digest, verified whenever they are read.

A tree object is named by the digest of its content, so two saves of equal
state share it, and a damaged one can be written again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from holdfast.catalog import layout
from holdfast.catalog.objects import read_bytes
from holdfast.errors import Missing, ObjectExists, ObjectMissing, Unreadable
from holdfast.ids import Digest, ObjectName
from holdfast.storage.protocol import Storage
from holdfast.trees import (
    Manifest,
    Skeleton,
    decode_head,
    decode_skeleton,
    encode_manifest,
    page_bytes,
)

if TYPE_CHECKING:
    from holdfast.catalog.runs import Run


class Trees(NamedTuple):
    """The two tree objects of a checkpoint, encoded, with the names under which they belong."""

    manifest: Digest
    objects: tuple[tuple[ObjectName, bytes], ...]
    """In the order of writing: skeleton, then manifest."""


def encode_trees(run: Run, skeleton: Skeleton, values: bytes, inline: bytes, digests: Iterable[Digest]) -> Trees:
    """Skeleton and manifest as objects, not yet written."""
    skeleton_bytes = skeleton.encode()
    skeleton_digest = Digest.of(skeleton_bytes)
    digest, data = encode_manifest(Manifest(skeleton, skeleton_digest, values, inline, b"".join(digests)))
    objects = ((layout.tree(run.number, skeleton_digest), skeleton_bytes), (layout.tree(run.number, digest), data))
    return Trees(digest, objects)


def write_manifest(run: Run, skeleton: Skeleton, values: bytes, inline: bytes, digests: Iterable[Digest]) -> Digest:
    """Writes skeleton and manifest, durably, and gives the manifest's digest; idempotent.

    Within a save use `SaveAttempt.write_manifest`, which heeds sweeps.
    """
    trees = encode_trees(run, skeleton, values, inline, digests)
    for name, data in trees.objects:
        put_tree(run.store.storage, name, data)
    return trees.manifest


def put_tree(storage: Storage, name: ObjectName, data: bytes) -> None:
    """Makes sure that ``name`` holds ``data``, whose digest it is; heals a damaged object."""
    try:
        storage.create(name, data)
    except ObjectExists:
        if _stored(storage, name) != data:
            storage.delete([name])
            storage.create(name, data)


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
    name = layout.tree(run.number, digest)
    data = _read(run, name)
    head, base = decode_head(name, data, digest)
    pages = [page_bytes(name, data, base, page) for page in (head.values, head.inline, *head.pages)]
    skeleton = Digest(head.skeleton)
    return Manifest(read_skeleton(run, skeleton), skeleton, pages[0], pages[1], b"".join(pages[2:]))


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
        raise Missing(f"{name} is not there, and a record of {run.number} names it; run 'holdfast verify'") from None
