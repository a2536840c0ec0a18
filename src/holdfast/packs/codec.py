"""How the bytes of a segment are stored: as they are, or compressed where that pays.

The codec is asked for once per launch. What it makes of a segment is decided segment by segment, on a sample: floating-
point numbers that do not shrink (fractions of trained weights look random) stay as they are, and what is no number
or repeats itself is left to zstd. Decoding never allocates more than the length that the footer declares for content.

Example:
    >>> codec, stored = encode(Codec.ZSTD, bytes(100_000))
    >>> codec, len(stored) < 1000, bytes(decode(codec, stored, 100_000)) == bytes(100_000)
    (<Codec.ZSTD: 'zstd'>, True, True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from holdfast.errors import Corrupt, InvalidInput
from holdfast.ids import Buffer
from holdfast.packs import floats, zstd
from holdfast.packs.buffers import copy, flat

_SAMPLE = 64 * 1024
_PIECES = 4
"""A sample is taken in so many places, or a matrix with empty rows would be judged by one of them."""
_WORTH = 16
"""A sixteenth must be saved, or reading back costs more than the bytes are worth."""
_BETTER = 32
"""A way that is tried after another one must save so much of the bytes more: the ways get slower."""


class Codec(StrEnum):
    """How segments are stored."""

    RAW = "raw"
    ZSTD = "zstd"
    OPENZL = "openzl"
    """For floating-point numbers; what is none of these is left to zstd."""


def check_available(codec: Codec) -> None:
    """Make sure that a codec can be used here; for whoever is about to write with it, before anything is written.

    Raises:
        InvalidInput: the package that it needs is not installed.
    """
    if codec is Codec.OPENZL and not floats.available():
        raise InvalidInput(
            f"codec='openzl' needs a package that is not installed here: {floats.INSTALL}, or choose 'zstd' or 'raw' "
            "(there are no wheels of openzl for Linux on ARM)"
        )


def encode(codec: Codec, data: Buffer, dtype: str = "uint8") -> tuple[Codec, Buffer]:
    """The stored form of ``data`` and the codec really used; `Codec.RAW` gives ``data`` itself. Thread-safe.

    Args:
        codec: the one that was asked for.
        data: 1 byte to 8 MiB.
        dtype: torch's name of the elements' type, a hint.
    """
    way = _way(codec, memoryview(data), dtype)
    if way is not None:
        stored = way.compress(data)
        if _worth(len(stored), memoryview(data).nbytes):
            return way.codec, stored
    return Codec.RAW, data


def expected(codec: Codec, sample: Buffer, length: int, dtype: str = "uint8") -> tuple[Codec, float]:
    """What `encode` would probably make of a segment of ``length`` bytes: the codec, and stored by raw bytes.

    Args:
        codec: the one that was asked for.
        sample: the bytes at `sample_places`, joined.
        length: of the whole segment.
        dtype: torch's name of the elements' type, a hint.
    """
    tried = _best(_ways(codec, dtype, length), memoryview(sample))
    return (tried.way.codec, tried.ratio) if tried else (Codec.RAW, 1.0)


def sample_places(length: int) -> list[slice]:
    """Where the sample of a segment of ``length`` bytes is taken; all of it, if it is short."""
    if length <= _SAMPLE:
        return [slice(0, length)]
    piece = _SAMPLE // _PIECES
    step = (length - piece) // (_PIECES - 1) // 64 * 64  # whole elements of any type
    return [slice(at * step, at * step + piece) for at in range(_PIECES)]


def decode(codec: Codec, stored: Buffer, length: int) -> Buffer:
    """The raw bytes, exactly ``length`` of them; `Codec.RAW` gives ``stored`` itself. Thread-safe.

    Raises:
        Corrupt: ``stored`` is no encoding of exactly ``length`` bytes; found before more are allocated.
        CodecUnavailable: the package that it needs is not installed.
    """
    if codec is Codec.RAW:
        return _raw(stored, length)
    if codec is Codec.ZSTD:
        return zstd.decompress(stored, length)
    content = bytearray(length)
    floats.decompress(stored, memoryview(content))
    return content


def decode_into(codec: Codec, stored: memoryview, target: memoryview) -> None:
    """Fill ``target`` with the raw bytes; as `decode`, with one copy less where the codec allows."""
    if codec is Codec.OPENZL:
        floats.decompress(stored, target)
    else:
        copy(target, flat(memoryview(decode(codec, stored, target.nbytes))))


def _raw(stored: Buffer, length: int) -> Buffer:
    size = memoryview(stored).nbytes
    if size != length:
        raise Corrupt(f"{size} raw bytes are stored where {length} are declared")
    return stored


class _Way(NamedTuple):
    """One way to compress."""

    codec: Codec
    compress: Callable[[Buffer], bytes]


class _Tried(NamedTuple):
    way: _Way
    ratio: float
    """Stored by raw bytes of the sample."""


_ZSTD = _Way(Codec.ZSTD, zstd.compress)
_FLOATS = {graph: _Way(Codec.OPENZL, partial(floats.compress, graph)) for graph in floats.Graph}


def _way(codec: Codec, view: memoryview, dtype: str) -> _Way | None:
    """How to compress a segment, if it seems to be worth it."""
    if codec is Codec.RAW:
        return None
    sample = b"".join([view[place] for place in sample_places(view.nbytes)])
    tried = _best(_ways(codec, dtype, view.nbytes), memoryview(sample))
    return tried.way if tried else None


def _best(ways: Iterable[_Way], sample: memoryview) -> _Tried | None:
    best: _Tried | None = None
    for way in ways:
        ratio = len(way.compress(sample)) / sample.nbytes
        if ratio <= (best.ratio - 1 / _BETTER if best else 1 - 1 / _WORTH):
            best = _Tried(way, ratio)
    return best


def _ways(codec: Codec, dtype: str, length: int) -> Iterator[_Way]:
    """What is worth trying, the quickest first."""
    if codec is Codec.OPENZL:
        yield from (_FLOATS[graph] for graph in floats.GRAPHS.get(dtype, ()) if not length % graph.width)
    if codec is not Codec.RAW:
        yield _ZSTD


def _worth(stored: int, raw: int) -> bool:
    return stored <= raw - max(1, raw // _WORTH)
