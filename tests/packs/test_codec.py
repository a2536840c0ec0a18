from __future__ import annotations

import tracemalloc

import pytest
import zstandard
from packs_kit import CODECS, weights

from holdfast.errors import Corrupt, InvalidInput
from holdfast.packs import floats
from holdfast.packs.codec import (
    Codec,
    check_available,
    decode,
    decode_into,
    encode,
    expected,
    sample_places,
)

MIB = 1 << 20
needs_openzl = pytest.mark.skipif(not floats.available(), reason="no openzl on this platform")


def fill_with(rng, kind, size):
    match kind:
        case "zeros":
            return bytes(size)
        case "random":
            return rng.randbytes(size)
        case "text":
            return (b"ab" * size)[:size]
        case "weights":
            return weights(rng, -(-size // 4))[:size]
        case "half":
            return (bytes(size // 2) + weights(rng, -(-size // 4)))[:size]


@pytest.mark.parametrize("size", [1, 100, 65_536, 65_537, 300_000, MIB + 4, 8 * MIB])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", ["zeros", "random", "text", "weights", "half"])
def test_what_is_encoded_decodes_to_the_same_bytes(codec, size, kind, rng):
    raw = fill_with(rng, kind, size)
    for dtype in ("uint8", "float32", "bfloat16"):
        used, stored = encode(codec, raw, dtype)
        assert bytes(decode(used, stored, len(raw))) == raw
        target = memoryview(bytearray(len(raw)))
        decode_into(used, memoryview(stored), target)
        assert target == raw
        assert len(stored) <= len(raw)


@needs_openzl
@pytest.mark.parametrize("dtype", [*floats.GRAPHS, "int64", "bool", "float4_e2m1fn_x2", "unheard of"])
@pytest.mark.parametrize("size", [1, 7, 4096, 70_001, MIB + 5])
def test_a_wrong_hint_costs_nothing_but_bytes(dtype, size, rng):
    """The dtype is a hint: any bytes come back whatever they are called."""
    raw = weights(rng, -(-size // 4))[:size]
    used, stored = encode(Codec.OPENZL, raw, dtype)
    assert bytes(decode(used, stored, size)) == raw


@needs_openzl
@pytest.mark.parametrize(
    ("dtype", "ratio"), [("float64", 0.95), ("float32", 0.88), ("float16", 0.86), ("bfloat16", 0.72)]
)
def test_trained_numbers_shrink(dtype, ratio, rng):
    raw = weights(rng, MIB, dtype)
    used, stored = encode(Codec.OPENZL, raw, dtype)
    assert used is Codec.OPENZL
    assert len(stored) < ratio * len(raw)
    assert len(stored) < len(encode(Codec.ZSTD, raw, dtype)[1])


@needs_openzl
def test_second_moments_shrink_more_as_they_have_no_sign(rng):
    """Chosen segment by segment, on a sample."""
    raw = bytearray(weights(rng, MIB, "bfloat16"))
    signed = len(encode(Codec.OPENZL, raw, "bfloat16")[1])
    raw[1::2] = bytes(byte & 0x7F for byte in raw[1::2])
    assert len(encode(Codec.OPENZL, raw, "bfloat16")[1]) < signed - len(raw) // 20


@needs_openzl
def test_what_is_no_number_is_left_to_zstd(rng):
    for dtype in ("uint8", "int64", "bool"):
        assert encode(Codec.OPENZL, b"token" * 50_000, dtype)[0] is Codec.ZSTD
        assert encode(Codec.OPENZL, rng.randbytes(250_000), dtype)[0] is Codec.RAW


@needs_openzl
def test_numbers_that_repeat_are_left_to_zstd(rng):
    """The moments of rows that no token has touched are zero: splitting them into lanes would cost bytes."""
    rows = [weights(rng, 256) if number % 10 == 0 else bytes(1024) for number in range(4096)]
    used, stored = encode(Codec.OPENZL, b"".join(rows), "float32")
    assert used is Codec.ZSTD
    assert len(stored) < len(rows) * 1024 // 8


@needs_openzl
def test_numbers_that_are_noise_stay_as_they_are(rng):
    raw = rng.randbytes(MIB)
    for dtype in floats.GRAPHS:
        used, stored = encode(Codec.OPENZL, raw, dtype)
        assert used is Codec.RAW
        assert stored is raw


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", ["zeros", "random", "text", "weights"])
def test_what_is_expected_of_a_sample_is_what_comes(codec, kind, rng):
    raw = fill_with(rng, kind, 2 * MIB)
    sample = b"".join(raw[place] for place in sample_places(len(raw)))
    told, ratio = expected(codec, sample, len(raw), "float32")
    used, stored = encode(codec, raw, "float32")
    assert told is used
    assert abs(ratio - len(stored) / len(raw)) < 0.05


@pytest.mark.parametrize("length", [1, 65_536, 65_537, 100_000, 5 * MIB + 4, 8 * MIB])
def test_a_sample_lies_within_on_whole_elements_and_is_short(length):
    places = sample_places(length)
    assert sum(place.stop - place.start for place in places) == min(length, 65_536)
    assert all(0 <= place.start < place.stop <= length and place.start % 64 == 0 for place in places)


def test_a_codec_that_is_not_installed_is_refused_before_anything_is_written(monkeypatch):
    """With the way out in the message."""
    monkeypatch.setattr(floats, "available", lambda: False)
    with pytest.raises(InvalidInput, match=r"pip install 'holdfast\[openzl\]'"):
        check_available(Codec.OPENZL)
    check_available(Codec.ZSTD)
    check_available(Codec.RAW)


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_that_is_installed_can_be_used(codec):
    check_available(codec)


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
    raw[1 << 20 : 2 << 20] = bytes(1 << 20)
    assert encode(Codec.ZSTD, raw)[0] is Codec.RAW, "none of the places of the sample is empty"


@pytest.mark.parametrize("codec", CODECS)
def test_a_segment_that_is_empty_in_places_is_not_given_up_on(codec, rng):
    raw = bytearray(rng.randbytes(8 << 20))
    raw[: 3 << 20] = bytes(3 << 20)
    assert (encode(codec, raw)[0] is Codec.RAW) == (codec is Codec.RAW)


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
@pytest.mark.parametrize("codec", CODECS)
def test_another_length_than_declared_is_corrupt(codec, length, rng):
    stored = {
        Codec.RAW: lambda raw: raw,
        Codec.ZSTD: lambda raw: encode(Codec.ZSTD, raw)[1],
        Codec.OPENZL: lambda raw: floats.compress(floats.Graph.BYTES, raw),
    }[codec](bytes(1000))
    with pytest.raises(Corrupt):
        decode(codec, stored, length)


@pytest.mark.parametrize("damage", [lambda s: s[:-1], lambda s: s + b"x", lambda s: b"\0" * len(s), lambda s: b""])
def test_a_damaged_frame_is_corrupt(damage):
    _, stored = encode(Codec.ZSTD, b"abcd" * 10_000)
    with pytest.raises(Corrupt):
        decode(Codec.ZSTD, damage(bytes(stored)), 40_000)
