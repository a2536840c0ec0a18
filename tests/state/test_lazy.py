"""What may be copied while the training goes on, decided with real optimizers."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from holdfast.state import capture
from holdfast.state.lazy import Memory, StepLog, Stepping, Watch, lazy_places, memory_of, stepping
from holdfast.state.step_hook import STEP_HOOK, StepHook

WIDE = 32
"""So that every parameter is larger than what is captured inline."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDE, WIDE, bias=False), nn.Linear(WIDE, WIDE, bias=False)
        self.register_buffer("scale", torch.ones(WIDE, WIDE))

    def forward(self, x):
        return self.second(self.first(x)) @ self.scale


class Foreign:
    """An optimizer that torch has never heard of."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self):
        for p in self.parameters:
            p.data.sub_(0.1 * p.grad)


class NoHook(torch.optim.SGD):
    """Made as wrappers are made: without the ``__init__`` that brings the hook."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(0.1 * p.grad)


class Loop:
    """A training with the hook installed, that decides at boundaries as a save does."""

    def __init__(self, model, *optimizers, **others):
        self.model, self.optimizers, self.others = model, optimizers, others
        self.log, self.watch, self.step, self.captured = StepLog(), Watch(), 0, ()
        self.before = lambda: None

    def __enter__(self):
        STEP_HOOK.add(self.listen)
        return self

    def __exit__(self, *_):
        STEP_HOOK.remove(self.listen)

    def listen(self, optimizer):
        self.log.step(optimizer, captured=any(optimizer is one for one in self.captured))
        self.changed = self.watch.end()

    def train(self, steps=1):
        for _ in range(steps):
            self.before()
            for optimizer in self.optimizers:
                self.model.zero_grad()

                def closure():
                    loss = self.model(torch.ones(2, WIDE)).pow(2).mean()
                    loss.backward()
                    return loss

                closure()
                optimizer.step(*([closure] if isinstance(optimizer, torch.optim.LBFGS) else []))
            self.step += 1
        return self

    def lazy(self):
        """The names of what a save at this boundary would copy lazily."""
        real = {str(i): one for i, one in enumerate(self.optimizers) if type(one) not in (Foreign, NoHook)}
        large = capture({"model": self.model, **real, **self.others}, own={}).tensors
        names, tensors = [spec.name for spec, _ in large], [tensor for _, tensor in large]
        optimizers, steps = self.log.look(self.step)
        found = lazy_places(list(map(memory_of, tensors)), optimizers, steps=steps, steady=self.watch.steady(names))
        self.watch.begin(names, tensors)
        return {names[place] for place in found}


PARAMETERS = {"model/first.weight", "model/second.weight"}


def adam(model, **options):
    return torch.optim.AdamW(model.parameters(), lr=0.01, **options)


def settled(loop):
    """Past the first save, which copies everything at once and watches."""
    loop.train().lazy()
    return loop.train(3)


OPTIMIZERS = {
    "AdamW": adam,
    "AdamW, fused": lambda model: adam(model, fused=True),
    "AdamW, one by one": lambda model: adam(model, foreach=False),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01),
    "LBFGS": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_and_states_of_an_optimizer_are_copied_lazily_once_it_was_seen_to_step(name):
    model = Model()
    optimizer = OPTIMIZERS[name](model)
    with Loop(model, optimizer) as loop:
        assert loop.train().lazy() == set()
        found = loop.train(3).lazy()
    assert found >= PARAMETERS
    assert "model/scale" not in found
    assert {name.split("/")[0] for name in found - PARAMETERS} == {"0"}
    if "AdamW" in name:
        assert len(found) == 6


def test_the_lists_of_lbfgs_are_states_too():
    model = Model()
    with Loop(model, OPTIMIZERS["LBFGS"](model)) as loop:
        settled(loop).lazy()
        found = loop.train().lazy()
    assert any("old_dirs" in name for name in found)


def test_before_any_step_nothing_is_lazy():
    model = Model()
    with Loop(model, adam(model)) as loop:
        loop.train().lazy()
        assert loop.lazy() == set()


def test_a_second_save_at_the_same_boundary_copies_everything_at_once():
    model = Model()
    with Loop(model, adam(model)) as loop:
        settled(loop)
        assert loop.lazy()
        assert loop.lazy() == set()


@pytest.mark.parametrize("kind", [Foreign, NoHook])
def test_an_optimizer_without_the_hook_makes_its_parameters_eager(kind):
    model = Model()
    hooked = torch.optim.SGD(model.first.parameters(), lr=0.1, momentum=0.9)
    other = Foreign(model.second.parameters())
    if kind is NoHook:
        other = NoHook(torch.optim.SGD(model.second.parameters(), lr=0.1))
    with Loop(model, hooked, other) as loop:
        found = settled(loop).lazy()
    assert "model/first.weight" in found
    assert "model/second.weight" not in found


def test_steps_that_no_hook_saw_make_an_optimizer_eager():
    """The replay of a graph that was recorded before anybody listened, with an odd batch in between that is stepped."""
    model = Model()
    with Loop(model, adam(model)) as loop:
        settled(loop)
        loop.step += 1
        assert loop.lazy() == set()
        assert loop.train(2).lazy() >= PARAMETERS


def test_an_optimizer_that_steps_less_often_than_the_training_is_eager():
    model = Model()
    often = torch.optim.SGD(model.first.parameters(), lr=0.1)
    seldom = torch.optim.SGD(model.second.parameters(), lr=0.1)
    with Loop(model, often) as loop:
        loop.optimizers = [often, seldom]
        settled(loop).lazy()
        loop.optimizers = [often]
        loop.train(2)
        loop.optimizers = [often, seldom]
        assert loop.train().lazy() == {"model/first.weight"}


def test_an_optimizer_that_was_recorded_into_a_graph_is_eager_for_good():
    model = Model()
    with Loop(model, adam(model)) as loop:
        settled(loop)
        loop.captured = loop.optimizers
        loop.train()
        loop.captured = ()
        assert loop.train(3).lazy() == set()
        assert loop.train(3).lazy() == set()


def test_an_optimizer_that_is_made_for_graphs_is_eager():
    model = Model()
    optimizer = adam(model)
    assert not stepping(optimizer, 1, captured=False).captured
    optimizer.param_groups[0]["capturable"] = True
    assert stepping(optimizer, 1, captured=False).captured


def test_averages_of_the_weights_are_eager():
    model = Model()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    with Loop(model, adam(model), ema=ema) as loop:
        loop.before = lambda: ema.update_parameters(model)
        found = settled(loop).lazy()
    assert found >= PARAMETERS
    assert not any(name.startswith("ema/") for name in found)


def test_an_average_that_an_optimizer_holds_as_well_is_found_out_by_its_changes():
    model = Model()
    ema = AveragedModel(model)
    with Loop(model, torch.optim.SGD([*model.parameters(), *ema.parameters()], lr=0.1), ema=ema) as loop:
        loop.before = lambda: ema.update_parameters(model)
        found = settled(loop).lazy()
    assert found == PARAMETERS


def test_two_optimizers_that_share_parameters_must_both_be_trusted():
    model = Model()
    one, two = adam(model), torch.optim.SGD(model.first.parameters(), lr=0.1)
    with Loop(model, one, two) as loop:
        assert settled(loop).lazy() >= PARAMETERS
        loop.train().captured = [two]
        loop.train().captured = ()
        found = loop.train(2).lazy()
    assert "model/second.weight" in found
    assert "model/first.weight" not in found


def test_an_optimizer_that_is_gone_is_forgotten():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    log = StepLog()
    log.step(optimizer, captured=True)
    del optimizer
    gc.collect()
    assert log.look(1) == ([], 0)


def test_an_optimizer_at_the_address_of_one_that_is_gone_is_another_one():
    first, second = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(2))
    log = StepLog()
    log.step(first, captured=True)
    log._seen = {id(second): log._seen[id(first)]}
    log.step(second, captured=False)
    (found,), _ = log.look(1)
    assert not found.captured
    assert found.steps == 1


@pytest.mark.parametrize("how", ["clamp", "add", "load"])
def test_what_is_written_between_boundary_and_step_is_never_lazy(how):
    """Weight clipping, SAM's perturbation, a reset to the best weights: in the first save they are found out."""
    model = Model()
    best = copy.deepcopy(model.first.state_dict())

    @torch.no_grad()
    def before():
        if how == "clamp":
            model.first.weight.clamp_(-1, 1)
        elif how == "add":
            model.first.weight.add_(1e-3)
        else:
            model.first.load_state_dict(best)

    with Loop(model, torch.optim.SGD(model.parameters(), lr=0.1)) as loop:
        loop.before = before
        assert settled(loop).lazy() == {"model/second.weight"}
        loop.train()
        assert loop.changed == ["model/first.weight"]
        loop.before = lambda: None
        assert loop.train(5).lazy() == {"model/second.weight"}, "for good"


def test_a_change_that_comes_late_is_told_by_name():
    model = Model()
    with Loop(model, torch.optim.SGD(model.parameters(), lr=0.1)) as loop:
        assert settled(loop).lazy() == PARAMETERS
        with torch.no_grad():
            model.second.weight.mul_(2)
        loop.train()
        assert loop.changed == ["model/second.weight"]
        assert loop.train().lazy() == {"model/first.weight"}


def test_tensors_without_a_version_are_never_steady():
    watch = Watch()
    with torch.inference_mode():
        tensor = torch.zeros(3)
    watch.begin(["t"], [tensor])
    assert watch.end() == ["t"]
    assert watch.steady(["t"]) == set()


def test_only_the_first_step_after_the_boundary_is_looked_at():
    watch, tensor = Watch(), torch.zeros(3)
    watch.begin(["t"], [tensor])
    assert watch.end() == []
    tensor.add_(1)
    assert watch.end() == []
    assert watch.steady(["other", "t"]) == {1}


def memory(start, end, device="cuda:0"):
    return Memory(device, start, end)


def trusted(*memories, steps=1, captured=False):
    return Stepping(tensors=memories, steps=steps, captured=captured)


def places(sources, *optimizers, steps=1, steady=None):
    return lazy_places(sources, optimizers, steps=steps, steady=range(len(sources)) if steady is None else steady)


def test_memory_that_touches_what_is_not_trusted_is_not_lazy():
    a, b = memory(0, 100), memory(100, 200)
    assert places([a, b], trusted(a, b)) == {0, 1}
    assert places([a, b, memory(40, 60)], trusted(a, b)) == {1}, "a buffer inside of a parameter"
    assert places([a, b, memory(40, 60, "cuda:1")], trusted(a, b)) == {0, 1}, "another device"
    assert places([a, b, memory(99, 101)], trusted(a, b)) == set()
    assert places([a, b], trusted(a), trusted(memory(0, 1), captured=True)) == set()
    assert places([a, b], trusted(a, b), steady={1}) == {1}
    assert places([memory(0, 101), b], trusted(memory(0, 101), b), steady={1}) == set(), "overlaps one that changes"
    assert places([None, b], trusted(b)) == {1}


@pytest.mark.parametrize(
    ("steps", "hooked", "lazy"),
    [(1, 1, True), (3, 3, True), (3, 15, True), (3, 2, False), (0, 0, False), (0, 1, False)],
)
def test_every_step_must_have_come_through_the_hook(steps, hooked, lazy):
    a = memory(0, 10)
    assert places([a], trusted(a, steps=hooked), steps=steps) == ({0} if lazy else set())


def test_overlaps_are_those_that_a_search_of_all_pairs_finds():
    seed = 20260801
    generator = torch.Generator().manual_seed(seed)
    for _ in range(300):
        draws = torch.randint(0, 60, (12, 2), generator=generator).tolist()
        drawn = [memory(min(pair), max(pair) + 1, f"cuda:{pair[0] % 2}") for pair in draws]
        good, bad = drawn[:6], drawn[6:]
        found = places(drawn, trusted(*good), steady=[n for n, one in enumerate(drawn) if one in good])
        others = [one for one in bad if one not in good]
        expected = {
            n
            for n, one in enumerate(drawn)
            if one in good
            and not any(o.device == one.device and o.start < one.end and one.start < o.end for o in others)
        }
        assert found == expected, f"seed {seed}: {drawn}"


def test_memory_is_told_of_plain_tensors_only():
    assert memory_of(torch.zeros(3).to_sparse()) is None
    assert memory_of(torch.zeros(0)) is None
    assert memory_of(type("Odd", (torch.Tensor,), {})(torch.zeros(3))) is None
    transposed = torch.zeros(4, 8).T
    assert memory_of(transposed) == memory_of(torch.as_strided(transposed, (32,), (1,)))


# The hook itself


def test_the_hook_is_there_as_long_as_somebody_listens():
    hook, heard = StepHook(), []
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    def first(one):
        heard.append(("first", one is optimizer))

    def second(one):
        heard.append(("second", one is optimizer))

    hook.add(first)
    hook.add(second)
    hook.add(second)
    optimizer.step()
    assert heard == [("first", True), ("second", True), ("second", True)]
    hook.remove(second)
    hook.remove(first)
    hook.remove(first)
    heard.clear()
    optimizer.step()
    assert heard == [("second", True)]
    assert hook.installed
    hook.remove(second)
    assert not hook.installed
    assert not _global_optimizer_pre_hooks
    optimizer.step()
    assert len(heard) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own
def test_a_compiled_step_calls_the_hook_each_time():
    hook, heard = StepHook(), []
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, WIDE)).sum().backward()
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    step()
    step()  # compiled before anybody listened

    def listen(one):
        heard.append(one is optimizer and not torch.compiler.is_compiling())

    hook.add(listen)
    try:
        for _ in range(4):
            step()
    finally:
        hook.remove(listen)
    assert heard == [True] * 4
