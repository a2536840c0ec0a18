"""Copies on the host: what is plain memory is moved by address, and the rest by torch."""

from __future__ import annotations

import pytest
import torch

from holdfast.errors import SaveFailed
from holdfast.saver.arena import Layout
from holdfast.saver.control import LENGTH, Control
from holdfast.saver.memory import Slab
from holdfast.state.stager import Stager
from holdfast.state.staging import Destination
from holdfast.state.tensors import dtype_name, row_bytes
from holdfast.trees import Lifetime, TensorSpec, segments

TENSORS = {
    "plain": torch.arange(5000.0),
    "a view with an offset": torch.arange(9000.0)[17:5000],
    "transposed": torch.rand(60, 70).t(),
    "every other one": torch.arange(9000.0)[::2],
    "channels last": torch.rand(2, 8, 20, 20).to(memory_format=torch.channels_last),
    "expanded": torch.rand(1, 700).expand(40, 700),
    "conjugated": torch.complex(torch.rand(900), torch.rand(900)).conj(),
    "negated": torch.complex(torch.rand(900), torch.rand(900)).conj().imag,
    "eight bits": torch.rand(4000).to(torch.float8_e4m3fn),
    "sixteen bits, unsigned": torch.arange(3000).to(torch.uint16),
    "complex, of 128 bits": torch.rand(300).to(torch.complex128),
    "longer than a segment": torch.arange(3 << 20).float().reshape(3, 1 << 20),
    "rows longer than a segment": torch.arange(5 << 20).float().reshape(2, -1),
}


@pytest.fixture(autouse=True, params=[1, 3], ids=["alone", "threads"])
def threads(request, monkeypatch):
    """On which the tensors are moved."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


def destination(tensors):
    specs = [TensorSpec(name, dtype_name(one.dtype), tuple(one.shape), Lifetime.PARAMETER) for name, one in tensors]
    layout = Layout(tuple(specs))
    slab = Slab.make(layout.slab_bytes())
    slab.reserve(0, layout.length)
    return Destination(slab, layout)


def staged(found, place):
    spec = found.layout.specs[place]
    pieces = [found.slab.memory[at : at + span.length] for span, at in found._pieces(place)]
    assert [len(piece) for piece in pieces] == [span.length for span in segments(spec)]
    return b"".join(pieces)


@pytest.mark.parametrize("grad", ["usual", "inference"])
def test_every_kind_of_tensor_arrives_as_its_row_major_bytes(grad):
    made = destination(TENSORS.items())
    with torch.inference_mode(grad == "inference"):
        made.copy(range(len(TENSORS)), list(TENSORS.values()))
    for place, tensor in enumerate(TENSORS.values()):
        assert staged(made, place) == bytes(row_bytes(tensor))


def test_memory_that_was_first_seen_in_inference_mode_takes_later_copies_too():
    """A save in a validation loop must not break all that come after it."""
    tensor = torch.rand(60, 70).t()
    with torch.inference_mode():
        made = destination([("a", tensor)])
        made.copy([0], [tensor])
    with torch.no_grad():
        tensor.mul_(2)
    made.copy([0], [tensor])
    assert staged(made, 0) == bytes(row_bytes(tensor))


def test_what_torch_cannot_copy_is_a_save_that_fails(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    made = destination([("a", torch.rand(60, 70).t())])
    monkeypatch.setattr(torch, "_foreach_copy_", fails)
    stager = Stager(Control(Slab.make(LENGTH)))
    with pytest.raises(SaveFailed, match=r"could not be copied: .*allocate memory"):
        stager.copy(made, [0], [torch.rand(60, 70).t()], step=1, late=False)
