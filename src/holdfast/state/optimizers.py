"""Optimizers: state by the canonical name of the parameter, found by the parameter's identity.

Optimizers that do not override ``state_dict`` and ``load_state_dict`` get their
state written directly: `torch.optim.Optimizer.load_state_dict` casts float32
moments of bfloat16 parameters to bfloat16 and keeps the very tensors that it
is given. The others are asked through their own methods and are handed clones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from holdfast import values
from holdfast.errors import StateError, UnsupportedValue
from holdfast.state import composites, loading, making, tensors
from holdfast.state.held import Sharing, is_sharded, local
from holdfast.state.loading import Tree
from holdfast.state.reading import Filling
from holdfast.state.tree import Collector, homes, leaves
from holdfast.trees import TensorSpec
from holdfast.values import Json

_SHOWN = 8
_NOT_VALUES = frozenset({"params", "param_names"})
# Names inside the groups carry the prefixes of wrappers; ours are canonical and stored beside them.


class ParameterName(NamedTuple):
    """A parameter as the checkpoint knows it."""

    object: str
    name: str

    def __str__(self) -> str:
        return f"{self.object}/{self.name}" if self.name else self.object


@dataclass(frozen=True, slots=True)
class Names:
    """Parameters to names, by identity. Keeps the parameters alive, so identities stay unique."""

    _by_id: dict[int, tuple[Tensor, ParameterName, Sharing | None]] = field(default_factory=dict)

    def add(self, tensor: Tensor, name: ParameterName, sharing: Sharing | None = None) -> None:
        """Names a tensor, and says who else has it; the first name of a tied one stays."""
        self._by_id.setdefault(id(tensor), (tensor, name, sharing))

    def find(self, tensor: Tensor) -> ParameterName | None:
        """The name of exactly this tensor object."""
        found = self._by_id.get(id(tensor))
        return found[1] if found else None

    def sharing(self, tensor: Tensor) -> Sharing | None:
        """The evidence, if there is any, that other ranks have the same tensor, and so what belongs to it."""
        found = self._by_id.get(id(tensor))
        return found[2] if found else None


def stock(optimizer: Optimizer) -> bool:
    """Whether the state of ``optimizer`` is all in ``state`` and ``param_groups``, with no hook or method between."""
    cls = type(optimizer)
    methods, moments = ("state_dict", "load_state_dict"), ("pre", "post")
    hooks = [f"_optimizer_{method}_{moment}_hooks" for method in methods for moment in moments]
    return (
        cls.state_dict is Optimizer.state_dict
        and cls.load_state_dict is Optimizer.load_state_dict
        and not any(getattr(optimizer, hook, None) for hook in hooks)
    )


def parameter_groups(name: str, optimizer: Optimizer, names: Names) -> list[list[ParameterName]]:
    """The canonical names in each group.

    Raises:
        StateError: parameters that belong to no captured object; all are listed.
    """
    found = [[names.find(p) for p in group["params"]] for group in optimizer.param_groups]
    orphans = [
        f"group {i} parameter {j} of shape {list(group['params'][j].shape)}"
        for i, group in enumerate(optimizer.param_groups)
        for j, known in enumerate(found[i])
        if known is None
    ]
    if orphans:
        more = f" and {len(orphans) - _SHOWN} more" if len(orphans) > _SHOWN else ""
        raise StateError(
            f"{name}: {len(orphans)} of {sum(map(len, found))} parameters belong to no captured module: "
            f"{'; '.join(orphans[:_SHOWN])}{more}; add the module that owns them to the state, "
            "or build the optimizer anew if the model was replaced after it"
        )
    return [[known for known in group if known is not None] for group in found]


def group_problems(name: str, stored: list[Any], live: list[Any], *, order_counts: bool) -> Iterator[str]:
    """How the parameter groups differ; one line per difference."""
    was, now = ([{ParameterName(*p) for p in group} for group in groups] for groups in (stored, live))
    if len(was) != len(now):
        yield (
            f"{name}: stored with {len(was)} parameter groups, has {len(now)} now; groups that are added in the loop "
            "must be there before it is resumed: ask holdfast.open(store).run(number).records() for the step, and "
            "build the optimizer as it was then"
        )
    known, present = set().union(*was), set().union(*now)
    for missing in sorted(present - known):
        yield f"{name}: {missing} is optimised now and was not when it was stored"
    for surplus in sorted(known - present):
        yield f"{name}: {surplus} was optimised when it was stored and is not now"
    if known == present and len(was) == len(now):
        moved = sorted({p for a, b in zip(was, now, strict=True) for p in a ^ b})
        yield from (f"{name}: {p} is in another parameter group than when it was stored" for p in moved)
        if order_counts and not moved and stored != live:
            yield f"{name}: its parameters are in another order than when it was stored"


@dataclass(frozen=True, slots=True)
class StockOptimizer:
    """An optimizer whose state is read and written directly."""

    name: str
    optimizer: Optimizer
    names: Names
    kind = "optimizer"

    def capture(self, collector: Collector) -> Json:
        """State by parameter name, values of the groups, and what an optimizer keeps under keys of its own."""
        groups = parameter_groups(self.name, self.optimizer, self.names)
        data: dict[str, Json] = {"groups": [], "state": {}}
        at = values.join(self.name, "param_groups")
        for i, (group, members) in enumerate(zip(self.optimizer.param_groups, groups, strict=True)):
            plain = {key: value for key, value in group.items() if key not in _NOT_VALUES}
            data["groups"].append(
                {"params": [list(p) for p in members], "values": self._values(collector, plain, f"{at}/{i}")}
            )
        for parameter, state in self._states():
            known = self._known(parameter)
            data["state"].setdefault(known.object, {})[known.name] = self._state(collector, parameter, state)
        return data | {"other": self._values(collector, {"other": self._other()}, self.name)["other"]}

    def problems(self, stored: Tree, live: Tree) -> Iterator[str]:
        """Differences of the parameter groups, and tensors that could not be made anew."""
        was, now = ([group["params"] for group in tree.data["groups"]] for tree in (stored, live))
        yield from group_problems(self.name, was, now, order_counts=_order_counts(self.optimizer))
        present = dict(_named_states(live.data["state"]))
        for name, state in _named_states(stored.data["state"]):
            for key, item in state.items():
                here = present.get(name, {}).get(key)
                if item_tag(item) == "subclass":
                    yield from _subclass_problems(stored, live, item, here, f"{self.name}: {key} of {name}")

    def load(self, data: Json, filling: Filling) -> None:
        """Groups first, since they say where ``step`` belongs; then state in place; surplus live state goes."""
        for group, stored in zip(self.optimizer.param_groups, data["groups"], strict=True):
            self._load_group(group, stored["values"], filling)
        by_name = {self._known(p): (p, group) for group in self.optimizer.param_groups for p in group["params"]}
        waiting, later = [], []
        for name, state in _named_states(data["state"]):
            parameter, group = by_name[name]
            waiting.append(
                (parameter, state, _Homes(parameter, group, self.optimizer.state.get(parameter, {}), filling))
            )
            later += waiting[-1][2].prepare(state)
        filling.run(later)
        other = loading.fresh(data["other"], filling, like=homes(self._other(), values.join(self.name, "other")).get)
        self.optimizer.state.clear()
        for parameter, state, places in waiting:
            self.optimizer.state[parameter] = places.finish(state)
        self.optimizer.state.update(other)

    def comparable(self, stored: Json, live: Json) -> Json:
        """``live`` without group values that the stored torch did not have; the plan has compared the parameters."""
        pairs = zip(stored["groups"], live["groups"], strict=True)
        known = [{key: item for key, item in now["values"].items() if key in was["values"]} for was, now in pairs]
        return live | {"groups": [was | {"values": now} for was, now in zip(stored["groups"], known, strict=True)]}

    def _other(self) -> dict[Any, Any]:
        return {key: value for key, value in self.optimizer.state.items() if not isinstance(key, Tensor)}

    def _states(self) -> Iterable[tuple[Tensor, Mapping[str, Any]]]:
        members = [p for group in self.optimizer.param_groups for p in group["params"]]
        return [(p, self.optimizer.state[p]) for p in members if self.optimizer.state.get(p)]

    def _known(self, parameter: Tensor) -> ParameterName:
        found = self.names.find(parameter)
        if found is None:
            raise StateError(f"{self.name}: a parameter of shape {list(parameter.shape)} belongs to no captured module")
        return found

    def _values(self, collector: Collector, plain: Mapping[str, Any], path: str) -> dict[str, Json]:
        if odd := [key for key in plain if type(key) is not str]:
            raise UnsupportedValue(f"{path} has the key {odd[0]!r}; optimizers keep their state under texts")
        return {key: collector.encode(value, values.join(path, key)) for key, value in plain.items()}

    def _state(self, collector: Collector, parameter: Tensor, state: Mapping[str, Any]) -> dict[str, Json]:
        known = self._known(parameter)
        path = values.join(values.join(values.join(self.name, "state"), known.object), known.name)
        with collector.shared(self.names.sharing(parameter)):
            data = self._values(collector, state, path)
        for key, item in data.items():
            if item_tag(item) == "tensor":
                item |= _whereabouts(state[key], parameter)
        return data

    def _load_group(self, group: dict[str, Any], stored: Mapping[str, Json], filling: Filling) -> None:
        for key, item in stored.items():
            live = group.get(key)
            if (
                isinstance(live, Tensor)
                and item_tag(item) == "tensor"
                and _fits(live, filling.stored.spec(item["name"]))
            ):
                filling.place(item["name"], live)
                filling.run()
                continue
            device = live.device if isinstance(live, Tensor) else torch.device("cpu")
            group[key] = loading.fresh(item, filling, device)


@dataclass(slots=True)
class _Homes:
    """Where the stored state of one parameter goes: live tensors where they fit, new ones where not."""

    parameter: Tensor
    group: Mapping[str, Any]
    live: Mapping[str, Any]
    filling: Filling
    made: dict[str, Tensor] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    def prepare(self, state: Mapping[str, Json]) -> list[Any]:
        later: list[Any] = []
        for key, item in state.items():
            if item_tag(item) == "subclass":
                self.kept.add(key)
                later += loading.fill(item, self.live[key], self.filling)
                continue
            for leaf in leaves(item):
                name = leaf["name"]
                if name not in self.made:
                    self.made[name] = self._home(key, item, leaf)
        return later

    def finish(self, state: Mapping[str, Json]) -> dict[str, Any]:
        readers = composites.readers(self.made)
        return {
            key: self.live[key] if key in self.kept else values.decode(item, readers=readers)
            for key, item in state.items()
        }

    def _home(self, key: str, item: Json, leaf: dict[str, Json]) -> Tensor:
        name = leaf["name"]
        if (home := self.filling.placed(name)) is not None:
            # Tied to a parameter, it is a view of it and no parameter itself.
            return home.detach() if is_sharded(home) else tensors.plain(home)
        spec, device = self.filling.stored.spec(name), self._device(key, leaf)
        live = self.live.get(key)
        if item is not leaf or not isinstance(live, Tensor) or live.device != device or not _fits(live, spec):
            loading.refuse_overlap(leaf)
            live = making.made(self.parameter, spec, device, sharded=bool(leaf.get("sharded")))
        self.filling.place(name, live)
        return live

    def _device(self, key: str, leaf: dict[str, Json]) -> torch.device:
        device = self.parameter.device
        on_host = leaf.get("host") or (
            # torch keeps the counter on the host unless the kernel itself increments it.
            key == "step" and "device" not in leaf and not (self.group.get("capturable") or self.group.get("fused"))
        )
        return torch.device("cpu") if on_host else device


@dataclass(frozen=True, slots=True)
class OwnOptimizer:
    """An optimizer that brings its own ``state_dict`` and ``load_state_dict``."""

    name: str
    optimizer: Optimizer
    names: Names
    kind = "own-optimizer"

    def capture(self, collector: Collector) -> Json:
        """What its ``state_dict`` says, and the names behind its numbers."""
        groups = [[list(p) for p in group] for group in parameter_groups(self.name, self.optimizer, self.names)]
        return {"groups": groups, "data": collector.encode(dict(self.optimizer.state_dict()), self.name)}

    def problems(self, stored: Tree, live: Tree) -> Iterator[str]:
        """Differences of the parameter groups; their order counts, since the state goes by number."""
        was, now = stored.data["groups"], live.data["groups"]
        yield from group_problems(self.name, was, now, order_counts=True)
        if was == now:
            inner = stored._replace(data=stored.data["data"])
            yield from loading.placeless(inner.data, self._patterns(inner).get)

    def load(self, data: Json, filling: Filling) -> None:
        """Hands it tensors of its own, laid on the ranks as it has them, or its parameters."""
        patterns = self._patterns(Tree(data["data"], filling.stored.spec))
        # Of plain ones it makes copies where it wants them: they need no second place in the memory of a device.
        sharded = {path: tensor for path, tensor in patterns.items() if is_sharded(tensor)}
        state = loading.fresh(data["data"], filling, like=sharded.get)
        with filling.others():
            self.optimizer.load_state_dict(state)

    def comparable(self, stored: Json, live: Json) -> Json:
        """All of it."""
        return live

    def _patterns(self, stored: Tree) -> dict[str, Tensor]:
        """For stored tensors what they are to be like: the live one, or the parameter that they are state of."""
        here = homes(dict(self.optimizer.state_dict()), self.name)
        members = [p for group in self.optimizer.param_groups for p in group["params"]]
        by_number = {values.part(i): p for i, p in enumerate(members)}
        found = here.copy()
        for leaf in leaves(stored.data):
            above, number = ["", "", *leaf["name"].split("/")][-3:-1]
            parameter, shape = by_number.get(number), stored.spec(leaf["name"]).shape
            if parameter is None or above != "state" or leaf["name"] in here:
                continue
            if leaf.get("sharded") or (shape and shape == tuple(parameter.shape)):
                found[leaf["name"]] = parameter
        return found


def item_tag(item: Json) -> str | None:
    """The tag of tagged JSON, or None for plain JSON."""
    return item.get("$") if isinstance(item, dict) else None


def _order_counts(optimizer: Optimizer) -> bool:
    # LBFGS lays its parameters end to end; so may any optimizer that torch does not ship.
    return isinstance(optimizer, torch.optim.LBFGS) or not type(optimizer).__module__.startswith("torch.optim.")


def _named_states(data: Mapping[str, Mapping[str, Json]]) -> Iterator[tuple[ParameterName, Mapping[str, Json]]]:
    return ((ParameterName(o, name), state) for o, states in data.items() for name, state in states.items())


def _whereabouts(tensor: Tensor, parameter: Tensor) -> dict[str, Json]:
    sharded = {"sharded": True} if is_sharded(tensor) else {}
    if tensor.device.type != "cpu":
        return sharded | {"device": tensor.device.type}
    return sharded | ({"host": True} if parameter.device.type != "cpu" else {})


def _fits(live: Tensor, spec: TensorSpec) -> bool:
    here = local(live)
    plain = here.layout == torch.strided and composites.split(here, "") is None
    return plain and tuple(live.shape) == spec.shape and tensors.dtype_name(live.dtype) == spec.dtype


def _subclass_problems(stored: Tree, live: Tree, item: Json, here: Json, path: str) -> Iterator[str]:
    if item_tag(here) is None:
        yield f"{path} is a {item['class']}, which is filled only where one exists; let the optimizer create it first"
    else:
        yield from loading.misfits(stored._replace(data=item), live._replace(data=here), path)
