"""Capture: what is copied at once, what is referenced, and how the bytes are cut."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.errors import InvalidInput, UnsupportedValue
from holdfast.state import capture
from holdfast.trees import Lifetime, segments

from .state_roundtrip import digest


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 300), nn.Linear(300, 2))


def test_small_tensors_and_values_are_copies():
    """Users-ask 1: counters changed while they were being written."""
    model, values = net(), {"n": [1]}
    snapshot = capture({"m": model}, values)
    inline, text = snapshot.inline, snapshot.values_bytes
    with torch.no_grad():
        model[1].bias.add_(1)
    values["n"].append(2)
    assert (snapshot.inline, snapshot.values_bytes) == (inline, text)
    assert model[1].bias.detach().numpy().tobytes() not in inline


def test_large_tensors_are_the_live_ones():
    model = net()
    live = {t.data_ptr() for _, t in capture({"m": model}).tensors}
    assert live == {model[0].weight.data_ptr(), model[0].bias.data_ptr(), model[1].weight.data_ptr()}


def test_segments_follow_the_skeleton():
    model = nn.ModuleList(
        [net(), nn.Embedding(2_200_000, 1, dtype=torch.float32), net().to(memory_format=torch.preserve_format)]
    )
    snapshot = capture({"m": model})
    found = [bytes(segment.data) for segment in snapshot.segments()]
    sizes = [span.length for spec in snapshot.skeleton.tensors for span in segments(spec)]
    assert [len(segment) for segment in found] == sizes
    assert len(sizes) > len(snapshot.tensors)
    assert snapshot.logical_bytes == sum(sizes) + len(snapshot.inline)


def test_equal_states_give_equal_bytes():
    assert digest({"m": net()}) == digest({"m": net()})


def test_a_capture_changes_nothing_and_draws_no_numbers():
    model = net()
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().clone()
    one = capture({"m": model}).values_bytes
    assert capture({"m": model}).values_bytes == one
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_skeleton_does_not_change_from_step_to_step():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    found = set()
    for _ in range(3):
        model(torch.rand(2, 8)).sum().backward()
        optimizer.step()
        found.add(capture({"m": model, "o": optimizer}).skeleton.encode())
    assert len(found) == 1


def test_names_lifetimes_and_places_are_readable():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 8)).sum().backward()
    optimizer.step()
    snapshot = capture({"m": model, "o": optimizer}, {"loss": torch.rand(700)})
    found = {spec.name: spec.lifetime for spec in snapshot.skeleton.tensors}
    assert found["m/0.weight"] == Lifetime.PARAMETER
    assert found["o/state/m/0.weight/exp_avg"] == Lifetime.OPTIMIZER
    assert found["values/loss"] == Lifetime.OPTIMIZER
    document = json.loads(snapshot.values_bytes)
    assert document["objects"]["m"]["data"]["state"]["0.weight"] == {"$": "tensor", "name": "m/0.weight"}
    assert document["objects"]["o"]["data"]["groups"][0]["values"]["betas"] == {"$": "tuple", "v": [0.9, 0.999]}


@pytest.mark.parametrize("value", [3, 2.5, "x", [1], {"a": 1}, None, torch.optim.SGD, object(), random.SystemRandom()])
def test_what_cannot_be_put_back_is_refused(value):
    """Hazards 46."""
    with pytest.raises(InvalidInput, match=r"state\['x'\] is a .*cannot be put back"):
        capture({"x": value})


@pytest.mark.parametrize("value", [3, "x", [1], np.float32(1), np.zeros(3)])
def test_plain_values_are_refused_with_the_place_where_they_belong(value):
    with pytest.raises(InvalidInput, match=r"ckpt\.values\['x'\]"):
        capture({"x": value})


@pytest.mark.parametrize("name", ["", "a/b", "values", "$own", "$x", 3])
def test_names_that_would_be_ambiguous_are_refused(name):
    with pytest.raises(InvalidInput, match="cannot name a part of the state"):
        capture({name: nn.Linear(2, 2)})


def test_a_value_that_cannot_be_stored_is_named_by_its_path():
    with pytest.raises(UnsupportedValue, match="values/hooks/1 is a"):
        capture({}, {"hooks": [1, print]})
