"""Samples say what is not finite, by name, and never before the device is done."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_kit import SimStreams
from worlds import free_port

from holdfast.health import Fact, Probed
from holdfast.state.norms import local_numbers, norms
from holdfast.state.probing import LATE, LateMetrics, Prober, named_parameters

NAN, INF = float("nan"), float("inf")
BOTH = frozenset({Fact.GRADIENTS, Fact.PARAMETERS})
PARAMETERS, GRADIENTS = frozenset({Fact.PARAMETERS}), frozenset({Fact.GRADIENTS})
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SMALL = [dtype for name in ("float8_e4m3fn", "float8_e5m2") if (dtype := getattr(torch, name, None))]

BAD = [(dtype, value) for dtype in FLOATS for value in (NAN, INF, -INF)] + [(dtype, NAN) for dtype in SMALL]


def prober(named, **options):
    return Prober(lambda: list(named.items()), **options)


def once(named, wanted=PARAMETERS, step=7, **options):
    """One sample of tensors on the host."""
    probe = prober(named, **options)
    probe.begin(wanted, step)
    (found,) = probe.finished()
    return found


def parameter(values, gradient=None, dtype=torch.float32):
    made = torch.nn.Parameter(torch.tensor(values, dtype=dtype))
    made.grad = None if gradient is None else torch.tensor(gradient, dtype=dtype)
    return made


def test_on_the_host_a_sample_is_known_at_once():
    found = once({"a": torch.ones(3), "b": torch.tensor([1.0, NAN])})
    assert found == Probed(step=7, what=Fact.PARAMETERS, sampled=2, nonfinite=("b",))


@pytest.mark.parametrize(("dtype", "value"), BAD, ids=str)
def test_one_bad_number_in_any_place_is_found_in_every_dtype(dtype, value):
    bad = torch.ones(5000).to(dtype)
    bad[4321] = value
    found = once({"good": torch.ones(5000).to(dtype), "bad": bad})
    assert found.nonfinite == ("bad",)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_largest_numbers_of_a_dtype_are_numbers(dtype):
    """Their squares are none, nor is their sum in float16."""
    large = torch.full((3000,), torch.finfo(dtype).max, dtype=dtype)
    assert once({"large": large, "low": -large}).nonfinite == ()


def test_the_norm_over_all_gradients_comes_with_their_sample():
    tensors = {"a": parameter([1.0, 1.0], [3.0, 0.0]), "b": parameter([1.0], [4.0]), "frozen": parameter([1.0])}
    assert once(tensors, GRADIENTS) == Probed(step=7, what=Fact.GRADIENTS, sampled=2, norm=5.0)


def test_a_norm_in_half_precision_does_not_overflow():
    tensors = {"a": parameter([0.0] * 1000, [1000.0] * 1000, torch.float16)}
    assert once(tensors, GRADIENTS).norm == pytest.approx(1000 * math.sqrt(1000))


def test_gradients_of_several_dtypes_make_one_norm():
    tensors = {n: parameter([0.0], [1.0], dtype) for n, dtype in zip("abcd", FLOATS, strict=True)}
    assert once(tensors, GRADIENTS).norm == pytest.approx(2.0)
    assert once({**tensors, "e": parameter([0.0], [NAN])}, GRADIENTS).nonfinite == ("e",)


def test_without_gradients_nothing_is_known():
    assert once({"a": parameter([1.0])}, GRADIENTS) == Probed(step=7, what=Fact.GRADIENTS, sampled=0)
    assert once({}, PARAMETERS) == Probed(step=7, what=Fact.PARAMETERS, sampled=0)


def test_sparse_gradients_are_looked_at():
    table = torch.nn.Embedding(10, 3, sparse=True)
    table(torch.tensor([1, 1, 2])).sum().backward()
    found = once({"table": table.weight}, GRADIENTS)
    assert (found.sampled, found.nonfinite) == (1, ())
    # A row is there more than once, so its numbers do not add up to a norm.
    assert found.norm is None
    table.weight.grad = table.weight.grad.coalesce()
    assert once({"table": table.weight}, GRADIENTS).norm == pytest.approx(math.sqrt(3 * 4 + 3))
    table.weight.grad = table.weight.grad * NAN
    assert once({"table": table.weight}, GRADIENTS).nonfinite == ("table",)


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_compressed_tensors_are_looked_at(layout):
    dense = torch.tensor([[0.0, NAN], [1.0, 0.0]])
    assert once({"a": dense.to_sparse(layout=layout)}).nonfinite == ("a",)


def test_complex_numbers_are_looked_at():
    good, bad = torch.ones(2, dtype=torch.complex64), torch.tensor([1 + 1j, complex(0, NAN)])
    assert once({"good": good, "bad": bad, "conj": bad.conj()}).nonfinite == ("bad", "conj")


class Wrapped(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "odd",
    [
        torch.arange(5),
        torch.ones(3, dtype=torch.bool),
        torch.ones(3, device="meta"),
        torch.empty(0),
        torch.ones(3).as_subclass(Wrapped),
    ],
    ids=["integers", "bools", "meta", "empty", "subclass"],
)
def test_what_has_no_numbers_to_look_at_is_passed_over(odd):
    assert local_numbers(odd) is None
    assert once({"odd": odd, "bad": torch.tensor([NAN])}) == Probed(
        step=7, what=Fact.PARAMETERS, sampled=1, nonfinite=("bad",)
    )


def test_memory_that_was_given_back_is_not_touched():
    """As FSDP does with what it has gathered."""
    gone = torch.ones(1000)
    gone.untyped_storage().resize_(0)
    assert once({"gone": gone}).sampled == 0


def test_views_are_looked_at_and_not_what_lies_beside_them():
    base = torch.ones(10, 10)
    base[0, 0] = NAN
    assert once({"column": base[:, 1], "corner": base[:2, :2].t(), "row": base[0].expand(5, 10)}).nonfinite == (
        "corner",
        "row",
    )


def test_parameters_take_their_turns():
    tensors = {f"p{n}": torch.ones(10) for n in range(10)}
    probe = prober(tensors, tensors=4)
    tensors["p9"][3] = NAN
    found = []
    for step in range(5):
        probe.begin(PARAMETERS, step)
        found += probe.finished()
    assert [one.sampled for one in found] == [4] * 5
    assert [one.nonfinite for one in found] == [(), (), ("p9",), (), ("p9",)]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 400), st.integers(0, 2**32)
)
@settings(max_examples=50)
def test_every_parameter_has_its_turn_within_bounds(lengths, most, size, seed):
    tensors = {f"p{n}": torch.ones(length) for n, length in enumerate(lengths)}
    hurt = random.Random(seed).choice(sorted(tensors))
    tensors[hurt][-1] = NAN
    probe = prober(tensors, tensors=most, size=size)
    for step in range(len(tensors)):
        probe.begin(PARAMETERS, step)
        (found,) = probe.finished()
        assert 1 <= found.sampled <= most
        if found.nonfinite:
            break
    assert found.nonfinite == (hurt,)


def test_a_tensor_that_is_larger_than_a_sample_has_its_turn_alone():
    tensors = {"huge": torch.ones(1000), "small": torch.ones(1), "other": torch.ones(1)}
    probe = prober(tensors, size=100)
    sampled = []
    for step in range(4):
        probe.begin(PARAMETERS, step)
        sampled += [one.sampled for one in probe.finished()]
    assert sampled == [1, 2, 1, 2]


def test_the_host_can_be_left_out():
    assert once({"a": parameter([NAN], [NAN])}, GRADIENTS, host=False).sampled == 0


def test_only_what_is_sampled_is_begun_and_both_sorts_at_once():
    probe = prober({"a": parameter([1.0], [2.0])})
    probe.begin({Fact.DISK, Fact.GPU}, 3)
    assert probe.finished() == ()
    probe.begin(BOTH | {Fact.DISK}, 4)
    assert {(one.step, one.what) for one in probe.finished()} == {(4, what) for what in BOTH}


# Devices that work by themselves


def placed(streams, *values, device=0):
    return streams.place(torch.tensor(values), device)


def test_a_sample_is_not_read_before_the_device_is_done():
    streams = SimStreams()
    weight = placed(streams, 1.0, NAN)
    probe = prober({"w": weight}, streams=streams)
    probe.begin(PARAMETERS, 5)
    assert probe.finished() == ()
    streams.finish()
    assert probe.finished() == (Probed(step=5, what=Fact.PARAMETERS, sampled=1, nonfinite=("w",)),)
    assert probe.finished() == ()


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_is_of_its_boundary_whatever_the_device_does_first(seed):
    """The next step is put on the stream after it, and cannot get in between."""
    streams = SimStreams(seed)
    weight = placed(streams, 1.0, 2.0)
    probe = prober({"w": weight}, streams=streams)
    streams.compute(0, lambda: weight.fill_(NAN if seed % 2 else 5.0))
    probe.begin(PARAMETERS, 5)
    streams.compute(0, lambda: weight.fill_(5.0 if seed % 2 else NAN))
    (found,) = probe.finished(seconds=60)
    assert found.nonfinite == (("w",) if seed % 2 else ())


def test_tensors_of_several_devices_and_the_host_make_one_sample():
    streams = SimStreams()
    tensors = {"a": placed(streams, 1.0, NAN), "b": placed(streams, 1.0, device=1), "c": torch.tensor([INF])}
    probe = prober(tensors, streams=streams)
    probe.begin(PARAMETERS, 5)
    streams.finish()
    (found,) = probe.finished()
    assert (found.sampled, set(found.nonfinite)) == (3, {"a", "c"})


def test_while_one_sample_is_under_way_no_other_is_begun():
    streams = SimStreams()
    probe = prober({"w": placed(streams, 1.0)}, streams=streams)
    for step in (5, 6, 7):
        probe.begin(PARAMETERS, step)
    streams.finish()
    assert [one.step for one in probe.finished()] == [5]
    probe.begin(PARAMETERS, 8)
    streams.finish()
    assert [one.step for one in probe.finished()] == [8]


def test_a_graph_that_is_recorded_has_nothing_of_it_inside():
    streams = SimStreams()
    streams.recording = True
    probe = prober({"w": placed(streams, NAN)}, streams=streams)
    probe.begin(PARAMETERS, 5)
    assert probe.finished() == ()
    streams.recording = False
    streams.finish()
    assert probe.finished() == ()


def test_a_device_that_hangs_or_fails_is_not_waited_for_for_ever_and_raises_nothing():
    streams = SimStreams()
    weight = placed(streams, NAN)
    weight.grad = placed(streams, NAN)
    probe = prober({"w": weight}, streams=streams)
    probe.begin(PARAMETERS, 5)
    streams.stuck = True
    assert probe.finished(seconds=0.02) == ()
    streams.broken = True
    assert probe.finished(seconds=0.02) == ()
    probe.begin(GRADIENTS, 6)
    assert probe.finished() == ()


def test_after_a_rollback_the_old_sample_is_of_no_interest():
    streams = SimStreams()
    weight = placed(streams, NAN)
    probe = prober({"w": weight}, streams=streams)
    probe.begin(PARAMETERS, 9)
    probe.forget()
    streams.compute(0, lambda: weight.fill_(1.0))
    probe.begin(PARAMETERS, 5)
    streams.finish()
    assert probe.finished() == (Probed(step=5, what=Fact.PARAMETERS, sampled=1),)


def test_gradients_are_seen_without_the_scale_of_a_loss_scaler():
    """It lies on the device, too, and is another one for the next step."""
    streams = SimStreams()
    weight, scale = parameter([1.0, 1.0]), placed(streams, 8.0)
    weight.grad = streams.place(torch.tensor([24.0, 32.0]), 0)
    probe = prober({"w": weight}, streams=streams)
    probe.begin(GRADIENTS, 5, scale=scale, skips=placed(streams, 0.0))
    streams.compute(0, lambda: scale.fill_(16.0))
    streams.finish()
    assert probe.finished() == (Probed(step=5, what=Fact.GRADIENTS, sampled=1, norm=5.0),)


def test_gradients_of_a_step_that_a_loss_scaler_skips_are_not_seen():
    streams = SimStreams()
    weight = parameter([1.0, 1.0])
    weight.grad = streams.place(torch.tensor([INF, 32.0]), 0)
    probe = prober({"w": weight}, streams=streams)
    probe.begin(GRADIENTS, 5, scale=placed(streams, 8.0), skips=placed(streams, 1.0))
    streams.finish()
    assert probe.finished() == ()
    weight.grad = streams.place(torch.tensor([3.0, 4.0]), 0)
    probe.begin(GRADIENTS, 6)
    streams.finish()
    assert probe.finished() == (Probed(step=6, what=Fact.GRADIENTS, sampled=1, norm=5.0),)


def test_a_scale_under_which_squares_overflow_makes_no_infinity_of_gradients():
    weight = parameter([1.0, 1.0], [3e30, 4e30])
    probe = prober({"w": weight})
    probe.begin(GRADIENTS, 5, scale=torch.tensor(1e30), skips=torch.tensor(0.0))
    assert probe.finished() == (Probed(step=5, what=Fact.GRADIENTS, sampled=1),)


def test_metrics_of_a_device_are_known_later_and_in_order():
    streams = SimStreams()
    late = LateMetrics(streams)
    late.begin(1, {"loss": placed(streams, 1.5), "lr": 0.1})
    late.begin(2, {"lr": 0.2, "n": torch.tensor(3)})
    assert late.finished() == []
    streams.finish()
    assert late.finished() == [(1, {"loss": 1.5, "lr": 0.1}), (2, {"lr": 0.2, "n": 3})]
    assert late.finished() == []


def test_metrics_that_a_device_says_late_can_be_waited_for():
    streams = SimStreams()
    late = LateMetrics(streams)
    late.begin(1, {"loss": placed(streams, 1.5)})
    assert late.finished() == []
    assert late.finished(seconds=30.0) == [(1, {"loss": 1.5})]


def test_metrics_of_a_device_that_is_broken_are_not_waited_for():
    streams = SimStreams()
    late = LateMetrics(streams)
    late.begin(1, {"loss": placed(streams, 1.5)})
    streams.broken = True
    assert late.finished(seconds=1e9) == []


def test_metrics_are_those_of_their_step():
    streams = SimStreams()
    late = LateMetrics(streams)
    loss = placed(streams, 1.5)
    late.begin(1, {"loss": loss})
    streams.compute(0, lambda: loss.fill_(7.0))
    streams.finish()
    assert late.finished() == [(1, {"loss": 1.5})]


def test_metrics_on_the_host_are_known_at_once():
    late = LateMetrics()
    late.begin(1, {"loss": 1.5, "name": "x"})
    assert late.finished() == [(1, {"loss": 1.5, "name": "x"})]


def test_metrics_of_a_device_that_hangs_do_not_pile_up():
    streams = SimStreams()
    streams.stuck = True
    late = LateMetrics(streams)
    for step in range(10 * LATE):
        late.begin(step, {"loss": placed(streams, 1.0)})
        assert late.finished() == []
    streams.stuck = False
    streams.finish()
    assert [step for step, _ in late.finished()] == list(range(LATE))
    late.begin(999, {"loss": placed(streams, 1.0)})
    late.forget()
    streams.finish()
    assert late.finished() == []


# What comes from a program


def test_the_trained_parameters_of_a_program_have_names_and_tied_ones_one():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model["b"].bias.requires_grad_(False)
    found = dict(named_parameters({"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1), "n": 3}))
    assert list(found) == ["model/a.weight"]


def test_a_training_that_is_fed_a_nan_is_found_out():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    probe = Prober(lambda: named_parameters({"model": model}))
    bad = {}
    for step in range(1, 7):
        optimizer.zero_grad()
        model(torch.ones(2, 4) * (NAN if step == 4 else 1.0)).sum().backward()
        optimizer.step()
        probe.begin(BOTH, step)
        bad[step] = {(one.what, bool(one.nonfinite)) for one in probe.finished()}
    assert all(not broken for step in (1, 2, 3) for _, broken in bad[step])
    assert all(broken for step in (4, 5, 6) for _, broken in bad[step])


def test_the_norm_is_that_of_torch():
    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.Linear(50, 3))
    model(torch.randn(7, 30)).square().sum().backward()
    found = once(dict(named_parameters({"m": model})), GRADIENTS)
    assert found.norm == pytest.approx(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))
    assert float(norms([torch.ones(9)], 2.0)) == 3.0


@pytest.fixture
def alone():
    """A world of one rank."""
    store = torch.distributed.TCPStore("127.0.0.1", free_port(), 1, is_master=True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_of_a_sharded_tensor_the_local_shard_is_looked_at(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Linear(3, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    model(torch.ones(2, 3)).sum().backward()
    tensors = dict(named_parameters({"m": model}))
    found = once(tensors, GRADIENTS)
    assert (found.sampled, found.norm) == (2, pytest.approx(math.sqrt(12 * 4 + 4 * 4)))
    with torch.no_grad():
        model.weight.to_local()[1, 1] = NAN
    assert once(tensors).nonfinite == ("m/weight",)
