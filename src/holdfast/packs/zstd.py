"""Segments as zstd frames, for whatever repeats itself."""

from __future__ import annotations

import threading

import zstandard

from holdfast.errors import Corrupt
from holdfast.ids import Buffer

LEVEL = 1
"""Higher ones gain little on tensors and cost several times as much."""


class _Contexts(threading.local):
    """zstd contexts are costly to make and not thread-safe."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(data: Buffer) -> bytes:
    """One frame that states its content size. Thread-safe; releases the GIL."""
    return _contexts.compressor.compress(data)


def decompress(stored: Buffer, length: int) -> bytes:
    """The content of one frame, exactly ``length`` bytes. Thread-safe; releases the GIL.

    Raises:
        Corrupt: malformed, or of another length; found before more is allocated.
    """
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
