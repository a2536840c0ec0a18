"""The manifest: a skeleton (what the state looks like) and a payload (what it holds).

The *skeleton* lists tensors with dtype, shape, boxes and lifetime; it is equal
from save to save, so it is stored once, under its digest. The *payload* of a
save is: the values page (the tree of plain values as tagged JSON), the inline
page (tensors of at most 1 KiB, back to back), and pages of segment digests, 32
bytes each, in skeleton order. A *head* names the skeleton and the pages, each
with its length and digest; its own digest is what the record holds. Nothing
here says where a segment lies: pack footers do. Source: docs/format.md,
"Manifest".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
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

MAGIC = b"holdfast tree 0\n"

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


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of the tree, without its bytes."""

    name: str
    """Path in the tree, parts joined by ``/``."""
    dtype: str
    """torch's name without ``torch.``"""
    shape: tuple[int, ...]
    """Global shape."""
    lifetime: Lifetime
    boxes: tuple[Box, ...] = ()
    """Empty: one box, the whole tensor."""
    dim_order: tuple[int, ...] = ()
    """Dimensions from the slowest to the fastest in memory; empty: row-major."""
    aliases: tuple[str, ...] = ()
    """Other paths of the same memory (tied tensors)."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * item_bytes(self.dtype)

    @property
    def inline(self) -> bool:
        """Whether it lives in the inline page."""
        return self.nbytes <= INLINE_BYTES


def segments(spec: TensorSpec) -> Iterator[Span]:
    """Where ``spec`` is cut, in its row-major bytes: see `holdfast.boxes.cuts`.

    A pure function of dtype and global shape, so every world size makes the same cuts.
    """
    return iter(()) if spec.inline else cuts(whole(spec.shape), item_bytes(spec.dtype))


def segment_count(spec: TensorSpec) -> int:
    """How many `segments` there are, without making them."""
    return 0 if spec.inline else cut_count(whole(spec.shape), item_bytes(spec.dtype))


class Skeleton(msgspec.Struct, frozen=True, array_like=True):
    """The tensors of a state, in the order of their segments."""

    tensors: tuple[TensorSpec, ...]

    def encode(self) -> bytes:
        """Canonical bytes: equal skeletons have equal bytes."""
        return MAGIC + msgspec.msgpack.encode(self, order="deterministic")


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
    pages: tuple[Page, ...]


class Manifest(NamedTuple):
    """A manifest, decoded and verified."""

    skeleton: Skeleton
    skeleton_digest: Digest
    values: bytes
    """Tagged JSON."""
    inline: bytes
    digests: bytes
    """32 bytes a segment, in skeleton order."""

    def segment_digests(self) -> list[Digest]:
        """The digests of all segments, in skeleton order."""
        raw = self.digests
        return [Digest(raw[at : at + 32]) for at in range(0, len(raw), 32)]


def encode_manifest(manifest: Manifest) -> tuple[Digest, bytes]:
    """The digest and the bytes of a manifest object: magic, head length, head, pages."""
    step = PAGE_SEGMENTS * 32
    bodies = [manifest.values, manifest.inline]
    bodies += [manifest.digests[at : at + step] for at in range(0, len(manifest.digests), step)]
    pages, offset = [], 0
    for body in bodies:
        pages.append(Page(offset, len(body), bytes(Digest.of(body))))
        offset += len(body)
    head = msgspec.msgpack.encode(Head(bytes(manifest.skeleton_digest), pages[0], pages[1], tuple(pages[2:])))
    return Digest.of(head), b"".join([MAGIC, len(head).to_bytes(8, "little"), head, *bodies])


def decode_skeleton(name: str, data: bytes, digest: Digest) -> Skeleton:
    """A skeleton from its bytes.

    Raises:
        Corrupt: the bytes do not match ``digest`` or are malformed.
    """
    if Digest.of(data) != digest:
        raise Corrupt(f"{name} does not match its digest; run 'holdfast verify'")
    skeleton = _decoded(name, data[len(MAGIC) :], Skeleton)
    for spec in skeleton.tensors:
        _check_spec(name, spec)
    return skeleton


def _check_spec(name: str, spec: TensorSpec) -> None:
    if any(size < 0 for size in spec.shape):
        raise Corrupt(f"{name} is malformed: {spec.name!r} has the shape {spec.shape}")
    if spec.dim_order and sorted(spec.dim_order) != list(range(len(spec.shape))):
        raise Corrupt(f"{name} is malformed: {spec.dim_order} is no order of the dimensions of {spec.name!r}")


def decode_head(name: str, data: bytes, digest: Digest) -> tuple[Head, int]:
    """The head of a manifest object, and where its pages begin.

    Raises:
        Corrupt: truncated, or the head does not match ``digest``.
        UnknownFormat: not the magic of this format.
    """
    start = len(MAGIC) + 8
    if data[: len(MAGIC)] != MAGIC:
        raise UnknownFormat(f"{name} does not begin like a manifest of format 0; it is damaged or newer")
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    if end > len(data) or Digest.of(data[start:end]) != digest:
        raise Corrupt(f"{name}: its head does not match its digest; run 'holdfast verify'")
    head = _decoded(name, data[start:end], Head)
    _check_head(name, head)
    return head, end


def _check_head(name: str, head: Head) -> None:
    pages = (head.values, head.inline, *head.pages)
    if {len(digest) for digest in (head.skeleton, *(page.digest for page in pages))} != {32}:
        raise Corrupt(f"{name} is malformed: a digest in its head has not 32 bytes")
    if min(min(page.offset, page.length) for page in pages) < 0 or any(page.length % 32 for page in head.pages):
        raise Corrupt(f"{name} is malformed: a page in its head has an impossible place or length")


def page_bytes(name: str, data: bytes, base: int, page: Page) -> bytes:
    """One page of a manifest object, checked.

    Raises:
        Corrupt: truncated, or the page does not match its digest.
    """
    body = data[base + page.offset : base + page.offset + page.length]
    if len(body) != page.length or Digest.of(body) != page.digest:
        raise Corrupt(f"{name}: a page does not match its digest; run 'holdfast verify'")
    return body


def _decoded(name: str, data: bytes, type_: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=type_)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Corrupt(f"{name} is malformed: {error}") from error
