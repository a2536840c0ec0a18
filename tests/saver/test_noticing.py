"""What looks wrong in a state is noticed: from raw bytes, by whoever saves, without torch."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest
import torch
from torch import nn

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.ids import Digest
from holdfast.saver import noticing
from holdfast.saver.jobs import Positions
from holdfast.saver.noticing import (
    Notices,
    describe,
    has_nan,
    identical,
    keys_lost,
    nan_inline,
    noticed,
    tensors_of_segments,
)
from holdfast.state import Snapshot, capture
from holdfast.trees import Manifest, Skeleton

LONG = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SHORT = (
    torch.float16,
    torch.bfloat16,
    torch.complex32,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e8m0fnu,
)
"""Dtypes whose every pattern of bits can be tried."""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def raw(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def manifest_of(snapshot: Snapshot) -> Manifest:
    large = [spec for spec, _ in snapshot.tensors]
    digests = {
        lifetime: [Digest.of(segment.data) for segment in snapshot.segments(lifetime)]
        for lifetime in Positions(large).by_lifetime
    }
    merged = b"".join(Positions(large).merged(digests, {}))
    return Manifest(snapshot.skeleton, Digest.of(b""), b"{}", snapshot.inline, merged)


def looked_at(snapshot: Snapshot) -> Notices:
    """What a save notices while it hashes."""
    large = [spec for spec, _ in snapshot.tensors]
    positions, owners, notices = Positions(large), tensors_of_segments(large), Notices(large)
    for lifetime, places in positions.by_lifetime.items():
        inspect = notices.inspector([owners[place] for place in places])
        for number, segment in enumerate(snapshot.segments(lifetime)):
            inspect(number, segment.data, segment.dtype)
    return notices


def said(parent: Snapshot | None = None, *, trained: bool = False, **tensors: torch.Tensor) -> list[str]:
    state = capture(tensors)
    before = None if parent is None else manifest_of(parent)
    now = manifest_of(state)
    nan = describe("NaN inside", [*looked_at(state).nan_inside, *nan_inline(now)])
    return nan + noticed(now, before, trained=trained)


def test_no_dtype_with_a_nan_is_missing():
    floats = [d for d in vars(torch).values() if isinstance(d, torch.dtype) and (d.is_floating_point or d.is_complex)]
    assert {*SHORT, *LONG} == set(floats) - {torch.float4_e2m1fn_x2}  # that one has no NaN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *LONG, torch.float8_e5m2, torch.float8_e4m3fn])
@pytest.mark.parametrize("at", [0, 777, -1])
def test_one_nan_in_a_tensor_is_found(dtype, at):
    whole = torch.ones(2000, dtype=torch.complex64 if dtype.is_complex else torch.float32)
    broken = whole.clone()
    broken[at] = math.nan
    assert said(t=whole.to(dtype)) == []
    assert said(t=broken.to(dtype), u=whole.to(dtype)) == ["NaN inside: t"]


@pytest.mark.parametrize("dtype", SHORT)
def test_every_pattern_of_bits_is_judged_as_torch_does(dtype):
    width = 1 if dtype.itemsize == 1 else 2
    bits = torch.arange(256 if width == 1 else 65536, dtype=torch.int32).to(torch.uint8 if width == 1 else torch.uint16)
    part = torch.float16 if dtype is torch.complex32 else dtype
    is_nan = bits.view(part).float().isnan()
    assert 0 < is_nan.sum() < len(bits)
    for pattern, expected in zip(bits.tolist(), is_nan.tolist(), strict=True):
        data = pattern.to_bytes(width, "little") * (2 if dtype.is_complex else 1)
        assert has_nan(memoryview(data), name_of(dtype)) is expected, f"{name_of(dtype)} {pattern:#x}"


@pytest.mark.parametrize("dtype", LONG)
def test_every_kind_of_nan_is_found_in_long_floats(dtype):
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    wide = dtype in (torch.float64, torch.complex128)
    width, exponent, sign = (8, 0x7FF << 52, 1 << 63) if wide else (4, 0xFF << 23, 1 << 31)
    low = (1 << (52 if wide else 23)) - 1
    payloads = [1, low, (low + 1) // 2, *(rng.randrange(1, low) for _ in range(200))]  # quiet and signalling ones
    name, zeros = name_of(dtype), bytes(width * 40)
    for payload in payloads:
        for pattern in (exponent | payload, exponent | payload | sign):
            at = rng.randrange(41) * width
            data = zeros[:at] + pattern.to_bytes(width, "little") + zeros[at:] + bytes(width)
            assert has_nan(memoryview(data), name), hex(pattern)
    for pattern in (exponent, exponent | sign, exponent - 1, 1, sign):
        assert not has_nan(memoryview(pattern.to_bytes(width, "little") + zeros + bytes(width)), name), hex(pattern)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([math.inf, -math.inf, 1e30]).repeat(200),
        torch.empty(0),
        torch.empty(3, 0),
        torch.tensor(1.0),
        torch.full((900,), -1, dtype=torch.int64),
        torch.full((900,), 0x7FC0, dtype=torch.int16),
        torch.ones(2000, dtype=torch.bool),
        torch.full((600,), 60000.0, dtype=torch.float16),
        torch.full((2000,), 255, dtype=torch.uint8),
        torch.full((2000,), 255, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    ],
    ids=lambda t: f"{t.dtype} {list(t.shape)}",
)
def test_other_values_are_no_nan(tensor):
    assert said(t=tensor) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float8_e4m3fn])
def test_a_nan_at_the_end_of_a_long_segment_is_found(dtype):
    """Bytes are looked at in small parts."""
    tensor = torch.zeros(200_001).to(dtype)
    assert not has_nan(raw(tensor), name_of(dtype))
    for at in (0, 65_535, 65_536, 131_072, 200_000):
        broken = torch.zeros(200_001)
        broken[at] = math.nan
        assert has_nan(raw(broken.to(dtype)), name_of(dtype)), at


def test_a_nan_in_a_view_is_found():
    base = torch.ones(3000, 40)
    base[2999, 8] = math.nan
    assert said(t=base.t(), v=base[:, :20], w=base[:, 20:]) == ["NaN inside: t, v"]
    assert said(t=torch.tensor(math.nan).expand(3, 3)) == ["NaN inside: t"]


def test_a_nan_in_any_segment_of_a_tensor_is_that_of_the_tensor():
    """Also where lifetimes are mixed, so that segments come in another order than the tensors."""
    frozen, trained = torch.zeros(3, 2**20), nn.Parameter(torch.zeros(5, 2**20))
    frozen[2, 7] = math.nan
    with torch.no_grad():
        trained[4, 2] = math.nan
    model = nn.Module()
    model.first = nn.Parameter(torch.zeros(600))
    model.base = nn.Parameter(frozen, requires_grad=False)
    model.last = trained
    model.more = nn.Parameter(torch.zeros(600), requires_grad=False)
    assert said(model=model) == ["NaN inside: model/base, model/last"]


def test_a_nan_among_small_tensors_is_found():
    """They have no segments: they lie in the manifest, back to back."""
    assert said(a=torch.ones(3), b=torch.tensor([1.0, math.nan]), c=torch.empty(0), d=torch.arange(3)) == [
        "NaN inside: b"
    ]


def test_lost_keys_are_named_in_order():
    parent = capture({name: torch.rand(3) for name in "abcd"}).skeleton
    child = capture({name: torch.rand(3) for name in "dae"}).skeleton
    assert keys_lost(child, parent) == ["b", "c"]
    assert keys_lost(parent, parent) == []


def test_a_tie_that_is_gone_is_no_lost_key():
    shared = torch.rand(300)
    tied, apart = capture({"a": shared, "b": shared}), capture({"a": shared, "b": shared.clone()})
    assert keys_lost(apart.skeleton, tied.skeleton) == []
    assert keys_lost(tied.skeleton, apart.skeleton) == []
    assert keys_lost(Skeleton(()), tied.skeleton) == ["a", "b"]


def test_identical_states_are_noticed():
    def manifest(digests: bytes, inline: bytes) -> Manifest:
        return Manifest(Skeleton(()), Digest.of(b""), b"{}", inline, digests)

    assert identical(manifest(b"1", b"x"), manifest(b"1", b"x"))
    assert not identical(manifest(b"1", b"x"), manifest(b"2", b"x"))
    assert not identical(manifest(b"1", b"x"), manifest(b"1", b"y"))
    assert not identical(manifest(b"", b""), manifest(b"", b""))


def test_what_did_not_change_is_wrong_only_if_steps_were_made():
    tensors = {"t": torch.rand(900), "small": torch.rand(3)}
    parent = capture(tensors)
    assert said(parent, trained=False, **tensors) == []
    (found,) = said(parent, trained=True, **tensors)
    assert "bit-identical" in found
    assert said(parent, trained=True, t=tensors["t"], small=torch.rand(3)) == []
    assert said(parent, trained=True, t=tensors["t"]) == ["keys lost: small"]


def test_a_long_list_is_cut_in_the_record():
    assert describe("NaN inside", [f"t{i}" for i in range(9)]) == ["NaN inside: t0, t1, t2, t3, t4 and 4 more"]


def test_without_numpy_nobody_looks_for_nan_and_all_else_goes_on(monkeypatch):
    monkeypatch.setattr(noticing, "np", None)
    assert said(t=torch.full((900,), math.nan), u=torch.full((2,), math.nan)) == []


def test_looking_needs_no_torch():
    code = "import sys; from holdfast.saver import noticing; assert noticing.np and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def trained(folder, saver, change):
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    model.register_parameter("base", nn.Parameter(torch.ones(4000), requires_grad=False))
    optimizer = torch.optim.SGD([model.weight, model.bias], lr=0.0)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(folder, run="r", state=state, save=every(steps=1), keep=latest(9), saver=saver) as ckpt:
        for step in ckpt.steps(3):
            optimizer.step()
            change(step, model)
    return [record.anomalies for record in holdfast.open(folder).run(1).records()]


@pytest.mark.parametrize("saver", ["inline", "process"])
def test_records_say_what_looked_wrong(tmp_path, saver, caplog):
    """Hazards 36: noticed at the save, whoever makes it; the training goes on."""

    def change(step, model):
        with torch.no_grad():
            if step == 0:
                model.weight.fill_(1.0)
            if step == 2:
                model.weight[5, 5] = math.nan
                model.base[3999] = math.nan

    first, second, third = trained(tmp_path / "s", saver, change)
    assert first == []
    assert second == ["bit-identical to the checkpoint before, although steps were made in between"]
    assert third == ["NaN inside: model/weight, model/base"]
    assert "NaN inside: model/weight, model/base" in caplog.text
