"""How the bytes of a segment are stored: as they are, or compressed where that pays.

The codec is asked for once per launch and falls back to `Codec.RAW` segment by
segment: random-looking bytes (most trained weights) are given up on after a
sample. Decoding never allocates more than the length that the footer declares.

Example:
    >>> codec, stored = encode(Codec.ZSTD, bytes(100_000))
    >>> codec, len(stored) < 1000, bytes(decode(codec, stored, 100_000)) == bytes(100_000)
    (<Codec.ZSTD: 'zstd'>, True, True)
"""

from __future__ import annotations

import threading
from enum import StrEnum

import zstandard

from holdfast.errors import Corrupt
from holdfast.ids import Buffer

LEVEL = 1
"""Of zstd: higher ones gain little on tensors and cost several times as much."""

_SAMPLE = 64 * 1024
_WORTH = 16
"""A sixteenth must be saved, or reading back costs more than the bytes are worth."""


class Codec(StrEnum):
    """How segments are stored."""

    RAW = "raw"
    ZSTD = "zstd"


class _Contexts(threading.local):
    """zstd contexts are costly to make and not thread-safe."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def encode(codec: Codec, data: Buffer, dtype: str = "uint8") -> tuple[Codec, Buffer]:
    """The stored form of ``data`` and the codec really used; `Codec.RAW` gives ``data`` itself. Thread-safe."""
    view = memoryview(data)
    if codec is Codec.RAW or not _promising(view):
        return Codec.RAW, data
    stored = _contexts.compressor.compress(view)
    return (Codec.ZSTD, stored) if _worth(len(stored), view.nbytes) else (Codec.RAW, data)


def decode(codec: Codec, stored: Buffer, length: int) -> Buffer:
    """The raw bytes, exactly ``length`` of them; `Codec.RAW` gives ``stored`` itself. Thread-safe.

    Raises:
        Corrupt: ``stored`` is no encoding of exactly ``length`` bytes; found before more are allocated.
    """
    size = memoryview(stored).nbytes
    if codec is Codec.RAW:
        if size != length:
            raise Corrupt(f"{size} raw bytes are stored where {length} are declared")
        return stored
    try:
        return _decompressed(stored, length)
    except zstandard.ZstdError as error:
        raise Corrupt(f"its zstd frame is malformed: {error}") from error


def _decompressed(stored: Buffer, length: int) -> bytes:
    declared = zstandard.frame_content_size(stored)
    if declared != length:
        # The decompressor would allocate whatever the frame claims.
        raise Corrupt(f"its zstd frame claims {declared} bytes where {length} are declared")
    raw: bytes = _contexts.decompressor.decompress(stored, max_output_size=length, allow_extra_data=False)
    if len(raw) != length:
        raise Corrupt(f"its zstd frame has {len(raw)} bytes where {length} are declared")
    return raw


def _promising(view: memoryview) -> bool:
    if view.nbytes <= 4 * _SAMPLE:
        return True
    middle = view.nbytes // 2
    return _worth(len(_contexts.compressor.compress(view[middle : middle + _SAMPLE])), _SAMPLE)


def _worth(stored: int, raw: int) -> bool:
    return stored <= raw - max(1, raw // _WORTH)
