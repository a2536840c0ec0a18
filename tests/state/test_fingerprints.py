"""Fingerprints see every change, wherever it is; hazards 15: sums and unkeyed ones miss permutations, or collide."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import xxhash

from holdfast.errors import InvalidInput
from holdfast.state import fingerprints as module
from holdfast.state.fingerprints import FINGERPRINT_BYTES, Fingerprints
from holdfast.trees import _ITEM_BYTES

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

SEED = random.SystemRandom().randrange(1 << 32)
KEY = SEED * 0x9E3779B97F4A7C15 % 2**64

MIB = 1 << 20
LARGE = 36 * MIB + 3
"""Several chunks, and three levels of rows, on a device; several pieces on the CPU."""


@pytest.fixture(autouse=True)
def _seed():
    print(f"seed {SEED}")


@pytest.fixture(params=[False, True], ids=["here", "as on a device"])
def of(request):
    """The fingerprint of one tensor, by XXH3 and by the arithmetic of devices."""
    fingerprints = Fingerprints(KEY)
    return lambda tensor: fingerprints.begin([tensor], by_device=request.param).read()[0]


def noise(count, seed=0):
    raw = bytearray(random.Random(SEED + seed).randbytes(count))
    return torch.frombuffer(raw, dtype=torch.uint8) if count else torch.zeros(0, dtype=torch.uint8)


def typed(dtype, count, seed=0):
    """``count`` items of any bits that the dtype can have."""
    if dtype == "bool":
        return noise(count, seed) % 2 == 1
    return noise(count * _ITEM_BYTES[dtype], seed).view(getattr(torch, dtype))


def flipped(tensor, bit):
    """A copy with one bit changed."""
    raw = tensor.clone().reshape(-1).view(torch.uint8)
    raw[bit // 8] ^= 1 << bit % 8
    return raw.view(tensor.dtype).reshape(tensor.shape)


def test_all_of_them_have_sixteen_bytes_and_equal_content_gives_equal_ones(of):
    tensor = torch.randn(10, 3)
    assert len(of(tensor)) == FINGERPRINT_BYTES
    assert of(tensor) == of(tensor.clone()) == of(torch.nn.Parameter(tensor))


@pytest.mark.parametrize("dtype", sorted(_ITEM_BYTES))
def test_every_bit_of_every_dtype_counts(of, dtype):
    tensor = typed(dtype, 7)
    bits = [8 * byte for byte in range(7)] if dtype == "bool" else range(7 * 8 * _ITEM_BYTES[dtype])
    found = {of(flipped(tensor, bit)) for bit in bits} | {of(tensor)}
    assert len(found) == len(bits) + 1


def test_every_bit_of_a_large_tensor_counts(of):
    tensor = noise(LARGE)
    places = [0, 8 * LARGE - 1, *random.Random(SEED).choices(range(8 * LARGE), k=3)]
    found = {of(flipped(tensor, bit)) for bit in places} | {of(tensor)}
    assert len(found) == len(set(places)) + 1


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 4 * module._ROW - 1, 4 * module._ROW, 4 * module._ROW + 1, 70_001])
def test_the_last_byte_counts_and_so_do_zeros_after_it(of, length):
    tensor = noise(length)
    longer = torch.cat([tensor, torch.zeros(1, dtype=torch.uint8)])
    assert len({of(tensor), of(longer), of(flipped(tensor, 8 * length - 1)), of(tensor[:-1])}) == 4


@pytest.mark.parametrize("count", [2, 4, 64, 10_000])
def test_signs_that_flip_together_are_seen(of, count):
    """The weakness of sums of 64-bit words: changes of the highest bit cancel each other."""
    tensor = torch.randn(20_000, dtype=torch.float32)
    draw = random.Random(SEED + count)
    before = of(tensor)
    for _ in range(20):
        other = tensor.clone()
        other[draw.sample(range(len(tensor)), count)] *= -1
        assert of(other) != before


def moved(rows):
    draw = random.Random(SEED)
    order = list(range(len(rows)))
    draw.shuffle(order)
    return {
        "two rows swapped": rows[[1, 0, *range(2, len(rows))]],
        "rows shuffled": rows[order],
        "columns swapped": rows.flip(1),
        "everything reversed": rows.flip(0, 1),
        "shifted by an item": rows.reshape(-1).roll(1).reshape(rows.shape),
        "shifted by a row": rows.roll(1, 0),
        "transposed": rows.reshape(rows.shape[::-1]).T.contiguous(),
    }


@pytest.mark.parametrize("how", moved(torch.zeros(8, 6)))
@pytest.mark.parametrize("shape", [(8, 6), (16, module._ROW), (3000, 4099)], ids=str)
def test_the_same_items_in_other_places_are_another_tensor(of, how, shape):
    rows = torch.arange(shape[0] * shape[1], dtype=torch.int32).reshape(shape)
    assert of(moved(rows)[how]) != of(rows)


@pytest.mark.parametrize("size", [4 * module._ROW, module._PIECE, 4 * module._CHUNK], ids=["row", "piece", "chunk"])
def test_parts_that_are_worked_on_apart_cannot_be_swapped(of, size):
    first, second = noise(size, 1), noise(size, 2)
    assert of(torch.cat([first, second])) != of(torch.cat([second, first]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3), -torch.zeros(3)),
        (torch.tensor([0x7FC00000], dtype=torch.int32), torch.tensor([0x7FC00001], dtype=torch.int32)),
        (torch.zeros(3, 4), torch.zeros(4, 3)),
        (torch.zeros(3, 4), torch.zeros(12)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
        (torch.zeros(4), torch.zeros(5)),
        (torch.zeros(0), torch.zeros(0, 2)),
        (torch.zeros(()), torch.zeros(1)),
        (torch.tensor(1 + 2j), torch.tensor(2 + 1j)),
    ],
    ids=["negative zero", "NaN payload", "rows", "dimensions", "dtype", "length", "empty", "0-dim", "complex"],
)
def test_what_compares_equal_and_is_not_the_same_differs(of, one, other):
    if one.dtype == torch.int32 and one.numel() == 1:
        one, other = one.view(torch.float32), other.view(torch.float32)
        assert one.isnan().all()
        assert other.isnan().all()
    assert of(one) != of(other)


AWAY = {
    "every second column": lambda: noise(6000).reshape(60, 100)[:, ::2],
    "a slice of rows": lambda: noise(6000).reshape(60, 100)[7:31],
    "bytes from the middle of a word": lambda: noise(6001)[1:],
    "halves from the middle of a word": lambda: noise(6002).view(torch.bfloat16)[1:],
    "expanded": lambda: noise(100).expand(60, 100),
    "conjugated": lambda: typed("complex64", 50).conj(),
    "negated": lambda: typed("complex64", 50).conj().imag,
    "0-dim": lambda: torch.tensor(3.5),
    "a 0-dim part of another": lambda: torch.arange(5.0)[3],
    "empty": lambda: torch.zeros(0, 5),
    "an empty slice": lambda: noise(100)[7:7],
}


@pytest.mark.parametrize("how", AWAY)
def test_the_place_in_memory_does_not_count(of, how):
    tensor = AWAY[how]()
    assert of(tensor) == of(tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format))


def test_dense_tensors_of_another_order_are_known_again(of):
    tensor = noise(12_000).reshape(30, 400).T
    same = torch.empty_like(tensor).copy_(tensor)
    other = same.clone()
    other[2, 3] += 1
    assert of(tensor) == of(same) != of(other)


def test_dense_tensors_are_not_copied():
    for tensor in (
        noise(9),
        noise(12_000).reshape(30, 400).T,
        torch.randn(2, 8, 5, 3).to(memory_format=torch.channels_last),
    ):
        assert module._dense(tensor).data_ptr() == tensor.data_ptr()


def test_images_in_channels_last_are_known_again(of):
    image = torch.randn(2, 8, 5, 3).to(memory_format=torch.channels_last)
    other = image.clone()
    other[1, 3, 2, 1] += 1
    assert of(image) == of(image.clone()) != of(other)


def test_another_key_gives_other_fingerprints(of):
    tensors = [torch.zeros(0), torch.zeros(3), noise(70_001)]
    for by_device in (False, True):
        found = [Fingerprints(key).begin(tensors, by_device=by_device).read() for key in (0, 1, 1 << 63, KEY)]
        assert len({one for some in found for one in some}) == 4 * len(tensors)
    assert Fingerprints().of(tensors) != Fingerprints().of(tensors)


def test_the_same_key_gives_the_same_fingerprints():
    tensors = [noise(70_001), torch.zeros(3)]
    for by_device in (False, True):
        one, other = (Fingerprints(KEY).begin(tensors, by_device=by_device).read() for _ in range(2))
        assert one == other


@pytest.mark.parametrize("key", [-1, 1 << 64])
def test_a_key_has_64_bits(key):
    with pytest.raises(InvalidInput, match="64 bits"):
        Fingerprints(key)


def test_a_key_is_not_drawn_from_the_generators_of_the_training():
    states = [torch.get_rng_state(), random.getstate()]
    Fingerprints().begin([torch.zeros(3)], by_device=True).read()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


@pytest.mark.parametrize("by_device", [False, True])
def test_many_are_told_apart_in_order_and_as_they_were_at_the_beginning(by_device):
    fingerprints = Fingerprints(KEY)
    tensors = [noise(size, size) for size in (1, 100, 9 * MIB, 0, 50_000)]
    alone = [fingerprints.begin([tensor], by_device=by_device).read()[0] for tensor in tensors]
    pending = fingerprints.begin(tensors, by_device=by_device)
    for tensor in tensors:
        tensor.zero_()
    assert pending.read() == alone == pending.read()
    assert len(set(alone)) == 5
    assert fingerprints.begin([], by_device=by_device).read() == []


def test_threads_share_one(of):
    tensors = [noise(300_000, seed) for seed in range(8)]
    alone = [of(tensor) for tensor in tensors]
    fresh = Fingerprints(KEY)
    with ThreadPoolExecutor(4) as pool:
        for by_device in (False, True):
            found = list(pool.map(lambda one, way=by_device: fresh.begin([one], by_device=way).read()[0], tensors))
            assert (found == alone) is (alone[0] == fresh.begin(tensors[:1], by_device=by_device).read()[0])


def by_hand(data, key, said):
    """The arithmetic of devices with Python's whole numbers."""
    row, levels = 4096, 4
    raw = hashlib.shake_256(b"holdfast fingerprints" + key.to_bytes(8, "little")).digest(levels * 2 * row * 8)
    drawn = [int.from_bytes(raw[at : at + 8], "little") | 1 for at in range(0, len(raw), 8)]
    lanes = []
    for lane in range(2):
        content = data + bytes(-len(data) % 4)
        for level in range(levels):
            words = [int.from_bytes(content[at : at + 4], "little", signed=True) for at in range(0, len(content), 4)]
            first = (level * 2 + lane) * row
            rows = [words[at : at + row] for at in range(0, len(words), row)] or [[]]
            sums = [sum(c * x for c, x in zip(drawn[first:], one, strict=False)) % 2**64 for one in rows]
            content = b"".join(one.to_bytes(8, "little") for one in sums)
            if len(sums) == 1:
                break
        lanes.append(content)
    return xxhash.xxh3_128_digest(said + b"".join(lanes), seed=key)


@pytest.mark.parametrize("length", [0, 1, 4, 999, 16_384, 16_385, 200_003])
def test_the_arithmetic_of_devices_is_what_it_says(length):
    """Sums wrap around modulo 2^64, whatever the device makes of overflow."""
    tensor = noise(length)
    expected = by_hand(bytes(tensor.tolist()), KEY, f"torch.uint8 ({length},) () ".encode())
    assert Fingerprints(KEY).begin([tensor], by_device=True).read() == [expected]


@pytest.mark.parametrize("length", [0, 1, 999, module._PIECE, module._PIECE + 1, 3 * module._PIECE])
def test_large_tensors_on_the_cpu_are_keyed_piece_by_piece(length):
    data = noise(length).numpy().tobytes()
    pieces = [data[at : at + 4 * MIB] for at in range(0, length, 4 * MIB)]
    together = b"".join(xxhash.xxh3_128_digest(piece, seed=KEY) for piece in pieces)
    expected = xxhash.xxh3_128_digest(f"torch.uint8 ({length},) () ".encode() + together, seed=KEY)
    assert Fingerprints(KEY).of([noise(length)]) == [expected]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", sorted(_ITEM_BYTES))
def test_a_cuda_device_finds_the_same_as_the_cpu_does_its_way(dtype):
    fingerprints = Fingerprints(KEY)
    tensors = [typed(dtype, count) for count in (0, 1, 7, 70_001)]
    tensors += [typed(dtype, 600).reshape(20, 30).T, typed(dtype, 601)[1:]]
    expected = fingerprints.begin(tensors, by_device=True).read()
    assert fingerprints.of([tensor.cuda() for tensor in tensors]) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_cuda_device_is_not_waited_for_before_it_is_asked_and_little_memory_is_taken():
    fingerprints = Fingerprints(KEY)
    tensor = noise(LARGE).cuda()
    before = fingerprints.of([tensor])
    expected = fingerprints.begin([tensor.cpu()], by_device=True).read()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = fingerprints.begin([tensor] * 20)
        tensor.zero_()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pending.read() == expected * 20 == before * 20
    assert torch.cuda.max_memory_allocated() - start < 40 * 4 * module._CHUNK
