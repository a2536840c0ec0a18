"""From the parts of all ranks to one manifest: who has what, and that together they have everything exactly once.

What parts say of the structure is the same from save to save, so it is merged
and checked once, and remembered; of the payload nothing but the digests of all
parts is laid one behind the other. With thousands of parts an object for each
box would be gigabytes, so boxes stay packed, and only lists of boxes that
differ become objects: with fully sharded data parallelism as many as there are
different shapes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import msgspec

from holdfast.boxes import Box, cut_count, uncovered, whole
from holdfast.catalog.parts import Part
from holdfast.errors import SaveFailed
from holdfast.ids import Digest
from holdfast.saver.merging_inline import InlineForm, differing, join_inline
from holdfast.trees import Manifest, Skeleton, Spread, TensorSpec, item_bytes

_NUMBER = 8
"""Bytes of an offset or a size."""


def pack_boxes(specs: Sequence[TensorSpec]) -> tuple[bytes, bytes]:
    """How many boxes each tensor has, and all of them, as a `Part` has them."""
    boxes = [box for spec in specs for box in spec.boxes]
    counts = array("H", [len(spec.boxes) for spec in specs])
    return counts.tobytes(), array("q", [n for box in boxes for n in (*box.offsets, *box.sizes)]).tobytes()


def without_boxes(skeleton: Skeleton) -> Skeleton:
    """What most ranks have in common."""
    return Skeleton(tuple(msgspec.structs.replace(spec, spread=None) for spec in skeleton.tensors))


class Stretch(NamedTuple):
    """Digests of a part, by position."""

    part: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Joint:
    """The structure of all parts together."""

    skeleton: Skeleton
    digest: Digest
    twins: list[tuple[str, list[Stretch]]]
    """Boxes that several parts have, for nobody knew that the others would: they must be equal, and one is kept."""
    inline: list[InlineForm]
    """Per part, what is in its page of small tensors."""
    order: list[list[Stretch] | None]
    """Per part, which of its digests are kept, in their order; None: all of them as they are."""


@dataclass(slots=True)
class Merging:
    """Merges the parts of one save after the other. Not thread-safe."""

    _said: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)
    _joint: Joint | None = None

    def merge(self, parts: Sequence[Part], skeletons: Mapping[bytes, Skeleton], values: bytes) -> Manifest:
        """The manifest of a checkpoint.

        Args:
            parts: of all ranks, in order.
            skeletons: by digest, those that the parts name.
            values: of all ranks together.

        Raises:
            SaveFailed: two parts contradict each other, or a tensor is not covered exactly once.
        """
        joint = self._join(parts, skeletons)
        _compare_twins(joint, parts)
        digests = [_ordered(part.digests, order) for part, order in zip(parts, joint.order, strict=True)]
        return Manifest(
            skeleton=joint.skeleton,
            skeleton_digest=joint.digest,
            values=values,
            inline=join_inline(joint.skeleton, joint.inline, [part.inline for part in parts]),
            digests=b"".join(digests),
            own=tuple(part.own for part in parts),
            counts=tuple(len(raw) // 32 for raw in digests),
        )

    def _join(self, parts: Sequence[Part], skeletons: Mapping[bytes, Skeleton]) -> Joint:
        said = [(part.tensors, part.counts, part.boxes) for part in parts]
        if self._joint is None or self._said != said:
            self._joint, self._said = _Joining(parts, skeletons).joint(), said
        return self._joint


def _ordered(digests: bytes, order: Sequence[Stretch] | None) -> bytes:
    if order is None:
        return digests
    return b"".join(digests[32 * one.first : 32 * one.last] for one in order)


def _compare_twins(joint: Joint, parts: Sequence[Part]) -> None:
    """Raises `SaveFailed` where ranks have other bytes under one name, and nothing said that they have the same."""
    for name, stretches in joint.twins:
        found: dict[bytes, list[int]] = {}
        for part, first, last in stretches:
            found.setdefault(parts[part].digests[32 * first : 32 * last], []).append(part)
        if len(found) > 1:
            raise SaveFailed(differing(name, *list(found.values())[:2]))


class _Form(NamedTuple):
    """What many parts have in common: which tensors they have, and with how many boxes each."""

    skeleton: Skeleton
    counts: Sequence[int]
    ends: Sequence[int]
    """Per tensor, where its boxes end in the packed ones."""
    small: Sequence[int]
    """The places of inline tensors."""

    def packed(self, place: int, boxes: bytes) -> bytes:
        """The boxes of one tensor."""
        return boxes[self.ends[place - 1] if place else 0 : self.ends[place]]

    def boxes(self, place: int, boxes: bytes) -> list[Box]:
        """The same, unpacked."""
        ndim = len(self.skeleton.tensors[place].shape)
        return _unpacked(self.packed(place, boxes), ndim) if ndim else [Box((), ())] * self.counts[place]


def _form(part: Part, skeleton: Skeleton) -> _Form:
    counts = array("H", part.counts)
    if len(counts) != len(skeleton.tensors):
        raise SaveFailed(f"the part of rank {part.rank} has {len(counts)} tensors, and its structure another number")
    sizes = (2 * _NUMBER * len(spec.shape) * count for spec, count in zip(skeleton.tensors, counts, strict=True))
    small = tuple(place for place, spec in enumerate(skeleton.tensors) if spec.inline)
    return _Form(skeleton, counts, tuple(accumulate(sizes)), small)


def _unpacked(packed: bytes, ndim: int) -> list[Box]:
    numbers = array("q", packed).tolist()
    begins = range(0, len(numbers), 2 * ndim)
    return [Box(tuple(numbers[at : at + ndim]), tuple(numbers[at + ndim : at + 2 * ndim])) for at in begins]


class _Owned(NamedTuple):
    """The boxes of a tensor, each with the first part that has it."""

    spread: Spread
    several: dict[Box, list[int]]
    """Those that more parts have, too."""


class _Joining:
    """Makes a `Joint`."""

    def __init__(self, parts: Sequence[Part], skeletons: Mapping[bytes, Skeleton]) -> None:
        self._parts, self._forms = parts, _forms(parts, skeletons)
        used = {digest: skeletons[digest] for digest in dict.fromkeys(part.tensors for part in parts)}
        self._places = {d: {spec.name: at for at, spec in enumerate(one.tensors)} for d, one in used.items()}
        self._specs = _union(parts, used)
        self._numbers = {spec.name: number for number, spec in enumerate(self._specs)}
        self._owned: dict[tuple[int, tuple[bytes, ...]], _Owned] = {}
        self._covered: set[tuple[tuple[int, ...], int]] = set()
        self._shared: dict[tuple[int, Box], list[int]] = {}

    def joint(self) -> Joint:
        """The structure, checked."""
        tensors = tuple(self._spread(number, spec) for number, spec in enumerate(self._specs))
        skeleton = Skeleton(tensors, len(self._parts))
        inline: dict[bytes, InlineForm] = {}
        at = self._stretches()
        return Joint(
            skeleton=skeleton,
            digest=Digest.of(skeleton.encode()),
            twins=[
                (self._specs[number].name, [at[part][number, box] for part in parts])
                for (number, box), parts in self._shared.items()
            ],
            inline=[self._inline(number, inline) for number in range(len(self._parts))],
            order=self._orders(at),
        )

    def _spread(self, number: int, spec: TensorSpec) -> TensorSpec:
        """A tensor with the boxes of all parts."""
        if spec.inline:
            return spec
        column = self._column(spec.name)
        key = len(spec.shape), column
        if key not in self._owned:
            self._owned[key] = _owned(column, len(spec.shape))
        spread, several = self._owned[key]
        self._check_covered(spec, spread)
        self._shared.update(((number, box), parts) for box, parts in several.items())
        if spread.boxes == (whole(spec.shape),) and spread.parts == (0,):
            return spec
        return msgspec.structs.replace(spec, spread=spread)

    def _check_covered(self, spec: TensorSpec, spread: Spread) -> None:
        if (spec.shape, id(spread)) in self._covered:
            return
        if problem := uncovered(spec.shape, spread.boxes):
            raise SaveFailed(f"{spec.name} of shape {list(spec.shape)} cannot be put together: {problem}")
        self._covered.add((spec.shape, id(spread)))

    def _column(self, name: str) -> tuple[bytes, ...]:
        """What each part has of a tensor, packed."""
        found = ((self._places[part.tensors].get(name), part, form) for part, form in self._each())
        return tuple(b"" if place is None else form.packed(place, part.boxes) for place, part, form in found)

    def _each(self) -> Iterator[tuple[Part, _Form]]:
        return zip(self._parts, self._forms, strict=True)

    def _inline(self, number: int, known: dict[bytes, InlineForm]) -> InlineForm:
        part, form = self._parts[number], self._forms[number]
        key = part.tensors + part.counts + b"".join(form.packed(place, part.boxes) for place in form.small)
        if key not in known:
            tensors = form.skeleton.tensors
            found = ((tensors[place].name, tuple(form.boxes(place, part.boxes))) for place in form.small)
            known[key] = InlineForm(tuple(found))
        return known[key]

    def _stretches(self) -> dict[int, dict[tuple[int, Box], Stretch]]:
        """Of parts with boxes that others have as well: where the digests of each box are."""
        concerned = {part for parts in self._shared.values() for part in parts}
        return {part: self._stretches_of(part) for part in sorted(concerned)}

    def _stretches_of(self, number: int) -> dict[tuple[int, Box], Stretch]:
        found, at = dict[tuple[int, Box], Stretch](), 0
        part, form = self._parts[number], self._forms[number]
        for place, spec in enumerate(form.skeleton.tensors):
            for box in () if spec.inline else form.boxes(place, part.boxes):
                count = cut_count(box, item_bytes(spec.dtype))
                found[self._numbers[spec.name], box] = Stretch(number, at, at + count)
                at += count
        return found

    def _orders(self, known: Mapping[int, Mapping[tuple[int, Box], Stretch]]) -> list[list[Stretch] | None]:
        alike = len(self._places) == 1
        return [
            None if alike and part not in known else self._order(part, known.get(part) or self._stretches_of(part))
            for part in range(len(self._parts))
        ]

    def _order(self, part: int, stretches: Mapping[tuple[int, Box], Stretch]) -> list[Stretch]:
        """The digests of one part, in the order of all tensors, without those that an earlier part has."""
        kept = ((key[0], one) for key, one in stretches.items() if self._shared.get(key, [part])[0] == part)
        return [one for _, one in sorted(kept)]


def _forms(parts: Sequence[Part], skeletons: Mapping[bytes, Skeleton]) -> list[_Form]:
    known: dict[tuple[bytes, bytes], _Form] = {}
    for part in parts:
        key = part.tensors, part.counts
        if key not in known:
            known[key] = _form(part, skeletons[part.tensors])
        if len(part.boxes) != (known[key].ends[-1] if known[key].ends else 0):
            raise SaveFailed(f"the part of rank {part.rank} does not fit its structure")
    return [known[part.tensors, part.counts] for part in parts]


def _union(parts: Sequence[Part], skeletons: Mapping[bytes, Skeleton]) -> list[TensorSpec]:
    """All tensors, in the order in which parts first name them."""
    found: dict[str, tuple[int, TensorSpec]] = {}
    for digest, skeleton in skeletons.items():
        rank = next(part.rank for part in parts if part.tensors == digest)
        for spec in skeleton.tensors:
            first, other = found.setdefault(spec.name, (rank, spec))
            if spec != other:
                raise SaveFailed(_different(spec, other, rank, first))
    return [spec for _, spec in found.values()]


def _different(spec: TensorSpec, other: TensorSpec, rank: int, first: int) -> str:
    fields = ("dtype", "shape", "lifetime", "dim_order", "aliases")
    odd = next(name for name in fields if getattr(spec, name) != getattr(other, name))
    was, now = (_shown(getattr(one, odd)) for one in (other, spec))
    return (
        f"{spec.name} has another {odd.replace('_', ' ')} on rank {rank} ({now}) than on rank {first} ({was}); if they "
        "are parts of one model, give each rank names of its own with prefix=; if they belong to each rank, wrap their "
        "object in holdfast.per_rank()"
    )


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _owned(column: Sequence[bytes], ndim: int) -> _Owned:
    owners: dict[Box, list[int]] = {}
    for part, packed in enumerate(column):
        for box in _unpacked(packed, ndim):
            owners.setdefault(box, []).append(part)
    spread = Spread(tuple(owners), tuple(parts[0] for parts in owners.values()))
    return _Owned(spread, {box: parts for box, parts in owners.items() if len(parts) > 1 and box.elements})
