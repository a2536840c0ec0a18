"""The table of tensors: each row is saved, loaded in place and afresh, compared by digest, and stepped on.

Hazards 43.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import return_and_correct_aliasing

from holdfast.errors import (
    Corrupt,
    RestoreFailed,
    StateError,
    StateMismatch,
    UnknownFormat,
    UnsupportedTensor,
    UnsupportedValue,
)
from holdfast.state import capture, restore, tensors
from holdfast.trees import TensorSpec, item_bytes

from .state_roundtrip import digest, save

pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC) tensor support is in beta"),
]


class Holder:
    """Anything with a state_dict: its state is made afresh by a load."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


class TwoTensor(torch.Tensor):
    """A wrapper subclass of two inner tensors."""

    @staticmethod
    def __new__(cls, a, b):
        return torch.Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype, device=a.device)

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __tensor_flatten__(self):
        return ["a", "b"], {"scheme": "pair"}

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return TwoTensor(inner["a"], inner["b"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def each(pick):
            mapped = [pick(arg) if isinstance(arg, TwoTensor) else arg for arg in args]
            return func(*mapped, **(kwargs or {}))

        first, second = each(lambda t: t.a), each(lambda t: t.b)
        out = TwoTensor(first, second) if isinstance(first, torch.Tensor) else first
        return return_and_correct_aliasing(func, args, kwargs or {}, out)


def rand(*shape, dtype=torch.float32, seed=0):
    """Random bits of any dtype."""
    size = math.prod(shape) * item_bytes(tensors.dtype_name(dtype))
    raw = torch.randint(0, 2 if dtype == torch.bool else 120, (size,), dtype=torch.uint8, generator=gen(seed))
    return raw.view(dtype).reshape(shape) if dtype != torch.bool else raw.reshape(shape).bool()


def gen(seed):
    return torch.Generator().manual_seed(seed)


def big(seed, dtype=torch.float32):
    return rand(64, 48, dtype=dtype, seed=seed)


DTYPES = [
    "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64 complex32 complex64",
    "complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2",
]
DTYPES = [getattr(torch, name) for line in DTYPES for name in line.split()]


def sparse(seed, *, coalesced=True):
    if coalesced:
        return torch.eye(40).mul(seed + 1.5).to_sparse()
    return torch.sparse_coo_tensor([[1, 1, 0], [2, 2, 1]], [1.0, 2.0, seed], (9, 9), is_coalesced=False)


def per_channel(seed):
    scales, zeros = torch.rand(64, generator=gen(seed)) + 0.1, torch.arange(64)
    return torch.quantize_per_channel(torch.randn(64, 48, generator=gen(seed)), scales, zeros, 0, torch.qint8)


ROWS = {
    **{f"{tensors.dtype_name(d)}": lambda s, d=d: big(s, d) for d in DTYPES},
    **{f"small {tensors.dtype_name(d)}": lambda s, d=d: rand(3, 4, dtype=d, seed=s) for d in DTYPES},
    "0-dim": lambda s: torch.tensor(1.5 + s),
    "0-dim complex": lambda s: torch.tensor(complex(s, 1)),
    "empty": lambda s: torch.empty(0, 3),
    "empty 1-dim": lambda s: torch.empty(0, dtype=torch.int64),
    "view of rows": lambda s: big(s)[8:40],
    "view of columns": lambda s: big(s)[:, 8:40],
    "view with steps": lambda s: big(s)[::3, ::2],
    "transposed": lambda s: big(s).t(),
    "channels last": lambda s: rand(8, 16, 5, 3, seed=s).to(memory_format=torch.channels_last),
    "channels last 3d": lambda s: rand(4, 6, 5, 3, 2, seed=s).to(memory_format=torch.channels_last_3d),
    "conjugated": lambda s: big(s, torch.complex64).conj(),
    "negated": lambda s: big(s, torch.complex64).conj().imag,
    "offset in its storage": lambda s: torch.arange(5000, dtype=torch.int16)[1 + s :][:4000],
    "nan and infinities": lambda s: torch.tensor([math.nan, math.inf, -math.inf, -0.0, s] * 300),
    "parameter": lambda s: torch.nn.Parameter(big(s)),
    "frozen parameter": lambda s: torch.nn.Parameter(big(s), requires_grad=False),
    "requires grad": lambda s: big(s).requires_grad_(),
    "sparse": lambda s: sparse(s),
    "sparse uncoalesced": lambda s: sparse(s, coalesced=False),
    "sparse hybrid": lambda s: torch.sparse_coo_tensor([[0, 2, 5]], rand(3, 400, seed=s), (9, 400)),
    "sparse empty": lambda s: torch.zeros(9, 9).to_sparse(),
    "csr": lambda s: (torch.eye(40) * (s + 1)).to_sparse_csr(),
    "csc": lambda s: (torch.eye(40) * (s + 1)).to_sparse_csc(),
    "bsr": lambda s: (torch.eye(40) * (s + 1)).to_sparse_bsr((2, 2)),
    "bsc": lambda s: (torch.eye(40) * (s + 1)).to_sparse_bsc((2, 2)),
    "quantised": lambda s: torch.quantize_per_tensor(torch.randn(64, 48, generator=gen(s)), 0.1 + s, 3, torch.quint8),
    "quantised to 32 bits": lambda s: torch.quantize_per_tensor(torch.ones(64, 8) * s, 0.1 + s, 3, torch.qint32),
    "quantised per channel": per_channel,
}
NEW_SIZE = {"csr", "sparse", "sparse uncoalesced"}
"""Rows whose live counterpart has another number of stored elements."""


def bits(tensor):
    """The content of any tensor, dense or not, as comparable bytes."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        return bits(tensor.to_dense())
    if tensor.is_quantized:
        return bits(tensor.int_repr()) + bits(tensor.dequantize())
    return tensors.row_bytes(tensor).tobytes()


@torch.no_grad()
def step(tensor):
    """Some change that depends on every bit."""
    if tensor.is_quantized:
        return tensor.dequantize() * 2
    if tensor.layout != torch.strided:
        return tensor.to_dense() * 2
    if tensor.dtype.itemsize > 1 and tensor.dtype not in (torch.uint16, torch.uint32, torch.uint64, torch.complex32):
        return tensor * 2 + 1
    return tensors.row_major(tensor).reshape(-1).view(torch.uint8).flip(0)


@pytest.mark.parametrize("row", ROWS)
def test_a_tensor_is_filled_in_place(row):
    first, second = ROWS[row](0), ROWS[row](3)
    if row in NEW_SIZE:
        with torch.no_grad():
            second = (second.to_dense() + torch.ones(second.shape).tril()).to_sparse(layout=second.layout)
    address = None if second.layout != torch.strided else second.data_ptr()
    stored, want, before = save({"t": first}), bits(first), digest({"t": first})
    restore({"t": second}, stored)
    assert bits(second) == want
    assert digest({"t": second}) == before
    assert bits(step(second)) == bits(step(first))
    assert (second.dtype, second.shape, second.layout) == (first.dtype, first.shape, first.layout)
    assert address is None or second.data_ptr() == address


@pytest.mark.parametrize("row", ROWS)
def test_a_tensor_is_made_afresh(row):
    first = ROWS[row](0)
    holder = Holder({"t": [first]})
    stored, want, before = save({"h": holder}), bits(first), digest({"h": holder})
    other = Holder({"t": []})
    restore({"h": other}, stored)
    (second,) = other.state["t"]
    assert bits(second) == want
    assert digest({"h": other}) == before
    assert type(second) is type(first)
    assert second.requires_grad == first.requires_grad
    assert bits(step(second)) == bits(step(first))
    assert (second.dtype, second.shape, second.layout) == (first.dtype, first.shape, first.layout)
    if row.startswith("channels"):
        assert second.stride() == first.stride()


def test_an_expanded_tensor_is_saved_and_filled_where_it_lives():
    """copy_ refuses expanded targets; their elements are one in memory."""
    first, second = torch.arange(40.0).expand(30, 40), torch.zeros(40).expand(30, 40)
    restore({"t": second}, save({"t": first}))
    assert torch.equal(second, first)
    assert second.stride() == (0, 1)


def test_an_expanded_target_for_rows_that_differ_is_an_error():
    with pytest.raises(RestoreFailed, match="t: other bytes"):
        restore({"t": torch.zeros(40).expand(30, 40)}, save({"t": torch.rand(30, 40)}))


def test_sparse_tensors_of_other_blocks_do_not_fit():
    first, second = torch.eye(40).to_sparse_bsr((2, 2)), torch.eye(40).to_sparse_bsr((4, 4))
    with pytest.raises(StateMismatch, match=r"t: stored shape \[2, 2\], live shape \[4, 4\]"):
        restore({"t": second}, save({"t": first}))


def test_indices_outside_of_a_sparse_tensor_are_found_before_it_is_used():
    """Hazards 49: a stored index must not become an address."""
    stored = save({"h": Holder({"t": sparse(0)})})
    bad = stored.values.replace(b'"shape":[40,40]', b'"shape":[40,30]')
    assert bad != stored.values
    with pytest.raises(Corrupt, match="sparse_coo tensor is malformed"):
        restore({"h": Holder({})}, dataclasses.replace(stored, values=bad))


def test_the_coalesced_flag_survives():
    holder = Holder({"a": sparse(0), "b": sparse(0, coalesced=False)})
    other = Holder({})
    restore({"h": other}, save({"h": holder}))
    assert [other.state[k].is_coalesced() for k in "ab"] == [True, False]


def test_a_wrapper_subclass_is_filled_part_by_part():
    first, second = TwoTensor(big(0), big(1)), TwoTensor(big(2), big(3))
    inner = second.a.data_ptr(), second.b.data_ptr()
    restore({"t": second}, save({"t": first}))
    assert torch.equal(second.a, first.a)
    assert torch.equal(second.b, first.b)
    assert (second.a.data_ptr(), second.b.data_ptr()) == inner
    assert torch.equal((second * 2).b, first.b * 2)


def test_a_wrapper_subclass_inside_a_module_keeps_its_parameter():
    def make(seed):
        module = torch.nn.Linear(48, 64, bias=False)
        module.weight = torch.nn.Parameter(TwoTensor(big(seed), big(seed + 1)))
        return module

    first, second = make(0), make(5)
    weight = second.weight
    restore({"m": second}, save({"m": first}))
    assert second.weight is weight
    assert torch.equal(weight.b, first.weight.b)


def test_a_wrapper_subclass_is_never_made_from_stored_text():
    first = {"h": Holder({"t": TwoTensor(big(0), big(1))})}
    (note,) = capture(first).anomalies
    assert note.startswith("h has 1 tensors of ")
    assert "cannot be made anew" in note
    stored = save(first)
    with pytest.raises(StateError, match="TwoTensor, which is filled only where one exists"):
        restore({"h": Holder({})}, stored)


def test_a_wrapper_subclass_cannot_go_into_a_plain_tensor():
    stored = save({"t": TwoTensor(big(0), big(1))})
    with pytest.raises(StateMismatch, match="TwoTensor, is a plain tensor now"):
        restore({"t": big(0)}, stored)


def test_contiguous_cpu_tensors_are_viewed_without_a_copy():
    for tensor in (big(0), torch.nn.Parameter(big(0)), big(0)[3:9], torch.tensor(3.0), big(0, torch.bool)):
        view = tensors.row_bytes(tensor)
        assert np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0] == tensor.data_ptr()
        assert view.nbytes == tensor.numel() * tensor.element_size()


def test_bytes_are_row_major_whatever_the_memory_order():
    """So that every world size and every memory format makes the same segments."""
    tensor = rand(8, 16, 5, 3)
    last = tensor.to(memory_format=torch.channels_last)
    assert bytes(tensors.row_bytes(last)) == bytes(tensors.row_bytes(tensor)) == tensor.numpy().tobytes()
    assert tensors.dim_order(last) == (0, 2, 3, 1)
    assert tensors.dim_order(tensor) == tensors.dim_order(big(0)[:, ::2]) == ()


def test_allocation_follows_the_memory_order():
    spec = TensorSpec("x", "float32", (2, 3, 4, 5), "parameter", dim_order=(0, 2, 3, 1))
    assert tensors.allocate(spec, torch.device("cpu")).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.empty(3, device="meta"), "meta device"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "nested"),
        (lambda: torch.nn.parameter.UninitializedParameter(), "lazy"),
        (lambda: torch.zeros(4).to_mkldnn(), "layout"),
        (lambda: torch.empty(4, dtype=torch.bits8), "dtype"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_has_no_bytes_is_refused_with_its_path(make, why):
    if why == "layout" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    with pytest.raises(UnsupportedTensor, match=rf"h/deep/0 .*{why}"):
        capture({"h": Holder({"deep": [make()]})})


def test_fake_and_functional_tensors_are_refused_with_their_path():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(3)
    with pytest.raises(UnsupportedTensor, match="h/x is a fake tensor"):
        capture({"h": Holder({"x": fake})})

    def inside(t):
        capture({"h": Holder({"x": t})})
        return t

    with pytest.raises(UnsupportedTensor, match="h/x is inside a functorch"):
        torch.func.vmap(inside)(torch.ones(3, 2))


def test_a_freed_storage_is_refused():
    tensor = torch.ones(300)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(UnsupportedTensor, match="no memory behind it"):
        capture({"t": tensor})


def test_the_storage_of_a_parameter_class_of_ones_own_is_looked_at_too():
    """Read all the same, it would be memory of somebody else, or a crash."""

    class Flat(torch.nn.Parameter):
        pass

    parameter = Flat(torch.ones(300))
    parameter.untyped_storage().resize_(40)
    with pytest.raises(UnsupportedTensor, match="t has no memory behind it"):
        capture({"t": parameter})


@pytest.mark.parametrize("order", [("plain", "negated"), ("negated", "plain"), ("negated", "plain", "again")])
def test_a_negated_view_is_not_what_lies_at_the_same_place(order):
    """They have the address, the shape and the strides in common, and not the sign."""
    z = torch.arange(600).to(torch.complex64) * (1 + 2j)
    views = {"plain": z.imag, "negated": z.conj().imag, "again": z.imag}
    assert views["negated"].is_neg()
    state = Holder({name: views[name] for name in order})
    snapshot = capture({"h": state})
    bytes_of = {spec.name.rpartition("/")[2]: tensors.row_bytes(tensor) for spec, tensor in snapshot.tensors}
    assert bytes_of["negated"] == views["negated"].clone().numpy().tobytes()
    assert bytes_of["plain"] == z.imag.clone().numpy().tobytes()
    assert len(bytes_of) == 2


def test_a_field_of_a_packed_array_is_stored():
    packed = np.zeros(100, dtype=[("a", "i4"), ("b", "f8")])
    packed["b"] = np.arange(100)
    assert packed["b"].strides == (12,)
    (found,) = [tensor for _, tensor in capture({"h": Holder({"b": packed["b"]})}).tensors] or [None]
    assert found is None or found.tolist() == list(range(100))


def test_an_unknown_dtype_is_an_error_that_says_so():
    with pytest.raises(UnknownFormat, match="float3"):
        tensors.dtype_of("float3")
    with pytest.raises(UnknownFormat):
        tensors.dtype_of("save")


ARRAYS = {
    **{str(np.dtype(d)): np.arange(600).astype(d) for d in "?bBhHiIlLefdFD"},
    "0-dim": np.array(3.5),
    "empty": np.empty((0, 3)),
    "fortran order": np.asfortranarray(np.random.default_rng(0).random((20, 30))),
    "view": np.arange(1000.0)[::3],
    "reversed": np.arange(1000.0)[::-1],
}


@pytest.mark.parametrize("row", ARRAYS)
def test_an_array_comes_back_as_an_array(row):
    array = ARRAYS[row]
    other = Holder({})
    restore({"h": other}, save({"h": Holder({"a": array})}))
    found = other.state["a"]
    assert type(found) is np.ndarray
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    assert found.flags.writeable


def test_a_read_only_array_is_saved():
    array = np.arange(500.0)
    array.flags.writeable = False
    other = Holder({})
    restore({"h": other}, save({"h": Holder({"a": array})}))
    assert np.array_equal(other.state["a"], array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.zeros(3, dtype=[("x", "f4")]),
        np.array(["text"]),
        np.array(["2024-01-01"], dtype="datetime64[D]"),
        np.zeros(3, dtype=">f4"),
        np.zeros(3, dtype=np.longdouble),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_without_a_portable_form_are_refused_with_their_path(array):
    with pytest.raises(UnsupportedValue, match="h/a is a NumPy array of"):
        capture({"h": Holder({"a": array})})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    "row", ["float32", "0-dim", "channels last", "transposed", "bfloat16", "float8_e4m3fn", "sparse"]
)
def test_a_tensor_on_a_cuda_device_is_filled_in_place(row):
    first, second = ROWS[row](0).cuda(), ROWS[row](3).cuda()
    restore({"t": second}, save({"t": first}))
    assert second.is_cuda
    assert bits(second.cpu()) == bits(first.cpu())
