"""Restore: everything is compared before anything changes, bytes go where the state lives, and the result is proved."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.errors import Corrupt, InvalidInput, RestoreFailed, StateError, StateMismatch
from holdfast.state import Comparison, Stored, capture, restore

from .state_roundtrip import Trained, digest, save


def trained(seed=0, steps=2):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 300), nn.BatchNorm1d(300), nn.Linear(300, 2))
    return Trained(net, torch.optim.AdamW(net.parameters())).steps(steps, seed=seed)


class Holder:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_all_differences_are_in_one_error_and_nothing_has_changed():
    """Users-ask 27: missing, surplus, shape and dtype, for every object at once."""

    def make(seed, odd):
        torch.manual_seed(seed)
        net = nn.Module()
        net.same = nn.Parameter(torch.rand(300))
        net.shape = nn.Parameter(torch.rand(300, 2 if odd else 3))
        net.dtype = nn.Parameter(torch.rand(300, dtype=torch.float64 if odd else torch.float32))
        net.register_parameter("extra" if odd else "gone", nn.Parameter(torch.rand(300)))
        objects = {"model": net, "opt": torch.optim.SGD([net.same, net.shape] if odd else [net.same], lr=seed + 1)}
        return objects | {"ema" if odd else "scaler": Holder({"n": seed})}

    second = make(1, odd=True)
    before = digest(second)
    with pytest.raises(StateMismatch) as caught:
        restore(second, save(make(0, odd=False)))
    assert digest(second) == before
    lines = str(caught.value).split("\n  ")[1:]
    assert sorted(lines) == sorted(
        [
            "scaler: in the checkpoint, not in the program; leave it out with only=",
            "ema: missing in the checkpoint, which has model, opt, scaler",
            "model/extra: missing in the checkpoint",
            "model/gone: in the checkpoint, not in the program",
            "model/shape: stored shape [300, 3], live shape [300, 2]",
            "model/dtype: stored dtype float32, live dtype float64",
            "opt: model/shape is optimised now and was not when it was stored",
        ]
    )


def test_another_kind_of_object_under_the_name_is_refused():
    with pytest.raises(StateMismatch, match="x: stored as a module, is a object now"):
        restore({"x": Holder({})}, save({"x": nn.Linear(2, 2)}))


def test_a_plan_changes_nothing_until_it_is_executed():
    first, second = trained(0), trained(1)
    before = digest(second.objects)
    comparison = Comparison(second.objects, save(first.objects))
    ready = comparison.plan(comparison.lacking)
    assert digest(second.objects) == before
    ready.execute()
    assert digest(second.objects) == digest(first.objects)


def test_part_of_the_objects_can_be_restored_by_name():
    first, second = trained(0), trained(1)
    optimizer = digest(second.objects)[3][-1]
    restored = restore(second.objects, save(first.objects), only={"model"})
    assert restored.not_loaded == ("optimizer",)
    assert torch.equal(second.model[0].weight, first.model[0].weight)
    assert digest(second.objects)[3][-1] == optimizer


def test_an_optimizer_alone_can_be_restored_by_name():
    first, second = trained(0), trained(1)
    weight = second.model[0].weight.clone()
    restore(second.objects, save(first.objects), only={"optimizer"})
    assert torch.equal(second.model[0].weight, weight)
    moments = [t.optimizer.state[t.model[0].weight]["exp_avg"] for t in (first, second)]
    assert torch.equal(*moments)


def test_only_of_an_unknown_name_is_refused():
    with pytest.raises(InvalidInput, match="no object is registered as modle"):
        restore({"model": nn.Linear(2, 2)}, save({"model": nn.Linear(2, 2)}), only={"modle"})


def test_values_and_random_states_are_handed_back_and_not_applied():
    """Hazards 16: they are applied when every rank has loaded."""
    net = nn.Linear(2, 2)
    values = {
        "best": float("nan"),
        "history": [(1, 2.5)],
        "seen": {1, 2},
        "table": torch.arange(700),
        "a": np.arange(3),
    }
    stored = save({"m": net}, values)
    want = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    restored = restore({"m": net}, stored)
    assert torch.equal(torch.get_rng_state(), before)
    assert restored.values["history"] == [(1, 2.5)]
    assert restored.values["seen"] == {1, 2}
    assert torch.equal(restored.values["table"], torch.arange(700))
    assert restored.apply_rng() == []
    got = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(got[0], want[0])
    assert got[1:] == want[1:]


def test_a_load_that_drops_an_entry_is_an_error_that_names_it():
    class Forgetful(Holder):
        def load_state_dict(self, state):
            self.state = state | {"count": 0}

    with pytest.raises(RestoreFailed, match="h/count: stored 5, is 0 after the load"):
        restore({"h": Forgetful({"count": 1})}, save({"h": Forgetful({"count": 5, "w": torch.rand(300)})}))


def test_a_load_that_breaks_a_tie_is_an_error():
    """Users-ask 40: aliasing is checked after the load."""

    class Cloning(Holder):
        def load_state_dict(self, state):
            self.state = {key: value.clone() for key, value in state.items()}

    shared = torch.rand(300)
    with pytest.raises(RestoreFailed, match="h/a was tied to another entry and is not"):
        restore({"h": Cloning({})}, save({"h": Cloning({"a": shared, "b": shared})}))


def test_ties_within_an_object_are_tied_again():
    shared = torch.rand(300)
    second = Holder({})
    restore({"h": second}, save({"h": Holder({"a": shared, "b": [shared], "c": torch.rand(300)})}))
    assert second.state["a"] is second.state["b"][0]


def test_what_is_handed_over_is_shared_with_nothing():
    """An object may keep the tensors that it is given: two of them must not be one."""
    weight = torch.rand(300)
    net = nn.Module()
    net.w = nn.Parameter(weight)
    first = {"m": net, "h": Holder({"w": net.w.detach().clone()}), "g": Holder({"w": torch.rand(300)})}
    stored = save(first)
    second = {"m": net, "h": Holder({}), "g": Holder({})}
    restore(second, stored)
    second["h"].state["w"].zero_()
    third = {"m": net, "h": Holder({}), "g": Holder({})}
    restore(third, stored)
    assert torch.equal(third["h"].state["w"], weight)
    assert torch.equal(net.w, weight)


def test_partly_overlapping_tensors_are_stored_apart_said_and_not_made_anew():
    """Hazards 43."""
    base = torch.rand(500)
    holder = Holder({"a": base[:400], "b": base[100:]})
    assert capture({"h": holder}).anomalies == ("aliasing lost: h/a and h/b share memory in part",)
    with pytest.raises(StateError, match=r"h/a shared part of its memory"):
        restore({"h": Holder({})}, save({"h": holder}))


def test_partly_overlapping_tensors_that_live_are_filled():
    def make(seed):
        net = nn.Module()
        base = torch.rand(500, generator=torch.Generator().manual_seed(seed))
        net.register_buffer("a", base[:400])
        net.register_buffer("b", base[100:])
        return net

    first, second = make(0), make(1)
    restore({"m": second}, save({"m": first}))
    assert torch.equal(second.b, first.b)
    assert second.a[100:].data_ptr() == second.b.data_ptr()


def test_interleaved_views_of_one_storage_do_not_overlap():
    joint = torch.rand(40, 60)
    holder = Holder({"q": joint[:, :30], "k": joint[:, 30:]})
    assert capture({"h": holder}).anomalies == ()


def test_a_flat_buffer_with_parameters_next_to_one_another_does_not_overlap():
    flat = torch.rand(1000)
    assert capture({"h": Holder({"a": flat[:400].view(20, 20), "b": flat[400:]})}).anomalies == ()


def test_tensors_that_cannot_be_read_in_place_go_through_a_bounded_buffer():
    first = Holder({"x": [torch.rand(100, 64).t() for _ in range(40)]})
    net = nn.ParameterList([nn.Parameter(torch.zeros(100, 64).t()) for _ in range(40)])
    source = nn.ParameterList([nn.Parameter(t.clone()) for t in first.state["x"]])
    stored = save({"m": source})
    budget = 5 * 100 * 64 * 4
    restore({"m": net}, stored, budget=budget)
    assert stored.reader.calls == 8
    assert digest({"m": net})[3] == digest({"m": source})[3]


def test_contiguous_memory_is_read_into_directly():
    net, source = nn.Linear(100, 64), nn.Linear(100, 64)
    stored = save({"m": source})
    seen = []
    read = stored.reader.read
    stored.reader.read = lambda wanted: (
        seen.extend(np.frombuffer(w.into, np.uint8).ctypes.data for w in wanted),
        read(wanted),
    )
    restore({"m": net}, stored)
    assert net.weight.data_ptr() in seen


def test_a_tensor_of_several_segments_comes_back():
    """Segments are at most 8 MiB; rows longer than that are cut within."""
    from holdfast.boxes import SEGMENT_BYTES

    big = torch.randint(0, 250, (5, SEGMENT_BYTES // 2 + 7), dtype=torch.uint8)
    long = torch.randint(0, 250, (2, SEGMENT_BYTES + 11), dtype=torch.uint8)
    for tensor in (big, long):
        target = torch.zeros_like(tensor)
        stored = save({"t": tensor})
        assert stored.counts[0] > 1
        restore({"t": target}, stored)
        assert torch.equal(target, tensor)
        strided = torch.zeros(tensor.shape[::-1], dtype=torch.uint8).t()
        restore({"t": strided}, stored, budget=1)
        assert torch.equal(strided, tensor)


def test_an_error_of_the_reader_comes_through():
    first, second = trained(0), trained(1)
    stored = save(first.objects)
    stored.reader.blobs.pop(stored.digest(stored.counts[0] - 1))
    with pytest.raises(KeyError):
        restore(second.objects, stored)


def test_wrong_bytes_that_a_reader_let_through_are_found_by_the_comparison():
    """In the memory that it fills the reader has to verify; what went through a buffer is compared afterwards."""
    tensor, target = torch.randn(64, 64), torch.zeros(64, 64).t()
    stored = save({"t": tensor})
    blob = bytearray(stored.reader.blobs[stored.digest(0)])
    blob[17] ^= 1
    stored.reader.blobs[stored.digest(0)] = bytes(blob)
    with pytest.raises(RestoreFailed, match=r"t: other bytes than stored"):
        restore({"t": target}, stored)


class Meddler:
    """Writes to a parameter of somebody else when it is loaded."""

    def __init__(self, victim):
        self.victim = victim

    def state_dict(self):
        return {"n": 1}

    def load_state_dict(self, state):
        with torch.no_grad():
            self.victim[0, 0] += 1


def test_code_of_the_user_that_writes_after_the_load_is_found():
    """The bytes of the model were verified where they lie, and then an object of the user changed them."""
    net = nn.Linear(32, 32)
    stored = save({"net": net, "meddler": Meddler(net.weight)})
    with pytest.raises(RestoreFailed, match=r"net/weight: other bytes than stored"):
        restore({"net": net, "meddler": Meddler(net.weight)}, stored)


def test_two_tensors_in_one_memory_are_found():
    """The second one is read over a part of the first, which had been verified there."""
    base = torch.randn(4096)
    stored = save({"a": torch.randn(2048), "b": torch.randn(2048)})
    with pytest.raises(RestoreFailed, match=r"a: other bytes than stored"):
        restore({"a": base[:2048], "b": base[1024:3072]}, stored)


def damaged(stored, **changes):
    names = ("skeleton", "values", "inline", "own", "counts", "digest", "reader")
    fields = {key: getattr(stored, key) for key in names}
    return Stored(**fields | changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {"inline": s.inline[:-1]},
        lambda s: {"counts": (s.counts[0] - 1,)},
        lambda s: {"values": s.values[:-1]},
        lambda s: {"values": b"[]"},
        lambda s: {"own": b"[]"},
        lambda s: {"own": s.own[:-1]},
        lambda s: {"values": b"[" * 100_000},
        lambda s: {"values": b'{"objects": []}'},
    ],
)
def test_pages_that_do_not_fit_together_are_found_before_anything_changes(change):
    second = trained(1)
    before, stored = digest(second.objects), save(trained(0).objects)
    with pytest.raises(Corrupt):
        restore(second.objects, damaged(stored, **change(stored)))
    assert digest(second.objects) == before


def test_values_that_name_a_tensor_that_is_not_there_are_found():
    stored = save(trained(0).objects)
    stored = damaged(stored, values=stored.values.replace(b'"model/0.weight"', b'"model/9.weight"'))
    with pytest.raises(Corrupt, match=r"model/9\.weight"):
        restore(trained(1).objects, stored)


def test_a_restored_run_saves_the_same_skeleton():
    """So that the tree of the next save is not written again."""
    first, second = trained(0), trained(1, steps=0)
    restore(second.objects, save(first.objects))
    assert capture(second.objects).skeleton.encode() == capture(first.objects).skeleton.encode()
