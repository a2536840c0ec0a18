"""The global generators go on where they were."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from holdfast import values
from holdfast.state import rng


def draw():
    np.random.standard_normal()
    return (
        [random.random(), random.gauss(0, 1), random.randrange(10**30)],
        [np.random.rand(), np.random.standard_normal(), np.random.randint(99)],
        torch.rand(3).tolist() + torch.randperm(5).tolist(),
    )


@pytest.mark.parametrize("before", [0, 1, 700])
def test_all_generators_go_on_where_they_were(before):
    """Draws in pairs leave a second normal number behind; that is state too."""
    for _ in range(before):
        random.gauss(0, 1), np.random.standard_normal(), torch.randn(1)
    stored = json.loads(json.dumps(values.encode(rng.capture()), allow_nan=False))
    want = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert rng.restore(values.decode(stored)) == []
    assert [draw(), draw()] == want


def test_devices_that_are_not_there_any_more_are_said():
    state = rng.capture() | {"xpu": [b"\x00" * 16] * 4}
    if torch.xpu.is_available():
        pytest.skip("this machine has the device")
    assert rng.restore(state) == ["random state of 4 xpu devices was stored, and there are 0 now"]


def test_capturing_does_not_initialise_cuda():
    code = (
        "import torch; from holdfast.state import rng; state = rng.capture(); rng.restore(state); "
        "assert not torch.cuda.is_initialized(); assert 'cuda' not in state"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_generators_go_on_where_they_were():
    torch.rand(3, device="cuda")
    state = rng.capture()
    want = torch.rand(3, device="cuda")
    rng.restore(state)
    assert torch.equal(torch.rand(3, device="cuda"), want)
