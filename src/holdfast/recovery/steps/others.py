"""Whether registered objects that are no modules, optimizers or generators have changed: schedulers, buffers, averages.

Their ``state_dict`` is not asked: it may copy gigabytes, or wait for a device. Attributes are looked at instead, of
what lies inside too, as far as there is not too much of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from holdfast.recovery.steps.sketching import Same, Sketching
from holdfast.state.values_torch import GENERATORS, generator_state

logger = logging.getLogger(__name__)

MOST_INSIDE = 512
"""Elements of one object that are looked at; a tenth of a millisecond's worth."""

_ELSEWHERE = (nn.Module, Optimizer, Tensor, *GENERATORS, DataLoader)
"""Kinds that are watched by other means, or change between two bodies only."""
_WITHOUT_STATE = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, Optimizer, DataLoader)


class OtherChanges:
    """Of some registered objects, by name. Not thread-safe."""

    def __init__(self, objects: Mapping[str, object]) -> None:
        self._objects = {name: one for name, one in objects.items() if not isinstance(one, _ELSEWHERE)}
        modules = (one for one in objects.values() if isinstance(one, nn.Module))
        self._watched = {id(one) for one in objects.values()} if self._objects else set()
        if self._objects:
            self._watched |= {id(part) for module in modules for part in module.modules()}
        self._noted: dict[str, tuple[Any, bool]] = {}

    def note(self) -> None:
        """This is the boundary."""
        self._noted = {name: self._sketch(one) for name, one in self._objects.items()}

    @property
    def changed(self) -> str | None:
        """The name of one that has changed since `note`, as far as can be seen."""
        now = ((name, self._sketch(one)) for name, one in self._objects.items())
        return next((name for name, found in now if found[0] != self._noted[name][0]), None)

    @property
    def untold(self) -> str | None:
        """The name of one of which this cannot be told: there is too much in it, or nothing that can be looked at."""
        return next((name for name, (_, whole) in self._noted.items() if not whole), None)

    def _sketch(self, value: object) -> tuple[Any, bool]:
        inside = _Inside(self._watched - {id(value)})
        try:
            return inside.of_object(value), inside.whole
        except Exception as error:  # it is the program's: its own code may run here, in another thread too
            logger.debug("a %s cannot be looked at: %s", type(value).__name__, type(error).__name__)
            return None, False


class _Inside(Sketching):
    def __init__(self, passed: set[int]) -> None:
        super().__init__(MOST_INSIDE)
        self._passed = passed

    def of_object(self, value: object) -> Any:
        found = _attributes(value)
        self.whole = self.whole and found is not None
        return Same(value), self.of(found)

    def _other(self, value: Any) -> Any:
        if id(value) in self._passed or isinstance(value, _WITHOUT_STATE):
            return Same(value)
        self._passed.add(id(value))
        if isinstance(value, GENERATORS):
            return generator_state(value)
        if isinstance(value, nn.Module):
            return self.of([*value.parameters(), *value.buffers()])
        return Same(value), self.of(_attributes(value))


def _attributes(value: object) -> dict[str, Any] | None:
    """By name; None where there is no place for any, as in what is written in C."""
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    names = getattr(value, "__dict__", None)
    if names is None and not slots:
        return None
    found = {**{name: getattr(value, name, None) for name in slots}, **(names or {})}
    if isinstance(value, torch.amp.GradScaler):
        found.pop("_per_optimizer_states", None)  # how far the step at hand is: no part of its state
    return found


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(one for one in slots if one != "__dict__")
