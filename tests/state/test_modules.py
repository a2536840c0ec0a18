"""Modules: canonical names through wrappers, in-place filling, ties, extra state."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from holdfast.errors import RestoreFailed, StateError, StateMismatch, UnsupportedTensor
from holdfast.state import capture, modules, restore

from .state_roundtrip import digest, save


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 300), nn.BatchNorm1d(300), nn.Linear(300, 2))


def names(objects):
    return [path for spec in capture(objects, own={}).skeleton.tensors for path in (spec.name, *spec.aliases)]


class OwnsAModule(nn.Module):
    """Has submodules with the names of wrappers."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.module = nn.Linear(3, 3)
        self._orig_mod = nn.Linear(3, 3)
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x):
        return self._orig_mod(self.module(x)) * self.weight


class Tied(nn.Module):
    def __init__(self, seed=0, tie=True):
        super().__init__()
        torch.manual_seed(seed)
        self.emb = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        if tie:
            self.head.weight = self.emb.weight


def wrap(kind, module):
    if kind == "compiled":
        return torch.compile(module, backend="eager")
    if kind == "data parallel":
        return nn.DataParallel(module)
    if kind == "activation checkpointing":
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        return checkpoint_wrapper(module)
    if kind == "compiled within a checkpoint wrapper within DataParallel":
        return wrap("data parallel", wrap("activation checkpointing", wrap("compiled", module)))
    return module


WRAPPERS = [
    "plain",
    "compiled",
    "data parallel",
    "activation checkpointing",
    "compiled within a checkpoint wrapper within DataParallel",
]


@pytest.mark.parametrize("saved", WRAPPERS)
@pytest.mark.parametrize("loaded", WRAPPERS)
def test_any_wrapping_loads_into_any_other(saved, loaded):
    """Users-ask 38: prefixes of wrappers in keys left models with random weights."""
    first, second = net(0), net(1)
    objects = {"model": wrap(saved, first)}
    assert names(objects) == names({"model": first})
    target = {"model": wrap(loaded, second)}
    restore(target, save(objects))
    assert digest(target) == digest({"model": first})
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


class Positions(nn.Module):
    """The same name, once of a parameter and once of a buffer."""

    def __init__(self, *, buffer, fill):
        super().__init__()
        if buffer:
            self.register_buffer("pos", torch.full((3,), fill))
        else:
            self.pos = nn.Parameter(torch.full((3,), fill), requires_grad=False)


@pytest.mark.parametrize("buffer", [True, False])
def test_a_frozen_parameter_may_have_become_a_buffer_and_the_reverse(buffer):
    second = Positions(buffer=buffer, fill=2.0)
    restore({"m": second}, save({"m": Positions(buffer=not buffer, fill=1.0)}))
    assert torch.equal(second.pos, torch.ones(3))
    assert isinstance(second.pos, nn.Parameter) is not buffer


def test_wrapped_submodules_have_their_plain_names():
    inner = net()
    inner[0] = wrap("activation checkpointing", wrap("compiled", inner[0]))
    assert names({"model": inner}) == names({"model": net()})


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_model_that_owns_a_submodule_called_module_keeps_its_names(kind):
    """Hazards 44: cutting the prefix as text makes names collide."""
    first, second = OwnsAModule(0), OwnsAModule(1)
    objects = {"m": wrap(kind, first)}
    found = names(objects)
    assert sorted(found) == sorted(f"m/{name}" for name in first.state_dict())
    restore({"m": second}, save(objects))
    assert digest({"m": second}) == digest({"m": first})


def test_an_optimizer_of_the_wrapped_model_has_canonical_names():
    model = net()
    wrapped = wrap("compiled", model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    wrapped(torch.rand(4, 8)).sum().backward()
    optimizer.step()
    assert "optimizer/state/model/0.weight/momentum_buffer" in names({"model": wrapped, "optimizer": optimizer})


def test_optimizer_names_that_carry_prefixes_are_not_stored():
    wrapped = wrap("compiled", net(0))
    first = torch.optim.SGD(wrapped.named_parameters(), lr=0.1)
    second_net = net(1)
    second = torch.optim.SGD(second_net.named_parameters(), lr=0.2)
    restore({"model": second_net, "opt": second}, save({"model": wrapped, "opt": first}))
    assert second.param_groups[0].get("param_names", ["0.weight"])[0] == "0.weight"


def test_buffers_are_saved_if_they_are_persistent():
    def make(value):
        module = nn.Module()
        module.register_buffer("kept", torch.full((400,), value))
        module.register_buffer("scratch", torch.full((400,), value), persistent=False)
        module.register_buffer("none", None)
        module.register_parameter("no_bias", None)
        return module

    first, second = make(1.0), make(2.0)
    assert names({"m": first}) == ["m/kept"]
    restore({"m": second}, save({"m": first}))
    assert (second.kept[0], second.scratch[0]) == (1, 2)


def test_lifetimes_tell_frozen_from_trained():
    model = net()
    model[0].requires_grad_(False)
    found = {spec.name: spec.lifetime for spec in capture({"m": model}).skeleton.tensors}
    assert {name for name, lifetime in found.items() if lifetime == "frozen"} == {"m/0.weight", "m/0.bias"}
    assert found["m/1.running_mean"] == "parameter"


def test_an_average_of_weights_is_never_frozen():
    """It changes at every update, although it needs no gradient."""
    average = torch.optim.swa_utils.AveragedModel(net())
    average.requires_grad_(False)
    assert {spec.lifetime for spec in capture({"ema": average}).skeleton.tensors} == {"parameter"}


def test_tied_parameters_are_one_tensor_with_aliases_and_stay_tied():
    """Users-ask 40: tied weights crashed the save or came back unset."""
    first, second = Tied(0), Tied(1)
    snapshot = capture({"m": first})
    assert snapshot.aliases == {"m/emb.weight": ("m/head.weight",)}
    assert snapshot.logical_bytes == 50 * 16 * 4
    address = second.emb.weight.data_ptr()
    restore({"m": second}, save({"m": first}))
    assert second.head.weight is second.emb.weight
    assert second.emb.weight.data_ptr() == address
    assert torch.equal(second.head.weight, first.emb.weight)


def test_a_tie_that_the_program_lost_is_refused_before_anything_changes():
    second = Tied(1, tie=False)
    before = digest({"m": second})
    with pytest.raises(StateMismatch, match=r"m/emb.weight, m/head.weight: were one tensor when they were stored"):
        restore({"m": second}, save({"m": Tied(0)}))
    assert digest({"m": second}) == before


def test_a_tie_that_the_checkpoint_does_not_have_is_refused():
    with pytest.raises(StateMismatch, match="are one tensor now, and were stored apart"):
        restore({"m": Tied(1)}, save({"m": Tied(0, tie=False)}))


def test_one_module_under_two_names_is_stored_once():
    shared = nn.Linear(30, 30)
    first = nn.Sequential(shared, nn.ReLU(), shared)
    assert capture({"m": first}).logical_bytes == (900 + 30) * 4


def test_a_tie_across_objects_is_one_tensor():
    first, second = Tied(0), Tied(1)
    objects = {"m": first, "head": first.head}
    assert capture(objects).logical_bytes == 50 * 16 * 4
    restore({"m": second, "head": second.head}, save(objects))
    assert digest({"m": second, "head": second.head}) == digest(objects)


class Counting(nn.Module):
    """Extra state as get_extra_state gives it: sets, bytes, tensors."""

    def __init__(self, extra=None):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_extra_state_of_any_kind_comes_back():
    """Hazards 14: get_extra_state may return sets, bytes, tensors."""
    extra = {"seen": {1, 2}, "blob": b"\x00", "amax": torch.rand(500), "pair": (1, None)}
    first, second = nn.Sequential(Counting(extra)), nn.Sequential(Counting())
    restore({"m": second}, save({"m": first}))
    assert second[0].extra["seen"] == {1, 2}
    assert second[0].extra["pair"] == (1, None)
    assert torch.equal(second[0].extra["amax"], extra["amax"])
    assert second[0].extra["amax"].data_ptr() != extra["amax"].data_ptr()


class Packed(nn.Module):
    """Overrides _save_to_state_dict, as quantised layers do."""

    def __init__(self, scale):
        super().__init__()
        self.weight = nn.Parameter(torch.full((300,), scale))
        self.scale = scale
        self.table = torch.full((300,), scale)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "scale"] = self.scale
        destination[prefix + "table"] = self.table

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.scale = state_dict.pop(prefix + "scale")
        self.table = state_dict.pop(prefix + "table")
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_a_module_that_saves_more_than_its_tensors_is_asked_for_it():
    first, second = nn.Sequential(Packed(1.5)), nn.Sequential(Packed(2.5))
    weight = second[0].weight.data_ptr()
    restore({"m": second}, save({"m": first}))
    assert (second[0].scale, second[0].table[0], second[0].weight[0]) == (1.5, 1.5, 1.5)
    assert second[0].weight.data_ptr() == weight
    assert first[0].table.data_ptr() != second[0].table.data_ptr()


def test_a_module_that_changes_what_it_loads_is_an_error_that_names_the_entry():
    class Rounding(Counting):
        def set_extra_state(self, state):
            self.extra = round(state)

    with pytest.raises(RestoreFailed, match=r"m/extra/_extra_state: stored 1.5, is 2 after"):
        restore({"m": Rounding()}, save({"m": Rounding(1.5)}))


def test_a_lazy_module_is_refused_with_its_path():
    with pytest.raises(UnsupportedTensor, match=r"m/0.weight is lazy.*forward pass"):
        capture({"m": nn.Sequential(nn.LazyLinear(3))})


def test_a_module_on_meta_is_refused_before_anything_changes():
    with pytest.raises(UnsupportedTensor, match="m/weight is on the meta device"):
        restore({"m": nn.Linear(8, 300, device="meta")}, save({"m": nn.Linear(8, 300)}))


def test_parametrised_modules_come_back():
    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(9, 40)),
            nn.utils.parametrizations.spectral_norm(nn.Linear(40, 9)),
        )

    first, second = make(0), make(1)
    first(torch.rand(2, 9))
    restore({"m": second}, save({"m": first}))
    assert digest({"m": second}) == digest({"m": first})


def test_an_average_goes_on_where_it_was():
    def make(seed):
        model = net(seed)
        return {"model": model, "ema": torch.optim.swa_utils.AveragedModel(model)}

    def update(objects):
        with torch.no_grad():
            for p in objects["model"].parameters():
                p.mul_(1.5)
        objects["ema"].update_parameters(objects["model"])

    first, second = make(0), make(1)
    update(first), update(first)
    restore(second, save(first))
    update(first), update(second)
    assert second["ema"].n_averaged == 3
    assert digest(second) == digest(first)


def test_fsdp1_is_refused_with_the_way_out():
    from torch.distributed.fsdp.fully_sharded_data_parallel import FullyShardedDataParallel

    wrapped = nn.Module.__new__(FullyShardedDataParallel)
    with pytest.raises(StateError, match="fully_shard"):
        modules.unwrapped(wrapped)


def test_parameters_of_fsdp2_and_ddp_are_named_after_a_forward_without_a_backward(tmp_path):
    """Hazards 7: after an evaluation root parameters are plain tensors that the optimizer does not know."""
    script = tmp_path / "one_rank.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import torch, torch.distributed as dist
            from torch import nn
            from torch.distributed.fsdp import fully_shard
            from torch.nn.parallel import DistributedDataParallel
            from holdfast.state import capture

            dist.init_process_group("gloo", init_method="file://{tmp_path}/rendezvous", rank=0, world_size=1)
            def net():
                torch.manual_seed(0)
                return nn.Sequential(nn.Linear(8, 40), nn.Linear(40, 2))
            def names(objects):
                return [spec.name for spec in capture(objects).skeleton.tensors]
            plain = net()
            ddp = DistributedDataParallel(net())
            assert names({{"m": ddp}}) == names({{"m": plain}})
            from torch.distributed.device_mesh import init_device_mesh
            mesh = init_device_mesh("cpu", (1,))
            sharded = net()
            for layer in sharded:
                fully_shard(layer, mesh=mesh)
            fully_shard(sharded, mesh=mesh)
            optimizer = torch.optim.AdamW(sharded.parameters())
            sharded(torch.rand(4, 8)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                sharded(torch.rand(4, 8))
            first = {{"m": sharded, "optimizer": optimizer}}
            assert "optimizer/state/m/0.weight/exp_avg" in names(first)

            from state_roundtrip import save, digest
            from holdfast.state import restore
            def make(seed):
                torch.manual_seed(seed)
                model = fully_shard(net(), mesh=mesh)
                return {{"m": model, "optimizer": torch.optim.AdamW(model.parameters())}}
            def step(objects):
                objects["optimizer"].zero_grad()
                objects["m"](torch.ones(4, 8)).sum().backward()
                objects["optimizer"].step()
            first, second = make(0), make(1)
            step(first)
            with torch.no_grad():
                second["m"](torch.rand(4, 8))
            restore(second, save(first))
            step(first), step(second)
            assert digest(second) == digest(first)
            assert len({{type(t) for s in second["optimizer"].state.values() for t in s.values()}}) == 2
            dist.destroy_process_group()
            print("done")
            """
        )
    )
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == "done\n"


class Counts(nn.Module):
    """Keeps a counter in its state_dict, as was usual before get_extra_state."""

    def __init__(self, seen=0):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.seen = seen

    def state_dict(self, *args, prefix="", **kwargs):
        found = super().state_dict(*args, prefix=prefix, **kwargs)
        found[prefix + "seen"] = torch.tensor(self.seen)
        return found

    def load_state_dict(self, state, strict=True):
        rest = dict(state)
        self.seen = int(rest.pop("seen"))
        return super().load_state_dict(rest, strict)


class Metric(nn.Module):
    """As the metrics of a well-known library: states are no buffers, and are taken back in _load_from_state_dict."""

    def __init__(self, total=0.0):
        super().__init__()
        self.total = torch.tensor(total)

    def state_dict(self, destination=None, prefix="", keep_vars=False):
        found = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        found[prefix + "total"] = self.total
        return found

    def _load_from_state_dict(self, state, prefix, *rest):
        self.total = state.pop(prefix + "total")
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize("nested", [False, True])
def test_what_an_override_of_state_dict_adds_is_stored_and_handed_back(nested):
    def make(seen):
        return nn.Sequential(Counts(seen), nn.Linear(3, 3)) if nested else Counts(seen)

    first, second = make(41), make(7)
    objects = {"model": second, "optimizer": torch.optim.SGD(second.parameters(), lr=1)}
    restore(objects, save({"model": first, "optimizer": torch.optim.SGD(first.parameters(), lr=1)}))
    assert (second[0] if nested else second).seen == 41
    assert digest({"m": second}) == digest({"m": first})


def test_metrics_in_a_model_keep_their_totals():
    first, second = nn.Sequential(nn.Linear(2, 2), Metric(3.5)), nn.Sequential(nn.Linear(2, 2), Metric())
    restore({"model": second}, save({"model": first}))
    assert second[1].total.item() == 3.5


def test_an_override_that_drops_what_it_is_given_is_found_out():
    class Drops(Counts):
        def load_state_dict(self, state, strict=True):
            return None

    with pytest.raises(RestoreFailed, match="seen"):
        restore({"model": Drops()}, save({"model": Drops(5)}))


def test_an_override_without_a_way_back_is_refused_with_its_path():
    class OneWay(nn.Linear):
        def state_dict(self, *args, prefix="", **kwargs):
            return super().state_dict(*args, prefix=prefix, **kwargs) | {prefix + "seen": 1}

    class Strange(nn.Linear):
        def state_dict(self, path):
            return {}

    with pytest.raises(StateError, match=r"^0\.1 \(OneWay\): its state_dict\(\) adds seen, .*get_extra_state"):
        capture({"model": nn.Sequential(nn.Sequential(nn.Linear(1, 1), OneWay(1, 1)))})
    with pytest.raises(StateError, match=r"^the module \(Strange\): .*without arguments"):
        capture({"model": Strange(1, 1)})


def test_an_override_that_only_renames_or_hides_is_harmless():
    class Renames(nn.Linear):
        def state_dict(self, *args, **kwargs):
            return {f"model.{key}": value for key, value in super().state_dict(*args, **kwargs).items()}

        def load_state_dict(self, state, strict=True):
            return super().load_state_dict({key.removeprefix("model."): value for key, value in state.items()}, strict)

    class Hides(nn.Linear):
        def state_dict(self, *args, **kwargs):
            return {}

    for cls in (Renames, Hides):
        first, second = cls(40, 40), cls(40, 40)
        kept = second.weight
        restore({"model": second}, save({"model": first}))
        assert second.weight is kept
        assert torch.equal(first.weight, second.weight)


def test_what_was_unfrozen_in_the_loop_is_trainable_after_a_restore(caplog):
    """A gradual unfreezing would start again from frozen, and no gradient would say so."""
    first, second = net(0), net(1)
    for model in (first, second):
        model[0].requires_grad_(False)
    first[0].weight.requires_grad_(True)
    first[2].bias.requires_grad_(False)
    with caplog.at_level("INFO", "holdfast.state.objects"):
        restore({"model": second}, save({"model": first}))
    flags = [parameter.requires_grad for parameter in first.parameters()]
    assert [parameter.requires_grad for parameter in second.parameters()] == flags
    assert "model: trainable, as when it was saved: 0.weight" in caplog.text
    assert "model: frozen, as when it was saved: 2.bias" in caplog.text


def test_a_part_that_is_taken_for_fine_tuning_stays_frozen():
    """Users-ask 27: a backbone taken from a checkpoint is trained, or not, as the new program says."""
    first, second = net(0), net(1)
    second[0].requires_grad_(False)
    stored = save({"backbone": first, "head": nn.Linear(1, 1)})
    restore({"backbone": second, "other": nn.Linear(2, 2)}, stored, only=["backbone"])
    assert torch.equal(first[0].weight, second[0].weight)
    assert not second[0].weight.requires_grad
