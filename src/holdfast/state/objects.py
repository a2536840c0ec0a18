"""What a user may register, one adapter per kind: how it is captured, whether a stored one fits, how it is filled."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast import values
from holdfast.errors import InvalidInput
from holdfast.state import loading, modules
from holdfast.state.held import is_sharded
from holdfast.state.loading import Tree
from holdfast.state.optimizers import Names, OwnOptimizer, ParameterName, StockOptimizer, stock
from holdfast.state.reading import Filling
from holdfast.state.tensors import is_a
from holdfast.state.tree import Collector, homes
from holdfast.state.values_torch import GENERATORS, generator_state, set_generator_state
from holdfast.trees import Lifetime
from holdfast.values import Json

logger = logging.getLogger(__name__)

RESERVED = frozenset({"values"})
"""Names that a checkpoint uses for parts of its own."""


class Adapter(Protocol):
    """One registered object."""

    @property
    def name(self) -> str:
        """As registered."""
        ...

    @property
    def kind(self) -> str:
        """Written into the checkpoint; another kind cannot be loaded."""
        ...

    def capture(self, collector: Collector) -> Json:
        """Its state; tensors go to ``collector``."""
        ...

    def problems(self, stored: Tree, live: Tree) -> Iterable[str]:
        """Every reason why ``stored`` does not fit; reads, changes nothing."""
        ...

    def load(self, data: Json, filling: Filling) -> None:
        """Brings the object into the stored state."""
        ...

    def comparable(self, stored: Json, live: Json) -> Json:
        """What of ``live`` must equal ``stored`` after a load."""
        ...


def adapters(objects: Mapping[str, object]) -> dict[str, Adapter]:
    """One adapter per object, in the order in which they are loaded: modules before their optimizers.

    Raises:
        InvalidInput: a name that cannot be used, or an object that has no state to put back.
    """
    names = Names()
    found: list[Adapter] = []
    for name, value in objects.items():
        _check_name(name)
        if isinstance(value, nn.Module):
            found.append(ModuleObject(name, value, modules.view(value)))
            for key, tensor in found[-1].view.tensors.items():  # type: ignore[attr-defined]
                names.add(tensor, ParameterName(name, key), found[-1].view.sharings.get(key))  # type: ignore[attr-defined]
        elif isinstance(value, Tensor):
            found.append(TensorObject(name, value))
            names.add(value, ParameterName(name, ""))
    found += [
        _other(name, value, names) for name, value in objects.items() if not isinstance(value, (nn.Module, Tensor))
    ]
    order = ("module", "tensor", "optimizer", "own-optimizer", "object", "generator")
    return {adapter.name: adapter for adapter in sorted(found, key=lambda adapter: order.index(adapter.kind))}


@dataclass(frozen=True, slots=True)
class ModuleObject:
    """A module: parameters, persistent buffers and extra state, filled in place."""

    name: str
    module: nn.Module
    view: modules.ModuleView
    kind = "module"

    def capture(self, collector: Collector) -> Json:
        """Tensors by canonical name."""
        view = self.view
        state = {key: self._tensor(collector, key, tensor) for key, tensor in view.tensors.items()}
        extra = {key: collector.encode(one.get(), self._path(key)) for key, one in view.extras.items()}
        return {"state": state, "trainable": self._trainable(), "extra": extra}

    def problems(self, stored: Tree, live: Tree) -> Iterator[str]:
        """Missing, surplus and differently shaped entries."""
        for section in ("state", "extra"):
            was, now = stored.data[section], live.data[section]
            yield from (f"{self._path(key)}: missing in the checkpoint" for key in now if key not in was)
            yield from (f"{self._path(key)}: in the checkpoint, not in the program" for key in was if key not in now)
        for key in stored.data["extra"].keys() & live.data["extra"].keys():
            yield from loading.placeless(stored.data["extra"][key], self._like(key))
        was, now = stored.data["state"], live.data["state"]
        for key in was.keys() & now.keys():
            yield from loading.misfits(stored._replace(data=was[key]), live._replace(data=now[key]), self._path(key))

    def load(self, data: Json, filling: Filling) -> None:
        """Straight into the memory that the program holds; what was trainable is so again; extra state afterwards."""
        later = [
            action
            for key, item in data["state"].items()
            for action in loading.fill(item, self.view.tensors[key], filling)
        ]
        filling.run(later)
        # What is a buffer now, and was a parameter, has no such flag.
        self._set_trainable({key: flag for key, flag in data["trainable"].items() if key in self.view.parameters})
        for key, item in data["extra"].items():
            extra = loading.fresh(item, filling, like=self._like(key))
            with filling.others():
                self.view.extras[key].set(extra)

    def comparable(self, stored: Json, live: Json) -> Json:
        """All of it; a buffer may have been a parameter, and the reverse, for the bytes are the same."""
        now = live["trainable"]
        return {**live, "trainable": {key: now.get(key, flag) for key, flag in stored["trainable"].items()}}

    def _tensor(self, collector: Collector, key: str, tensor: Tensor) -> Json:
        with collector.shared(self.view.sharings.get(key)):
            return collector.tensor(tensor, self._path(key), self.view.lifetime(key))

    def _like(self, key: str) -> loading.Like:
        """Only what lies on several ranks: what ``set_extra_state`` is handed else, is on the CPU."""
        live = homes(self.view.extras[key].get(), self._path(key))
        return {path: tensor for path, tensor in live.items() if is_sharded(tensor)}.get

    def _trainable(self) -> dict[str, Json]:
        return {key: parameter.requires_grad for key, parameter in self.view.parameters.items()}

    def _set_trainable(self, stored: Mapping[str, Json]) -> None:
        changed = {key: bool(flag) for key, flag in stored.items() if self.view.parameters[key].requires_grad != flag}
        for key, flag in changed.items():
            self.view.parameters[key].requires_grad_(flag)
        for flag, what in ((True, "trainable"), (False, "frozen")):
            if names := [key for key, now in changed.items() if now is flag]:
                logger.info("%s: %s, as when it was saved: %s", self.name, what, ", ".join(names))

    def _path(self, key: str) -> str:
        return values.join(self.name, key)


@dataclass(frozen=True, slots=True)
class TensorObject:
    """A tensor or parameter of its own, filled in place."""

    name: str
    tensor: Tensor
    kind = "tensor"

    def capture(self, collector: Collector) -> Json:
        """One tensor."""
        frozen = isinstance(self.tensor, nn.Parameter) and not self.tensor.requires_grad
        return collector.tensor(self.tensor, self.name, Lifetime.FROZEN if frozen else Lifetime.PARAMETER)

    def problems(self, stored: Tree, live: Tree) -> Iterator[str]:
        """Another shape, dtype or layout."""
        return loading.misfits(stored, live, self.name)

    def load(self, data: Json, filling: Filling) -> None:
        """In place."""
        later = loading.fill(data, self.tensor, filling)
        filling.run(later)

    def comparable(self, stored: Json, live: Json) -> Json:
        """All of it."""
        return live


@dataclass(frozen=True, slots=True)
class GeneratorObject:
    """A random generator of Python, NumPy or torch."""

    name: str
    generator: Any
    kind = "generator"

    def capture(self, collector: Collector) -> Json:
        """Its state as values."""
        return collector.encode(generator_state(self.generator), self.name)

    def problems(self, stored: Tree, live: Tree) -> Iterator[str]:
        """Another algorithm or device."""
        was, now = (values.decode(tree.data)["type"] for tree in (stored, live))
        if was != now:
            yield f"{self.name}: stored as a {was} generator, is {now} now"

    def load(self, data: Json, filling: Filling) -> None:
        """In place."""
        set_generator_state(self.generator, values.decode(data))

    def comparable(self, stored: Json, live: Json) -> Json:
        """All of it."""
        return live


@dataclass(frozen=True, slots=True)
class StatefulObject:
    """Anything with ``state_dict`` and ``load_state_dict``: schedulers, scalers, averages."""

    name: str
    value: Any
    kind = "object"

    def capture(self, collector: Collector) -> Json:
        """What its ``state_dict`` says."""
        return collector.encode(self._state(), self.name)

    def problems(self, stored: Tree, live: Tree) -> Iterator[str]:
        """Entries that the object has and the checkpoint lacks; entries it lacks may be ones it makes at first use."""
        was, now = _keys(stored.data), _keys(live.data)
        for key in now:
            # Names that begin with an underscore come and go with the version of the library that owns the class.
            if key not in was and not key.startswith("_"):
                yield f"{values.join(self.name, key)}: missing in the checkpoint"
        if not _switched_off(self.value):
            yield from loading.placeless(stored.data, homes(self._state(), self.name).get)

    def load(self, data: Json, filling: Filling) -> None:
        """Hands it values and tensors of its own, on the devices, and laid on the ranks, as it has them."""
        if _switched_off(self.value):
            logger.info("%s is switched off: what the checkpoint has of it is left out", self.name)
            return
        state = loading.fresh(data, filling, like=homes(self._state(), self.name).get)
        # Schedulers and scalers of torch write to themselves only; what others do nobody knows.
        torchs = type(self.value).__module__.startswith("torch.")
        with contextlib.nullcontext() if torchs else filling.others():
            self.value.load_state_dict(state)

    def comparable(self, stored: Json, live: Json) -> Json:
        """``live`` without entries that came with a newer version of its library; of what is switched off nothing."""
        if _switched_off(self.value):
            return stored
        if isinstance(live, dict) and "$" not in live and isinstance(stored, dict):
            return {key: item for key, item in live.items() if key in stored or not key.startswith("_")}
        return live

    def _state(self) -> Any:
        state = self.value.state_dict()
        # A module's state_dict carries its version tables as an attribute of a dictionary; order is all that counts.
        return dict(state) if isinstance(state, dict) else state


def _other(name: str, value: object, names: Names) -> Adapter:
    if isinstance(value, Optimizer):
        return (StockOptimizer if stock(value) else OwnOptimizer)(name, value, names)
    if isinstance(value, GENERATORS) and not isinstance(value, random.SystemRandom):
        return GeneratorObject(name, value)
    if stateful(value):
        return StatefulObject(name, value)
    hint = f"; keep plain values in ckpt.values[{name!r}]" if isinstance(value, _VALUES) else ""
    raise InvalidInput(
        f"state[{name!r}] is a {type(value).__name__}, which cannot be put back: it has no state_dict() and "
        f"load_state_dict(){hint}"
    )


def stateful(value: object) -> bool:
    """Whether a value has state to save and to put back (a class has not, its instances have)."""
    if isinstance(value, type):
        return False
    return all(callable(_attribute(value, method)) for method in ("state_dict", "load_state_dict"))


def _switched_off(value: object) -> bool:
    """Whether it is a scaler of gradients that has no state, and takes none."""
    return is_a(value, "torch.amp.grad_scaler", "GradScaler") and not value.is_enabled()  # type: ignore[attr-defined]


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception as error:  # a dictionary with attributes raises KeyError, a lazy proxy anything
        logger.debug("%s has no %s: %s", type(value).__name__, name, type(error).__name__)
        return None


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or values.part(name) != name or name.startswith("$") or name in RESERVED:
        raise InvalidInput(
            f"{name!r} cannot name a part of the state; use a text without / ~ and leading $, other than "
            f"{' and '.join(sorted(RESERVED))}"
        )


def _keys(data: Json) -> list[str]:
    return list(data) if isinstance(data, dict) and "$" not in data else []


_VALUES = (int, float, complex, str, bytes, list, tuple, dict, set, np.ndarray, np.generic, type(None))
