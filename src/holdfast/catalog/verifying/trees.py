"""Manifests and skeletons, each read and checked to its last byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from holdfast.catalog.objects import read_bytes
from holdfast.catalog.store import Store
from holdfast.errors import Corrupt, Damaged, Missing, ObjectMissing
from holdfast.ids import Digest, ObjectName
from holdfast.payload import counts
from holdfast.trees import Head, Page, Skeleton, decode_head, decode_skeleton, page_bytes

T = TypeVar("T")

Lacks = Callable[[ObjectName, tuple[Digest, ...]], list[Digest]]
"""Which segments of a manifest no pack holds whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkeletonFacts:
    """What a skeleton asks of the manifests that name it."""

    segments: tuple[int, ...]
    """Per part."""
    inline: int
    """Bytes of the inline page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFacts:
    """What a manifest names."""

    skeleton: Digest
    inline: int
    segments: tuple[int, ...]
    """Per part."""
    digests: tuple[Digest, ...]
    """Of its segments, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What is left of `ManifestFacts` when its segments have been looked up."""

    skeleton: ObjectName
    segments: tuple[int, ...]
    inline: int
    lost: tuple[Digest, ...]
    """Segments that no pack holds whole."""


class Trees:
    """The tree objects of a store, each read once and checked to its last byte."""

    def __init__(self, store: Store, names: Iterable[ObjectName], lacks: Lacks) -> None:
        self._store = store
        self._lacks = lacks
        self._skeletons: dict[ObjectName, SkeletonFacts] = {}
        self._needs: dict[ObjectName, Needs] = {}
        self.damaged: dict[ObjectName, Damaged] = {}
        for name in names:
            self._take(name)

    def _take(self, name: ObjectName) -> None:
        try:
            facts = check_tree(self._store, name)
        except ObjectMissing:
            return
        except Damaged as error:
            self.damaged[name] = error
            return
        if isinstance(facts, SkeletonFacts):
            self._skeletons[name] = facts
        else:
            self._needs[name] = self._looked_up(name, facts)

    def _looked_up(self, name: ObjectName, facts: ManifestFacts) -> Needs:
        skeleton = ObjectName(f"{name.rpartition('/')[0]}/{facts.skeleton}")
        lost = tuple(self._lacks(name, facts.digests))
        return Needs(skeleton=skeleton, segments=facts.segments, inline=facts.inline, lost=lost)

    def needs(self, manifest: ObjectName) -> Needs:
        """What a manifest names; one that was written since the listing is read now.

        Raises:
            Damaged: the manifest or its skeleton is damaged, or the two contradict each other.
        """
        needs = self._known(manifest, self._needs)
        skeleton = self._known(needs.skeleton, self._skeletons)
        if (needs.segments, needs.inline) != (skeleton.segments, skeleton.inline):
            raise Corrupt(f"{manifest} and its skeleton {needs.skeleton.leaf} contradict each other")
        return needs

    def _known(self, name: ObjectName, kind: Mapping[ObjectName, T]) -> T:
        if name not in kind and name not in self.damaged:
            self._take(name)
        if name in self.damaged:
            raise self.damaged[name]
        if name not in kind:
            raise Missing(f"{name} is not there, and a checkpoint needs it")
        return kind[name]


def check_tree(store: Store, name: ObjectName) -> SkeletonFacts | ManifestFacts:
    """What a tree object says; every bit of it is covered.

    Raises:
        ObjectMissing: no such object.
        Corrupt: it does not match its name, or is malformed.
        UnknownFormat: written by a newer holdfast.
        Unreadable: the storage cannot give it.
    """
    data, digest = read_bytes(store.storage, name), Digest.parse(name.leaf)
    if Digest.of(data) == digest:
        return _skeleton_facts(decode_skeleton(name, data, digest))
    head, base = decode_head(name, data, digest)
    _check_pages(name, head, len(data) - base)
    for page in (head.values, *head.own):
        _check_json(name, bytes(page_bytes(name, data, base, page)))
    page_bytes(name, data, base, head.inline)
    digests = _digests(b"".join(page_bytes(name, data, base, page) for page in head.pages))
    skeleton = Digest(head.skeleton)
    return ManifestFacts(skeleton=skeleton, inline=head.inline.length, segments=head.counts(), digests=digests)


def _check_json(name: ObjectName, page: bytes) -> None:
    try:
        json.loads(page)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{name}: its values are malformed: {error}") from error


def _skeleton_facts(skeleton: Skeleton) -> SkeletonFacts:
    return SkeletonFacts(
        segments=counts(skeleton),
        inline=sum(spec.nbytes for spec in skeleton.tensors if spec.inline),
    )


def _check_pages(name: ObjectName, head: Head, length: int) -> None:
    """Bytes that no page covers could change unseen."""
    end = 0
    for page in head.all_pages:
        end = _end_after(name, page, end)
    if end != length:
        raise Corrupt(f"{name} has {length - end} bytes more or less than its pages; it was cut or appended to")


def _end_after(name: ObjectName, page: Page, end: int) -> int:
    if page.offset != end:
        raise Corrupt(f"{name}: its pages overlap or leave gaps")
    return page.offset + page.length


def _digests(raw: bytes) -> tuple[Digest, ...]:
    return tuple(Digest(raw[at : at + 32]) for at in range(0, len(raw), 32))
