"""The manifest: a skeleton (what the state looks like) and a payload (what it holds).

The *skeleton* lists tensors with dtype, shape, boxes and lifetime; it is equal
from save to save, so it is stored once, under its digest. The *payload* of a
save is: the values page (the tree of plain values as tagged JSON), the inline
page (tensors of at most 1 KiB, back to back), one page for each part with the
values of that rank alone, and pages of segment digests, 32 bytes each, part by
part and within a part in skeleton order. A *head* names the skeleton and the
pages, each with its length and digest; its own digest is what the record
holds. Nothing here says where a segment lies: pack footers do. Source:
docs/format.md, "Manifest".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

from holdfast.boxes import Box, Span, cut_count, cuts, whole
from holdfast.errors import Corrupt, UnknownFormat
from holdfast.ids import Digest

INLINE_BYTES = 1024
"""Tensors up to this size live in the inline page."""

PAGE_SEGMENTS = 4096
"""Digests per payload page."""

T = TypeVar("T")

MAGIC = b"holdfast tree 1\n"

_ITEM_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e4m3fnuz"), 1),
    **dict.fromkeys(("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}


def item_bytes(dtype: str) -> int:
    """Bytes per element of a dtype by its torch name without ``torch.``.

    Raises:
        UnknownFormat: a dtype that this version does not know.
    """
    try:
        return _ITEM_BYTES[dtype]
    except KeyError:
        raise UnknownFormat(f"dtype {dtype!r} is not known to this holdfast; upgrade holdfast") from None


class Lifetime(StrEnum):
    """How long bytes tend to live; packs do not mix them."""

    FROZEN = "frozen"
    """Parameters without gradient: shared between runs."""
    PARAMETER = "parameter"
    """Parameters and buffers."""
    OPTIMIZER = "optimizer"
    """Optimizer state and everything else."""


class Spread(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor is: in boxes, each in one part. Equal ones of several tensors are stored once.

    Within one part boxes are in the order of their segments.
    """

    boxes: tuple[Box, ...]
    parts: tuple[int, ...]
    """Per box, the part (the rank that has written it)."""


class TensorSpec(msgspec.Struct, frozen=True):
    """One tensor of the tree, without its bytes."""

    name: str
    """Path in the tree, parts joined by ``/``."""
    dtype: str
    """torch's name without ``torch.``"""
    shape: tuple[int, ...]
    """Global shape."""
    lifetime: Lifetime
    dim_order: tuple[int, ...] = ()
    """Dimensions from the slowest to the fastest in memory; empty: row-major."""
    aliases: tuple[str, ...] = ()
    """Other paths of the same memory (tied tensors)."""
    spread: Spread | None = None
    """None: one box, the whole tensor, in part 0."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * item_bytes(self.dtype)

    @property
    def held(self) -> int:
        """Bytes in its boxes: all of them, or what one part has."""
        if self.spread is None:
            return self.nbytes
        return sum(box.elements for box in self.spread.boxes) * item_bytes(self.dtype)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Where it is, the whole of it if it is in one piece."""
        return (whole(self.shape),) if self.spread is None else self.spread.boxes

    @property
    def extent(self) -> tuple[int, ...]:
        """The shape of what is in its boxes, one behind the other; flat where they differ in more than rows."""
        if self.spread is None:
            return self.shape
        inner = {box.sizes[1:] for box in self.spread.boxes}
        if len(inner) == 1 and self.shape:
            return (sum(box.sizes[0] for box in self.spread.boxes), *inner.pop())
        return self.shape if len(self.spread.boxes) == 1 else (sum(box.elements for box in self.spread.boxes),)

    @property
    def inline(self) -> bool:
        """Whether it lives in the inline page."""
        return self.nbytes <= INLINE_BYTES


def segments(spec: TensorSpec) -> Iterator[Span]:
    """Where ``spec`` is cut, box by box; spans count in the bytes of its boxes, one behind the other.

    A pure function of dtype, global shape and boxes: see `holdfast.boxes.cuts`.
    """
    if spec.inline:
        return
    item, begin = item_bytes(spec.dtype), 0
    for box in spec.boxes:
        for span in cuts(box, item):
            yield Span(begin + span.start, span.length)
        begin += box.elements * item


def segment_count(spec: TensorSpec) -> int:
    """How many `segments` there are, without making them."""
    if spec.inline:
        return 0
    item = item_bytes(spec.dtype)
    return sum(cut_count(box, item) for box in spec.boxes)


class Skeleton(NamedTuple):
    """The tensors of a state, in the order of their segments within each part."""

    tensors: tuple[TensorSpec, ...]
    parts: int = 1
    """How many parts it was put together from."""

    def encode(self) -> bytes:
        """Canonical bytes: equal skeletons have equal bytes."""
        spreads: dict[Spread, int] = {}
        numbers: dict[int, int | None] = {id(None): None}  # many tensors have the very same list of thousands of boxes
        tensors = []
        for spec in self.tensors:
            if id(spec.spread) not in numbers and spec.spread is not None:
                numbers[id(spec.spread)] = spreads.setdefault(spec.spread, len(spreads))
            tensors.append(_Tensor.of(spec, numbers[id(spec.spread)]))
        return MAGIC + msgspec.msgpack.encode(_Skeleton(tuple(tensors), tuple(spreads), self.parts))


class _Tensor(msgspec.Struct, frozen=True, array_like=True):
    """A `TensorSpec` as it is stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    lifetime: Lifetime
    dim_order: tuple[int, ...]
    aliases: tuple[str, ...]
    spread: int | None
    """Its place in the list."""

    @classmethod
    def of(cls, spec: TensorSpec, spread: int | None) -> _Tensor:
        return cls(spec.name, spec.dtype, spec.shape, spec.lifetime, spec.dim_order, spec.aliases, spread)

    def spec(self, spreads: Sequence[Spread]) -> TensorSpec:
        spread = None if self.spread is None else spreads[self.spread]
        return TensorSpec(self.name, self.dtype, self.shape, self.lifetime, self.dim_order, self.aliases, spread)


class _Skeleton(msgspec.Struct, frozen=True, array_like=True):
    tensors: tuple[_Tensor, ...]
    spreads: tuple[Spread, ...]
    parts: int


class Page(msgspec.Struct, frozen=True, array_like=True):
    """A part of a manifest: where in the object, how long, and its digest."""

    offset: int
    length: int
    digest: bytes


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The first bytes of a manifest; its digest is the manifest's."""

    skeleton: bytes
    values: Page
    inline: Page
    own: tuple[Page, ...]
    """Per part, the values of its rank alone."""
    pages: tuple[Page, ...]
    """Of digests; each part begins with a new one."""
    parts: tuple[int, ...]
    """Per part, how many pages of digests."""

    @property
    def all_pages(self) -> tuple[Page, ...]:
        """In the order in which they lie."""
        return (self.values, self.inline, *self.own, *self.pages)

    def pages_of(self, part: int) -> tuple[Page, ...]:
        """The digests of one part."""
        begin = sum(self.parts[:part])
        return self.pages[begin : begin + self.parts[part]]

    def counts(self) -> tuple[int, ...]:
        """Per part, how many digests."""
        lengths = iter(page.length // 32 for page in self.pages)
        return tuple(sum(islice(lengths, count)) for count in self.parts)


class Manifest(NamedTuple):
    """A manifest, decoded and verified."""

    skeleton: Skeleton
    skeleton_digest: Digest
    values: bytes
    """Tagged JSON."""
    inline: bytes
    digests: bytes
    """32 bytes a segment: part by part, and within a part in skeleton order."""
    own: tuple[bytes, ...] = (b"{}",)
    """Per part, tagged JSON of what belongs to its rank alone."""
    counts: tuple[int, ...] | None = None
    """Per part, how many digests; None: there is one part."""

    @property
    def by_part(self) -> tuple[int, ...]:
        """Digests per part."""
        return (len(self.digests) // 32,) if self.counts is None else self.counts

    def digest(self, place: int) -> Digest:
        """One of the digests, by position."""
        return Digest(self.digests[32 * place : 32 * place + 32])

    def segment_digests(self) -> list[Digest]:
        """The digests of all segments."""
        raw = self.digests
        return [Digest(raw[at : at + 32]) for at in range(0, len(raw), 32)]


def encode_manifest(manifest: Manifest) -> tuple[Digest, bytes]:
    """The digest and the bytes of a manifest object: magic, head length, head, pages."""
    cut = [_cut(part) for part in _parts(manifest)]
    bodies = [manifest.values, manifest.inline, *manifest.own, *(body for part in cut for body in part)]
    pages, offset = [], 0
    for body in bodies:
        pages.append(Page(offset, len(body), bytes(Digest.of(body))))
        offset += len(body)
    values, inline, *others = pages
    own = len(manifest.own)
    counts = tuple(len(part) for part in cut)
    head = msgspec.msgpack.encode(
        Head(bytes(manifest.skeleton_digest), values, inline, tuple(others[:own]), tuple(others[own:]), counts)
    )
    return Digest.of(head), b"".join([MAGIC, len(head).to_bytes(8, "little"), head, *bodies])


def _parts(manifest: Manifest) -> Iterator[bytes]:
    raw, at = manifest.digests, 0
    for count in manifest.by_part:
        yield raw[at : at + 32 * count]
        at += 32 * count


def _cut(part: bytes) -> list[bytes]:
    step = PAGE_SEGMENTS * 32
    return [part[at : at + step] for at in range(0, len(part), step)]


def decode_skeleton(name: str, data: bytes, digest: Digest) -> Skeleton:
    """A skeleton from its bytes.

    Raises:
        Corrupt: the bytes do not match ``digest`` or are malformed.
    """
    if Digest.of(data) != digest:
        raise Corrupt(f"{name} does not match its digest; run 'holdfast verify'")
    found = _decoded(name, data[len(MAGIC) :], _Skeleton)
    for spread in found.spreads:
        if len(spread.boxes) != len(spread.parts) or not all(0 <= part < found.parts for part in spread.parts):
            raise Corrupt(f"{name} is malformed: boxes lie in parts that there are not")
    checked: set[tuple[tuple[int, ...], int | None]] = set()  # many tensors have the same list of thousands of boxes
    for tensor in found.tensors:
        _check_tensor(name, tensor, found.spreads, checked)
    return Skeleton(tuple(tensor.spec(found.spreads) for tensor in found.tensors), found.parts)


def _check_tensor(
    name: str, tensor: _Tensor, spreads: Sequence[Spread], checked: set[tuple[tuple[int, ...], int | None]]
) -> None:
    if any(size < 0 for size in tensor.shape):
        raise Corrupt(f"{name} is malformed: {tensor.name!r} has the shape {tensor.shape}")
    if tensor.dim_order and sorted(tensor.dim_order) != list(range(len(tensor.shape))):
        raise Corrupt(f"{name} is malformed: {tensor.dim_order} is no order of the dimensions of {tensor.name!r}")
    if tensor.spread is None or (tensor.shape, tensor.spread) in checked:
        return
    if not 0 <= tensor.spread < len(spreads):
        raise Corrupt(f"{name} is malformed: {tensor.name!r} lies in boxes that there are not")
    if odd := _outside(tensor.shape, spreads[tensor.spread].boxes):
        raise Corrupt(f"{name} is malformed: {odd} is not inside of {tensor.name!r}, {list(tensor.shape)}")
    checked.add((tensor.shape, tensor.spread))


def _outside(shape: tuple[int, ...], boxes: Sequence[Box]) -> Box | None:
    everything = whole(shape)
    return next((box for box in boxes if box not in everything), None)


def head_end(data: memoryview | bytes) -> int:
    """Where the head of a manifest object ends, as its first bytes say; nobody has checked them yet."""
    start = len(MAGIC) + 8
    return start + int.from_bytes(data[len(MAGIC) : start], "little")


def decode_head(name: str, data: memoryview | bytes, digest: Digest) -> tuple[Head, int]:
    """The head of a manifest object, and where its pages begin.

    Raises:
        Corrupt: truncated, or the head does not match ``digest``.
        UnknownFormat: not the magic of this format.
    """
    start = len(MAGIC) + 8
    if data[: len(MAGIC)] != MAGIC:
        raise UnknownFormat(f"{name} does not begin like a manifest of format 1; it is damaged, or of another version")
    end = head_end(data)
    if end > len(data) or Digest.of(data[start:end]) != digest:
        raise Corrupt(f"{name}: its head does not match its digest; run 'holdfast verify'")
    head = _decoded(name, data[start:end], Head)
    _check_head(name, head)
    return head, end


def _check_head(name: str, head: Head) -> None:
    pages = head.all_pages
    if {len(digest) for digest in (head.skeleton, *(page.digest for page in pages))} != {32}:
        raise Corrupt(f"{name} is malformed: a digest in its head has not 32 bytes")
    if min(min(page.offset, page.length) for page in pages) < 0 or any(page.length % 32 for page in head.pages):
        raise Corrupt(f"{name} is malformed: a page in its head has an impossible place or length")
    if min(head.parts, default=0) < 0 or sum(head.parts) != len(head.pages) or len(head.own) != len(head.parts):
        raise Corrupt(f"{name} is malformed: its pages do not belong to its parts")


def page_bytes(name: str, data: memoryview | bytes, base: int, page: Page) -> memoryview:
    """One page of a manifest object, checked.

    Raises:
        Corrupt: truncated, or the page does not match its digest.
    """
    body = memoryview(data)[base + page.offset : base + page.offset + page.length]
    if len(body) != page.length or Digest.of(body) != page.digest:
        raise Corrupt(f"{name}: a page does not match its digest; run 'holdfast verify'")
    return body


def _decoded(name: str, data: memoryview | bytes, type_: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=type_)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Corrupt(f"{name} is malformed: {error}") from error
