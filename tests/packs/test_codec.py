from __future__ import annotations

import tracemalloc

import pytest
import zstandard

from holdfast.errors import Corrupt
from holdfast.packs.codec import Codec, decode, encode


@pytest.mark.parametrize("size", [1, 100, 65_536, 300_000, 8 << 20])
@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("fill", [lambda rng, n: bytes(n), lambda rng, n: rng.randbytes(n), lambda rng, n: b"ab" * n])
def test_what_is_encoded_decodes_to_the_same_bytes(codec, size, fill, rng):
    raw = fill(rng, size)
    used, stored = encode(codec, raw)
    assert bytes(decode(used, stored, len(raw))) == raw
    assert len(stored) <= len(raw)


def test_zeros_shrink():
    used, stored = encode(Codec.ZSTD, bytes(1 << 20))
    assert used is Codec.ZSTD
    assert len(stored) < 1000


@pytest.mark.parametrize("size", [1, 50, 5000, 1 << 20])
def test_random_bytes_are_given_up_on(size, rng):
    raw = rng.randbytes(size)
    used, stored = encode(Codec.ZSTD, raw)
    assert used is Codec.RAW
    assert stored is raw


def test_a_long_random_segment_is_given_up_on_after_a_sample(rng):
    raw = bytearray(rng.randbytes(8 << 20))
    raw[: 3 << 20] = bytes(3 << 20)
    assert encode(Codec.ZSTD, raw)[0] is Codec.RAW, "its random middle should have decided"


def test_a_frame_that_claims_more_than_declared_is_refused_before_memory_is_taken():
    """hazards 49: a decompression bomb costs nothing."""
    bomb = zstandard.ZstdCompressor().compress(bytes(256 << 20))
    tracemalloc.start()
    with pytest.raises(Corrupt, match="claims 268435456 bytes"):
        decode(Codec.ZSTD, bomb, 8 << 20)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_frame_without_stated_size_cannot_be_a_bomb_either():
    """hazards 49."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    bomb = compressor.compress(bytes(64 << 20)) + compressor.flush()
    with pytest.raises(Corrupt):
        decode(Codec.ZSTD, bomb, 1000)


@pytest.mark.parametrize("length", [999, 1001])
@pytest.mark.parametrize("codec", Codec)
def test_another_length_than_declared_is_corrupt(codec, length):
    used, stored = (codec, bytes(1000)) if codec is Codec.RAW else encode(codec, bytes(1000))
    with pytest.raises(Corrupt):
        decode(used, stored, length)


@pytest.mark.parametrize("damage", [lambda s: s[:-1], lambda s: s + b"x", lambda s: b"\0" * len(s), lambda s: b""])
def test_a_damaged_frame_is_corrupt(damage):
    _, stored = encode(Codec.ZSTD, b"abcd" * 10_000)
    with pytest.raises(Corrupt):
        decode(Codec.ZSTD, damage(bytes(stored)), 40_000)
