from __future__ import annotations

import struct

import msgspec
import pytest
from packs_kit import FOLDER, Heap, write

from holdfast.errors import Corrupt, UnknownFormat
from holdfast.ids import Digest, ObjectName
from holdfast.packs.codec import Codec
from holdfast.packs.footer import Entry, FooterBuilder, decode_footer
from holdfast.packs.format import (
    BLOCK,
    CHECK_BYTES,
    HEADER_BYTES,
    MAGIC,
    TRAILER_BYTES,
    Tail,
    alignment,
    decode_trailer,
    encode_header,
    encode_trailer,
    pack_id,
    pack_name,
    tail_bytes,
)
from holdfast.packs.index import read_footer

ID = bytes(range(16))
NAME = pack_name(FOLDER, ID)


def entry(offset, stored, *, length=None, codec=Codec.RAW):
    return Entry(Digest.of(bytes([offset % 251])), offset, stored, length or stored, codec, bytes(CHECK_BYTES))


def footed(*entries, end):
    """The footer of made-up entries, through its bytes."""
    builder = FooterBuilder(ID)
    for one in entries:
        builder.add(one)
    footer, data = builder.finish(NAME, end)
    tail = decode_trailer(NAME, data[-TRAILER_BYTES:], footer.size)
    return decode_footer(NAME, data[: tail.length], tail, footer.size)


def test_a_pack_can_be_read_by_its_description_alone():
    """The format as the docstring states it, decoded with nothing but struct and msgpack."""
    heap = Heap()
    segments = [b"a" * 70_000, b"b" * 3000, b"c" * 3000]
    written = write(heap, segments, threads=1)
    (pack,) = written.packs
    data = bytes(heap.objects[pack.name])
    assert len(data) % 4096 == 0
    magic, version, id_ = struct.unpack("<16sI12x16s16x", data[:64])
    assert (magic, version, f"{id_.hex()}.pack") == (b"holdfast pack\r\n\n", 1, pack.name.leaf)
    offset, length, digest, version, check, magic = struct.unpack("<QQ32sI12x16s16s", data[-96:])
    assert (version, magic) == (1, b"holdfast pack\r\n\n")
    assert check == Digest.of(data[-96:-32])[:16]
    assert offset % 4096 == 0
    footer = data[offset : offset + length]
    assert Digest.of(footer) == digest
    columns = msgspec.msgpack.decode(footer)
    assert list(columns) == ["id", "digests", "offsets", "stored", "lengths", "codecs", "checks"]
    assert columns["id"] == id_
    for row, raw in enumerate(segments):
        (at,) = struct.unpack_from("<Q", columns["offsets"], 8 * row)
        (stored,) = struct.unpack_from("<I", columns["stored"], 4 * row)
        assert data[at : at + stored] == raw
        assert columns["digests"][32 * row : 32 * row + 32] == Digest.of(raw)
        assert columns["checks"][16 * row : 16 * row + 16] == Digest.of(raw)[:16]
        assert at % (4096 if stored >= 65_536 else 64) == 0
    assert columns["codecs"] == b"\0\0\0"


def test_both_ends_have_the_stated_lengths():
    assert len(encode_header(ID)) == HEADER_BYTES == 64
    assert len(encode_trailer(Tail(0, 0, Digest.of(b"")))) == TRAILER_BYTES == 96


def test_long_segments_are_aligned_for_direct_io_and_short_ones_to_a_cache_line():
    """hazards 41."""
    assert [alignment(size) for size in (1, 65_535, 65_536, 8 << 20)] == [64, 64, 4096, 4096]


@pytest.mark.parametrize("segments", [0, 1, 50, 100, 5000])
def test_the_room_kept_for_the_end_is_enough(segments):
    builder = FooterBuilder(ID)
    for number in range(segments):
        builder.add(entry(BLOCK + 64 * number, 64))
    assert len(builder.finish(NAME, 0)[1]) <= tail_bytes(segments)


def test_a_footer_of_100000_segments_round_trips():
    entries = [entry(BLOCK + 64 * number, 1 + number % 64) for number in range(100_000)]
    footer = footed(*entries, end=BLOCK + 64 * 100_000 - 64 * 100_000 % BLOCK + BLOCK)
    assert len(footer) == 100_000
    assert list(footer)[::997] == entries[::997]
    assert footer[-1] == entries[-1]
    assert list(footer.digests()) == [bytes(one.digest) for one in entries]


@pytest.mark.parametrize(
    ("why", "entries", "end"),
    [
        ("not aligned", [entry(BLOCK + 32, 10)], 2 * BLOCK),
        ("not aligned", [entry(BLOCK, 10), entry(BLOCK + 64, 65_536)], 18 * BLOCK),
        ("overlap", [entry(BLOCK, 100), entry(BLOCK + 64, 100)], 2 * BLOCK),
        ("overlap", [entry(BLOCK + 128, 10), entry(BLOCK, 10)], 2 * BLOCK),
        ("overlap", [entry(0, 10)], BLOCK),
        ("overlap", [entry(BLOCK, 5000)], 2 * BLOCK),
        ("gap", [entry(2 * BLOCK, 10)], 3 * BLOCK),
        ("gap", [entry(BLOCK, 10)], 3 * BLOCK),
        ("length", [entry(BLOCK, 0, length=10)], BLOCK),
        ("length", [entry(BLOCK, 100, length=99)], 2 * BLOCK),
        ("length", [entry(BLOCK, 100, length=(8 << 20) + 1)], 2 * BLOCK),
    ],
)
def test_a_footer_with_right_digest_but_impossible_content_is_corrupt(why, entries, end):
    """hazards 49: what a footer declares is bounded before anything is allocated for it."""
    with pytest.raises(Corrupt, match=why):
        footed(*entries, end=end)


def test_columns_of_different_lengths_are_corrupt():
    body = msgspec.msgpack.encode(
        {"id": ID, "digests": bytes(32), "offsets": b"", "stored": b"", "lengths": b"", "codecs": b"", "checks": b""}
    )
    with pytest.raises(Corrupt, match="columns"):
        decode_footer(NAME, body, Tail(0, len(body), Digest.of(body)), BLOCK)


def test_a_footer_with_a_field_more_is_corrupt():
    columns = dict.fromkeys(("digests", "offsets", "stored", "lengths", "codecs", "checks"), b"")
    body = msgspec.msgpack.encode(columns | {"id": ID, "more": 1})
    with pytest.raises(Corrupt, match="malformed"):
        decode_footer(NAME, body, Tail(0, len(body), Digest.of(body)), BLOCK)


def test_an_unknown_codec_asks_for_an_upgrade():
    columns = {"id": ID, "digests": bytes(32), "codecs": b"\x07", "checks": bytes(16)}
    columns |= {"offsets": (4096).to_bytes(8, "little"), "stored": b"\1\0\0\0", "lengths": b"\1\0\0\0"}
    body = msgspec.msgpack.encode(columns)
    with pytest.raises(UnknownFormat, match="upgrade"):
        decode_footer(NAME, body, Tail(8192, len(body), Digest.of(body)), 3 * BLOCK)


def test_a_pack_of_a_later_version_asks_for_an_upgrade():
    heap = Heap()
    (pack,) = write(heap, [b"abc"]).packs
    data = heap.objects[pack.name]
    offset, length, digest = struct.unpack("<QQ32s", data[-96:-48])
    data[-96:] = encode_trailer(Tail(offset, length, Digest(digest)), version=2)
    with pytest.raises(UnknownFormat, match="format 2"):
        read_footer(heap, pack.name)


@pytest.mark.parametrize("leaf", ["abc.pack", "0" * 32, "g" * 32 + ".pack", "0" * 32 + ".pack.old"])
def test_other_names_are_no_packs(leaf):
    with pytest.raises(Corrupt, match="name of a pack"):
        pack_id(ObjectName(FOLDER + leaf))


def test_the_magic_shows_a_transfer_in_text_mode():
    assert MAGIC.endswith(b"\r\n\n")
    assert len(MAGIC) == 16
