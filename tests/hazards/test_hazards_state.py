"""What a training state really holds: moments, ties, wrappers, averages, scalers, values that JSON cannot hold."""

from __future__ import annotations

import collections
import copy
import enum
import logging
import math
import random
import sys
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from lives import Death, Program, filled, lived, model_of, records, stored
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from holdfast import Checkpointer, every, latest
from holdfast.errors import (
    InvalidInput,
    StateError,
    StateMismatch,
    StorageUnavailable,
    UnsupportedTensor,
    UnsupportedValue,
    Unusable,
)

TOTAL, DEATHS = 7, (3, 5)


def loss_of(model, rows=8):
    x = torch.randn(rows, 16)
    return (model(x) - x.sum(1, keepdim=True)).pow(2).mean()


def stepped(model, optimizer, scheduler=None):
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return float(loss.detach())


def resumed(folder, state, **options):
    """A Checkpointer on what is in the folder, restored."""
    ckpt = Checkpointer(folder, run=1, state=state, resume="must", **options)
    ckpt.restore()
    return ckpt


# --- Trainings that must go on to the same bits


def build_plain(optimizer_of):
    def build():
        model = model_of(seed=torch.initial_seed())
        optimizer = optimizer_of(model)
        return Program({"model": model, "optimizer": optimizer}, lambda _: stepped(model, optimizer))

    return build


def build_average():
    model = model_of(seed=torch.initial_seed())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def update(_):
        loss = stepped(model, optimizer)
        average.update_parameters(model)
        return loss, int(average.n_averaged)

    return Program({"model": model, "optimizer": optimizer, "average": average}, update)


def build_scaled():
    """Skipped steps: every fourth loss is infinite, as a scaler that looks for its scale has it."""
    model = model_of(seed=torch.initial_seed())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    calls = [0]

    def update(_):
        while True:
            optimizer.zero_grad()
            before = [p.detach().clone() for p in model.parameters()]
            loss = loss_of(model) * (math.inf if torch.rand(()) < 0.25 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            calls[0] += 1
            if any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)):
                return float(loss.detach()), scaler.get_scale()

    return Program({"model": model, "optimizer": optimizer, "scaler": scaler}, update)


def build_schedulers():
    model = model_of(seed=torch.initial_seed())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedulers = torch.optim.lr_scheduler
    warm = schedulers.LinearLR(optimizer, 0.1, total_iters=3)
    steps = schedulers.MultiStepLR(optimizer, [2, 2, 4])
    chained = schedulers.SequentialLR(optimizer, [warm, steps], [3])
    plateau = schedulers.ReduceLROnPlateau(optimizer, patience=1)

    def update(_):
        loss = stepped(model, optimizer, chained)
        plateau.step(loss)
        return loss, [group["lr"] for group in optimizer.param_groups]

    return Program({"model": model, "optimizer": optimizer, "chained": chained, "plateau": plateau}, update)


def build_two_optimizers():
    generator, critic = model_of(seed=torch.initial_seed()), model_of(seed=torch.initial_seed() + 1)
    a, b = torch.optim.Adam(generator.parameters(), lr=1e-2), torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    return Program(
        {"generator": generator, "critic": critic, "a": a, "b": b},
        lambda _: (stepped(generator, a), stepped(critic, b)),
    )


def build_bfloat16():
    """bfloat16 parameters whose moments are kept in float32, as large trainings do."""
    model = nn.Linear(16, 1).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    for p in model.parameters():
        moments = {name: torch.zeros_like(p, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {"step": torch.tensor(0.0), **moments}

    def update(_):
        optimizer.zero_grad()
        x = torch.randn(4, 16)
        loss = (model(x.bfloat16()).float() - x.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                one = optimizer.state[p]
                one["step"] += 1
                one["exp_avg"].lerp_(p.grad.float(), 0.1)
                one["exp_avg_sq"].lerp_(p.grad.float() ** 2, 0.1)
                p.sub_((0.01 * one["exp_avg"] / (one["exp_avg_sq"].sqrt() + 1e-8)).bfloat16())
        optimizer.zero_grad()
        optimizer.step()  # no gradients: it only tells that a step was made
        return float(loss.detach()), {str(one["exp_avg"].dtype) for one in optimizer.state.values()}

    return Program({"model": model, "optimizer": optimizer}, update)


def build_numpy():
    """NumPy's and Python's generators decide what is trained on: 128-bit integers and Gauss's spare."""
    model = model_of(seed=torch.initial_seed())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = np.random.default_rng(torch.initial_seed())

    def update(_):
        scale = float(own.normal()) + random.gauss(0, 1) + float(np.random.randn())
        optimizer.zero_grad()
        (loss_of(model) * scale).backward()
        optimizer.step()
        return scale

    return Program({"model": model, "optimizer": optimizer, "own": own}, update)


def frozen_first(model):
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


BUILDS = {
    "average of weights": build_average,
    "gradient scaler with skipped steps": build_scaled,
    "schedulers": build_schedulers,
    "two optimizers": build_two_optimizers,
    "bfloat16 with float32 moments": build_bfloat16,
    "numpy and python generators": build_numpy,
    "frozen parameters": build_plain(frozen_first),
    "amsgrad": build_plain(lambda model: torch.optim.AdamW(model.parameters(), amsgrad=True)),
    "fused": build_plain(lambda model: torch.optim.AdamW(model.parameters(), fused=True)),
    "a tensor for the rate": build_plain(lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-2))),
    "adagrad": build_plain(lambda model: torch.optim.Adagrad(model.parameters(), lr=1e-2)),
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_training_goes_on_to_the_same_bits(tmp_path, name):
    """Hazards 8, 14 and 43; users-ask 30 and 39: three lives, then every object says the same about itself."""
    whole = lived(tmp_path / "whole", BUILDS[name], total=TOTAL)
    assert lived(tmp_path / "torn", BUILDS[name], total=TOTAL, deaths=DEATHS) == whole


def test_moments_of_a_restored_optimizer_are_not_shared_with_anything(tmp_path):
    """Hazard 8: load_state_dict keeps the tensors that it is given; two programs would train one moment."""
    model = nn.Linear(16, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with Checkpointer(tmp_path, run="r", state={"model": model, "optimizer": optimizer}) as ckpt:
        for _ in ckpt.steps(2):
            stepped(model, optimizer)
        ckpt.save()
        held = optimizer.state[model.weight]["exp_avg"]
        before = held.clone()
        held.zero_()
        ckpt.restore("run-001@2")
        assert torch.equal(optimizer.state[model.weight]["exp_avg"], before)
    copies = [copy.deepcopy((model, optimizer)) for _ in range(2)]
    for one in copies:
        resumed(tmp_path, dict(zip(("model", "optimizer"), one, strict=True))).close()
    addresses = [one.state[m.weight]["exp_avg"].data_ptr() for m, one in [*copies, (model, optimizer)]]
    assert len(set(addresses)) == 3


def test_optimizer_state_follows_the_name_when_the_program_orders_parameters_otherwise(tmp_path):
    """Hazard 7; users-ask 10: by number, the moments of one layer went to another of the same shape."""

    def made(order):
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        named = [p for number in order for p in model[number].parameters()]
        return model, torch.optim.Adam(named)

    first, second = made([0, 1]), made([1, 0])
    with Checkpointer(tmp_path, run="r", state=dict(zip(("model", "optimizer"), first, strict=True))) as ckpt:
        for _ in ckpt.steps(1):
            stepped(*first)
        ckpt.save()
    resumed(tmp_path, dict(zip(("model", "optimizer"), second, strict=True))).close()
    for (name, was), now in zip(first[0].named_parameters(), second[0].parameters(), strict=True):
        assert torch.equal(first[1].state[was]["exp_avg"], second[1].state[now]["exp_avg"]), name


def test_a_layer_that_is_unfrozen_later_is_a_mismatch_that_is_named(tmp_path):
    """Users-ask 27 and 34: gradual unfreezing adds a group; the program that has it not yet is told, not filled."""
    model = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=1e-2)
    with Checkpointer(tmp_path, run="r", state={"model": model, "optimizer": optimizer}) as ckpt:
        for step in ckpt.steps(4):
            if step == 2:
                optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 1e-3})
            stepped(model, optimizer)
        ckpt.save()
    other = copy.deepcopy(model)
    before = torch.optim.AdamW(other[1].parameters(), lr=1e-2)
    weights = copy.deepcopy(other.state_dict())
    with pytest.raises(StateMismatch, match=r"0\.weight"):
        resumed(tmp_path, {"model": other, "optimizer": before})
    assert all(torch.equal(weights[key], tensor) for key, tensor in other.state_dict().items())
    before.add_param_group({"params": list(other[0].parameters()), "lr": 1e-3})
    with resumed(tmp_path, {"model": other, "optimizer": before}):
        assert torch.equal(before.state[other[0].weight]["exp_avg"], optimizer.state[model[0].weight]["exp_avg"])


def test_a_copy_of_the_optimizer_that_trains_other_parameters_is_refused(tmp_path):
    """Hazard 47: copy.deepcopy(optimizer) owns copies of the parameters; it would train what nobody saves."""
    model = nn.Linear(16, 1)
    optimizer = copy.deepcopy(torch.optim.SGD(model.parameters(), lr=0.1))
    with (
        Checkpointer(tmp_path, run="r", state={"model": model, "optimizer": optimizer}) as ckpt,
        pytest.raises(StateError, match="optimizer"),
    ):
        first_step(ckpt)


def test_a_model_that_was_replaced_after_the_optimizer_was_built_is_refused_before_the_first_step(tmp_path):
    """Hazard 47."""
    old = nn.Linear(16, 1)
    optimizer = torch.optim.SGD(old.parameters(), lr=0.1)
    model = nn.Linear(16, 1)
    with (
        Checkpointer(tmp_path, run="r", state={"model": model, "optimizer": optimizer}) as ckpt,
        pytest.raises(StateError, match="optimizer"),
    ):
        first_step(ckpt)


def first_step(ckpt):
    for _ in ckpt.steps(1):
        pytest.fail("a step was made before the refusal")


class Strange:
    """Something with a state that no codec can write."""

    def state_dict(self):
        return {"handle": object()}

    def load_state_dict(self, state):
        """Nothing."""


def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    """Hazard 21; users-ask 39: not at the first save, hours later."""
    model = nn.Linear(16, 1)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "strange": Strange()}
    with Checkpointer(tmp_path, run="r", state=state) as ckpt, pytest.raises(UnsupportedValue, match="strange/handle"):
        first_step(ckpt)


def test_a_model_on_meta_is_refused_before_the_first_step(tmp_path):
    """Hazard 43; users-ask 33: empty placeholders were saved as weights."""
    model = nn.Linear(16, 1, device="meta")
    with (
        Checkpointer(tmp_path, run="r", state={"model": model}) as ckpt,
        pytest.raises(UnsupportedTensor, match="model/weight"),
    ):
        first_step(ckpt)


# --- Ties, wrappers, names


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def test_tied_weights_are_stored_once_and_train_on_tied(tmp_path):
    """Users-ask 40."""

    def build():
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def update(_):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.randint(20, (8,))), torch.randint(20, (8,)))
            loss.backward()
            optimizer.step()
            return float(loss.detach()), model.head.weight is model.embedding.weight

        return Program({"model": model, "optimizer": optimizer}, update)

    whole = lived(tmp_path / "whole", build, total=TOTAL)
    assert lived(tmp_path / "torn", build, total=TOTAL, deaths=DEATHS) == whole
    record = records(tmp_path / "torn")[-1]
    assert record.bytes.logical == 3 * 20 * 16 * 4 + 4, "one weight, two moments, one step number"


WRAPPINGS = {
    "plain": lambda model: model,
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "compiled data parallel": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("now", WRAPPINGS)
@pytest.mark.parametrize("then", WRAPPINGS)
def test_any_wrapping_is_resumed_by_any_other(tmp_path, then, now):
    """Users-ask 38 and hazard 44, through the whole Checkpointer, optimizer included."""

    def made(wrap, value):
        inner = filled(nn.Linear(16, 1), value)
        optimizer = torch.optim.SGD(inner.parameters(), lr=0.0, momentum=0.9)
        return inner, {"model": wrap(inner), "optimizer": optimizer}

    inner, state = made(WRAPPINGS[then], 0.5)
    with Checkpointer(tmp_path, run="r", state=state) as ckpt:
        for _ in ckpt.steps(1):
            loss_of(inner).backward()
            state["optimizer"].step()
        ckpt.save()
    other, second = made(WRAPPINGS[now], 0.0)
    with resumed(tmp_path, second):
        assert torch.equal(other.weight, inner.weight)
        moments = [s["optimizer"].state[m.weight]["momentum_buffer"] for s, m in ((state, inner), (second, other))]
        assert torch.equal(*moments)


def test_a_model_with_a_submodule_called_module_keeps_its_names_inside_a_wrapper(tmp_path):
    """Hazard 44: cut as text, `module.module.weight` and `module.weight` collide."""

    class Owner(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.module = filled(nn.Linear(16, 1), value)
            self.weight = nn.Parameter(torch.full((1, 16), 10 * value))

    with Checkpointer(tmp_path, run="r", state={"model": nn.DataParallel(Owner(1.0))}) as ckpt:
        ckpt.save()
    plain = stored(tmp_path, "run-001", Owner(0.0))
    assert (plain.module.weight[0, 0].item(), plain.weight[0, 0].item()) == (1.0, 10.0)


# --- Values


class Phase(enum.Enum):
    WARM = "warm"


VALUES = {
    "nan": math.nan,
    "inf": [math.inf, -math.inf, -0.0],
    "enormous": 10**400 + 1,
    "negative enormous": -(2**200),
    "tuple": (0.9, 0.999),
    "set": {1, "one", None},
    "frozenset": frozenset({(1, 2)}),
    "deque": collections.deque([1, 2, 3], maxlen=3),
    "counter": collections.Counter({2: 2, 4: 1}),
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "keys": {1: "int", (1, 2): "tuple", None: "none", False: "bool", 2.5: "float"},
    "bytes": b"\0\xff",
    "complex": 1 - 2j,
    "path": PurePosixPath("a/b"),
    "enum": Phase.WARM,
    "torch": [torch.float16, torch.Size([2, 3]), torch.device("cpu")],
    "numpy": [np.float32(0.1), np.int64(-1), np.arange(3, dtype=np.int16)],
    "tensor": torch.arange(3),
    "names": {"a/b": 1, "~": 2, "$": 3, "": 4, "ü\n": 5},
    "bit generator": np.random.PCG64(1).state,
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_from_a_checkpoint_as_it_was(tmp_path, name):
    """Hazards 14 and 46."""
    model = filled(nn.Linear(2, 1), 1.0)
    with Checkpointer(tmp_path, run="r", state={"model": model}) as ckpt:
        ckpt.values["it"] = copy.deepcopy(VALUES[name])
        ckpt.save()
    with resumed(tmp_path, {"model": model}) as again:
        assert same(again.values["it"], VALUES[name])


def same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return a.dtype == b.dtype and bool((a == b).all())
    if isinstance(a, float) and a == 0:
        return math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b) or (a != a and b != b)


def test_a_plain_value_in_the_state_is_refused_with_the_place_where_it_belongs(tmp_path):
    """Hazard 46."""
    with (
        Checkpointer(tmp_path, run="r", state={"model": nn.Linear(2, 1), "best": 3}) as ckpt,
        pytest.raises(InvalidInput, match=r"ckpt\.values\['best'\]"),
    ):
        ckpt.save()


def test_values_changed_after_a_save_are_not_in_it_and_a_restore_puts_them_back(tmp_path):
    """Users-ask 1 and 30: counters and trackers kept as plain Python values."""
    model = nn.Linear(2, 1)
    with Checkpointer(tmp_path, run="r", state={"model": model}) as ckpt:
        ckpt.values.update(best=0.5, history=[1, 2])
        ckpt.save()
        held = ckpt.values
        ckpt.values["history"].append(3)
        ckpt.values["best"] = 0.9
        ckpt.values["more"] = True
        ckpt.restore("run-001")
        assert ckpt.values is held
        assert ckpt.values == {"best": 0.5, "history": [1, 2]}


# --- Non-finite metrics


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_makes_no_unreadable_record_and_is_never_best(tmp_path, bad):
    """Hazard 14: JSON made null of it, and the checkpoint could not be read."""
    from holdfast import best

    model = nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Checkpointer(
        tmp_path,
        run="r",
        state={"model": model, "optimizer": optimizer},
        save=every(steps=1) | best("loss"),
        keep=best("loss") | latest(9),
    ) as ckpt:
        for step in ckpt.steps(3):
            stepped(model, optimizer)
            ckpt.log(loss=bad if step == 0 else float(step))
    losses = [record.metrics["loss"] for record in records(tmp_path)]
    assert same(losses[0], bad)
    assert losses[1:] == [1.0, 2.0]
    import holdfast
    from holdfast.catalog.naming.references import resolve

    assert resolve(holdfast.open(tmp_path), "run-001@best:loss").step == 2
    assert resolve(holdfast.open(tmp_path), "run-001@best:loss:max").step == 3


def test_metrics_are_not_read_before_a_checkpoint_needs_them(tmp_path):
    """Hazard 51: reading a tensor of a device waits for the device."""
    unreadable = torch.empty((), device="meta")  # as a tensor of a device that must not be waited for
    model = nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Checkpointer(
        tmp_path, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=3), keep=latest(9)
    ) as ckpt:
        for step in ckpt.steps(3):
            stepped(model, optimizer)
            ckpt.log(loss=torch.tensor(2.5) if step == 2 else unreadable)
    assert ckpt.last.metrics == {"loss": 2.5}


# --- Frozen tensors, anomalies, forgotten state


def test_rows_of_a_frozen_table_that_are_swapped_are_saved(tmp_path):
    """Hazard 15: the same bytes in another order; a sum of them would not tell."""
    model = nn.Embedding(64, 16)
    model.weight.requires_grad_(False)
    with Checkpointer(tmp_path, run="r", state={"model": model}, save=every(steps=1), keep=latest(9)) as ckpt:
        for step in ckpt.steps(2):
            if step == 1:
                with torch.no_grad():
                    model.weight[[0, 1]] = model.weight[[1, 0]]
    first, second = (stored(tmp_path, f"run-001@{step}", nn.Embedding(64, 16)).weight for step in (1, 2))
    assert torch.equal(second, model.weight)
    assert not torch.equal(first, second)


def test_forgotten_state_is_named_once_at_the_start(tmp_path, caplog):
    """Users-ask 30 and hazard 47: an average, a scheduler and a generator that nobody registered."""
    model = nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = AveragedModel(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    state = {"model": model, "optimizer": optimizer}
    with caplog.at_level(logging.WARNING), Checkpointer(tmp_path, run="r", state=state) as ckpt:
        for _ in ckpt.steps(2):
            stepped(model, optimizer, scheduler)
            average.update_parameters(model)
    said = [record.message for record in caplog.records]
    assert sum("average" in text for text in said) == 1
    assert sum("scheduler" in text for text in said) == 1


# --- One instant


def test_what_changes_right_after_a_save_has_returned_is_not_in_it(tmp_path):
    """Users-ask 1: parameters, moments, counters and the step tensor of Adam, all of them on the CPU."""
    model = nn.Linear(200, 200)
    optimizer = torch.optim.AdamW(model.parameters())
    with Checkpointer(tmp_path, run="r", state={"model": model, "optimizer": optimizer}) as ckpt:
        ckpt.values["n"] = [1]
        for _ in ckpt.steps(1):
            model(torch.randn(3, 200)).sum().backward()
            optimizer.step()
        ckpt.save()
        kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        ckpt.values["n"].append(2)
        with torch.no_grad():
            for tensor in [*model.parameters(), *(t for s in optimizer.state.values() for t in s.values())]:
                tensor.add_(1)
        ckpt.restore("run-001@1")
        assert ckpt.values == {"n": [1]}
    assert repr((model.state_dict(), optimizer.state_dict())) == repr(kept)
    assert torch.equal(model.weight, kept[0]["weight"])


def test_a_save_in_the_middle_of_a_body_waits_for_the_end_of_the_step(tmp_path):
    """Hazards 9 and 26; users-ask 8: the weights are clipped and averaged after the step; none of it may be torn."""
    model = filled(nn.Linear(16, 1), 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Checkpointer(
        tmp_path, run="r", state={"model": model, "optimizer": optimizer}, save=every(steps=99), keep=latest(9)
    ) as ckpt:
        for step in ckpt.steps(3):
            assert step == 0 or ckpt.save().step == step, "before anything has changed it is made at once"
            optimizer.step()
            assert ckpt.save() is None
            filled(model, step + 1.0)
    for step in (1, 2, 3):
        assert stored(tmp_path, f"run-001@{step}", nn.Linear(16, 1)).weight[0, 0].item() == step


# --- Accumulation


def test_saves_wait_for_the_end_of_an_accumulation(tmp_path):
    """Hazard 26: a save on micro-step 3 of 8 loses three eighths of a gradient, in silence."""

    def build():
        model = model_of(seed=torch.initial_seed())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = [torch.full((4, 16), float(n)) for n in range(8)]
        micro = [0]

        def update(batch):
            (model(batch + torch.randn(4, 16)).mean() / 3).backward()
            micro[0] += 1
            if micro[0] % 3 == 0:
                optimizer.step()
                optimizer.zero_grad()

        return Program({"model": model, "optimizer": optimizer}, update, batches, {"save": every(steps=1)})

    whole = lived(tmp_path / "whole", build, total=6)
    assert lived(tmp_path / "torn", build, total=6, deaths=(1, 4)) == whole
    assert all("gradients" not in record.exactness for record in records(tmp_path / "torn"))


def test_an_optimizer_that_no_hook_sees_is_counted_by_accumulate(tmp_path):
    """Hazards 9 and 26: a foreign optimizer, in one process with gradients over two batches."""

    class Foreign:
        def __init__(self, model):
            self.model, self.steps = model, 0

        def step(self):
            self.steps += 1
            with torch.no_grad():
                for p in self.model.parameters():
                    p.sub_(0.1 * p.grad)

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    def build():
        model = model_of(seed=torch.initial_seed())
        optimizer, micro = Foreign(model), [0]

        def update(batch):
            model(batch + torch.randn(4, 16)).mean().backward()
            micro[0] += 1
            if micro[0] % 2 == 0:
                optimizer.step()
                model.zero_grad()

        data = [torch.full((4, 16), float(n)) for n in range(6)]
        return Program(
            {"model": model, "optimizer": optimizer}, update, data, {"accumulate": 2, "save": every(steps=1)}
        )

    whole = lived(tmp_path / "whole", build, total=6)
    assert lived(tmp_path / "torn", build, total=6, deaths=(2, 4)) == whole


def test_a_training_whose_steps_cannot_be_seen_is_saved_all_the_same_and_said_to_be_inexact(
    tmp_path, monkeypatch, caplog
):
    """Hazard 26: every step is skipped, or made where no hook sees it; after a bound the save is made and says so."""
    monkeypatch.setattr("holdfast.recovery.steps.progress.PATIENCE", 5)
    monkeypatch.setattr("holdfast.recovery.steps.progress.HINT", 5)
    model = nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = []
    with (
        pytest.raises(Death),
        caplog.at_level(logging.WARNING),
        Checkpointer(
            tmp_path, run="r", state={"model": model, "optimizer": optimizer}, save=every(minutes=0.000001)
        ) as ckpt,
    ):
        for _ in ckpt.batches([torch.zeros(1)] * 4, total_steps=3):
            loop.append(1)
            if len(loop) == 8:
                raise Death
    (record,) = records(tmp_path)
    assert not record.exactness["gradients"].exact
    assert "no optimizer step in 5 batches" in caplog.text


def test_after_a_failed_restore_nothing_half_restored_is_ever_saved(tmp_path, monkeypatch):
    """Hazard 16: the load fails with the first objects filled; the Checkpointer can only be thrown away."""
    model = nn.Linear(16, 1)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with Checkpointer(tmp_path, run="r", state=state) as ckpt:
        ckpt.save()
    before = [record.id for record in records(tmp_path)]

    def fails(*_):
        raise StorageUnavailable("the disk went away")

    with Checkpointer(tmp_path, run=1, state=state) as ckpt:
        monkeypatch.setattr(
            sys.modules["holdfast.state.restore"], "differences", fails
        )  # everything is filled, nothing is compared
        with pytest.raises(StorageUnavailable, match="went away"):
            ckpt.restore()
        monkeypatch.undo()
        with pytest.raises(Unusable):
            ckpt.save()
    assert [record.id for record in records(tmp_path)] == before
