"""What looks wrong in a state is noticed."""

import math

import pytest
import torch

from holdfast.state import capture, identical, keys_lost, nan_inside
from holdfast.state.anomalies import describe
from holdfast.trees import Skeleton


def pairs(**tensors):
    snapshot = capture(tensors)
    return list(snapshot.tensors) + [(s, tensors[s.name]) for s in snapshot.skeleton.tensors if s.inline]


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", [0, 777, -1])
def test_one_nan_is_found(dtype, at):
    tensor = torch.ones(1000).to(dtype)
    assert nan_inside(pairs(t=tensor)) == []
    raw = tensor.float() if not dtype.is_complex else tensor.clone()
    raw[at] = math.nan
    assert nan_inside(pairs(t=raw.to(dtype), u=tensor)) == ["t"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([math.inf, -math.inf, 1e30]),
        torch.empty(0),
        torch.empty(3, 0),
        torch.tensor(1.0),
        torch.arange(9),
        torch.ones(9, dtype=torch.bool),
        torch.full((600,), 60000.0, dtype=torch.float16),
        torch.full((9,), 255, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    ],
    ids=lambda t: f"{t.dtype} {list(t.shape)}",
)
def test_other_values_are_no_nan(tensor):
    assert nan_inside(pairs(t=tensor)) == []


def test_a_nan_in_a_view_is_found():
    base = torch.ones(3000, 40)
    base[2999, 8] = math.nan
    assert nan_inside(pairs(t=base.t(), v=base[:, :20], w=base[:, 20:])) == ["t", "v"]
    assert nan_inside(pairs(t=torch.tensor(math.nan).expand(3, 3))) == ["t"]


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
    assert identical([b"1"], b"x", [b"1"], b"x")
    assert not identical([b"1"], b"x", [b"2"], b"x")
    assert not identical([b"1"], b"x", [b"1"], b"y")
    assert not identical([], b"", [], b"")


def test_a_long_list_is_cut_in_the_record():
    assert describe("NaN inside", [f"t{i}" for i in range(9)]) == ["NaN inside: t0, t1, t2, t3, t4 and 4 more"]
