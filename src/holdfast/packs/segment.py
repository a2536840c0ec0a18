"""What is handed over to be stored: the bytes of one segment, and what is known about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from holdfast.boxes import SEGMENT_BYTES
from holdfast.errors import InvalidInput
from holdfast.packs.buffers import address, flat
from holdfast.packs.format import ALIGNED_FROM, BLOCK, aligned


class Segment(NamedTuple):
    """One piece of a tensor, or any bytes.

    Example:
        >>> Segment(memoryview(b"weights"), "bfloat16").padded is None
        True
    """

    data: memoryview
    """The raw bytes, 1 byte to 8 MiB of contiguous memory."""
    dtype: str = "uint8"
    """The name that torch gives the elements, without ``torch.``: a hint for codecs, never a condition."""
    padded: memoryview | None = None
    """The same memory up to a whole number of 4096-byte blocks, with zeros behind ``data``.

    Who gives it promises that it begins on a 4096-byte boundary and does not change before the call returns;
    it is hashed and written where it lies, if it is `ALIGNED_FROM` bytes long or longer, and never written to.
    """


class Numbered(NamedTuple):
    """A checked segment: flat, and with ``block`` only where it shall be written from where it lies."""

    number: int
    data: memoryview
    dtype: str
    block: memoryview | None
    place: int = 0
    """The address of ``block``."""


def numbered(segments: Iterable[Segment | memoryview]) -> Iterator[Numbered]:
    """Number and check segments; bare memory is a segment of ``uint8``.

    Raises:
        InvalidInput: one is empty, too long or not contiguous, or its padding is not what was promised.
    """
    for number, segment in enumerate(segments):
        given, dtype, padded = segment if isinstance(segment, Segment) else Segment(segment)
        data = flat(given)
        if not 0 < data.nbytes <= SEGMENT_BYTES:
            raise InvalidInput(f"segment {number} has {data.nbytes} bytes; 1 to {SEGMENT_BYTES} are wanted")
        if padded is None or data.nbytes < ALIGNED_FROM:
            yield Numbered(number, data, dtype, None)
        else:
            yield Numbered(number, data, dtype, flat(padded), _checked(number, data, flat(padded)))


def _checked(number: int, data: memoryview, padded: memoryview) -> int:
    """The address of ``padded``."""
    # Wrong padding would be found by `verify` only, as a damaged pack.
    place, length = address(padded), aligned(data.nbytes, BLOCK)
    if place % BLOCK or place != address(data) or padded.nbytes != length:
        raise InvalidInput(
            f"segment {number}: its padded memory must be the same {data.nbytes} bytes on a {BLOCK}-byte boundary, "
            f"continued to {length} bytes; it has {padded.nbytes} at {place:#x}"
        )
    if padded[data.nbytes :] != bytes(length - data.nbytes):
        raise InvalidInput(f"segment {number}: behind its {data.nbytes} bytes there must be zeros up to a whole block")
    return place
