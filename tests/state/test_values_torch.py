"""The small values of torch and NumPy in the codec."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from holdfast import values
from holdfast.errors import Corrupt, StateMismatch
from holdfast.state import values_torch

ROWS = [
    torch.float32,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.channels_last,
    torch.preserve_format,
    torch.strided,
    torch.sparse_csr,
    torch.device("cpu"),
    torch.device("cuda:3"),
    torch.Size([2, 3]),
    torch.Size([]),
    *(np.dtype(c).type(1) for c in "?bBhHiIlLqQefdFD"),
    np.float32("nan"),
    np.float64("-inf"),
    np.float32(0.1),
    np.uint64(2**64 - 1),
    np.complex64(1 + 0.1j),
    np.str_("ü"),
    np.bytes_(b"\x00x"),
]


def through_text(value):
    return values.decode(json.loads(json.dumps(values.encode(value), allow_nan=False)))


@pytest.mark.parametrize("value", ROWS, ids=lambda v: f"{type(v).__name__} {v!r}")
def test_a_value_comes_back_in_its_type(value):
    found = through_text([value])[0]
    assert type(found) is type(value)
    assert found == value or (value != value and found != found)
    if isinstance(value, np.generic):
        assert found.tobytes() == value.tobytes()


def test_dtypes_may_be_keys():
    assert through_text({torch.float16: 1, np.int64(3): 2}) == {torch.float16: 1, 3: 2}


@pytest.mark.parametrize(
    "stored",
    [
        {"$": "torch.dtype", "v": "save"},
        {"$": "torch.layout", "v": "float32"},
        {"$": "torch.device", "v": "no such"},
        {"$": "numpy.int8", "v": 1000},
        {"$": "numpy.generator", "v": {"type": "x", "state": {"bit_generator": "os"}}},
    ],
    ids=json.dumps,
)
def test_malformed_values_are_typed_errors(stored):
    with pytest.raises(Corrupt):
        values.decode(stored)


def test_the_state_of_one_kind_cannot_be_put_into_another():
    state = values_torch.generator_state(np.random.default_rng(0))
    with pytest.raises(StateMismatch, match="PCG64"):
        values_torch.set_generator_state(torch.Generator(), state)


def test_people_can_read_them_without_torch():
    """The command line shows values in a process that has not imported torch."""
    stored = json.dumps(values.encode({"dtype": torch.bfloat16, "x": np.float32(0.5), "size": torch.Size([2])}))
    code = (
        "import json, sys; from holdfast import values; "
        f"print(json.dumps(values.display(json.loads({stored!r})))); assert 'torch' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert json.loads(shown.stdout) == {
        "dtype": "torch.dtype(bfloat16)",
        "x": "numpy.float32(0.5)",
        "size": {"torch.size": [2]},
    }
