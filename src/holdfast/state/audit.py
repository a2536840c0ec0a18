"""What has state and is not captured: the average, the scheduler, the generator that somebody forgot.

Looks at a namespace that the caller passes in (the variables of the training
script) and at the attributes of the captured objects, and at nothing else. It
judges things by their class and asks them nothing: lazy proxies, mocks and
dictionaries with attributes answer in their own ways, or raise. What cannot be
looked at is passed over; an audit never ends a training.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.optim import Optimizer

from holdfast.state import loaders_samplers as samplers
from holdfast.state.modules import unwrapped
from holdfast.state.values_torch import GENERATORS

logger = logging.getLogger(__name__)

_DEPTH = 2
# Attributes of attributes: a trainer object that holds the average is seen, a whole framework is not searched.

_LIMIT = 2000
# Objects looked at; a namespace with more is not the variables of a training script.


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to tell the user about, once, at the start."""

    name: str
    """How the program reaches it."""
    what: str
    """Its class."""
    why: str
    """What is lost, and what to do."""
    serious: bool = True
    """Whether a resumed run would differ; otherwise it is merely worth knowing."""

    def __str__(self) -> str:
        return f"{self.name} ({self.what}) {self.why}"


def audit(objects: Mapping[str, object], namespace: Mapping[str, object] | None = None) -> list[Finding]:
    """State that is not captured, given what is (``objects``) and what there is (``namespace``); changes nothing.

    Never raises: what resists being looked at is no finding.
    """
    search = _Search(objects)
    for name, value in (namespace or {}).items():
        search.look(name, value, _DEPTH)
    for name, value in objects.items():
        search.inside(name, value, _DEPTH)
    with _guarded("the optimizers"):
        search.findings += _optimizer_findings(objects)
    return search.findings


@contextmanager
def _guarded(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Whatever it is, it is somebody else's, and the training matters more.
        logger.debug("the audit passes over %s: %s", what, type(error).__name__)


class _Search:
    def __init__(self, objects: Mapping[str, object]) -> None:
        self._seen: set[int] = set()
        self._captured: set[int] = set()
        # Identities are unique only as long as the objects live.
        self._alive: list[object] = []
        self.findings: list[Finding] = []
        for name, value in objects.items():
            with _guarded(name):
                self._captured |= {id(tensor) for tensor in _state_tensors(value)}
            with _guarded(name):
                self._seen |= _covered(value)

    def look(self, name: str, value: object, depth: int) -> None:
        if id(value) in self._seen or _is(value, type) or len(self._alive) >= _LIMIT:
            return
        self._seen.add(id(value))
        self._alive.append(value)
        with _guarded(name):
            if any(cls.__module__ == "holdfast.checkpointer" for cls in type(value).__mro__):
                return  # the objects of an earlier one are its own
            if not self._is_known(value) and (found := _finding(name, value)):
                self.findings.append(found)
            elif depth:
                self.inside(name, value, depth)

    def inside(self, name: str, value: object, depth: int) -> None:
        with _guarded(name):
            for key, item in _contents(name, value):
                self.look(key, item, depth - 1)

    def _is_known(self, value: object) -> bool:
        """Whether it is a wrapper around captured modules, which adds no tensor of its own."""
        return _is(value, nn.Module) and {id(tensor) for tensor in _state_tensors(value)} <= self._captured


def _covered(value: object) -> set[int]:
    """Identities of what is captured with a captured object: itself, and its parts."""
    covered = {id(value)}
    if _is(value, nn.Module):
        covered |= {id(part) for module in (value, unwrapped(value)) for part in module.modules()}  # type: ignore[attr-defined,arg-type]
    attributes = _attributes(value)
    if _is(value, Optimizer):
        covered |= {id(part) for part in attributes.values()}
    # A wrapper that saves for what it wraps (an accelerated optimizer) names it like this.
    covered |= {id(inner) for key in ("optimizer", "scheduler") if _stateful(inner := attributes.get(key))}
    covered |= {id(inner) for key in ("schedulers", "_schedulers") for inner in _items(attributes.get(key))}
    covered -= {id(inner) for _, inner in _own_ways(value)}
    # The position in a loader comes with the generators of the loader and of its samplers.
    owners = [value, *samplers.chain(value).values()] if _is(value, torch.utils.data.DataLoader) else []
    return covered | {id(one) for owner in owners for one in samplers.generators(owner).values()}


def _own_ways(value: object) -> list[tuple[str, object]]:
    """Optimizers inside an optimizer whose state is not in its own: what torch saves for it lacks theirs."""
    if not _is(value, Optimizer) or _changed(value, "state_dict") or _changed(value, "state"):
        return []
    own = _attributes(value)
    return [
        (key, inner)
        for key, inner in own.items()
        if _is(inner, Optimizer) and inner is not value and _attributes(inner).get("state") is not own.get("state")
    ]


def _changed(value: object, name: str) -> bool:
    """Whether a class has its own version of what torch's optimizers have, or one that they have not."""
    owner = next((cls for cls in type(value).__mro__ if name in vars(cls)), None)
    return owner not in (None, Optimizer)


def _finding(name: str, value: object) -> Finding | None:
    what = type(value).__name__
    if _is(value, nn.Module):
        if not _state_tensors(value) or _constant(value):
            return None
        return Finding(name=name, what=what, why=f"is a module that is not captured; add it to the state as {name!r}")
    if _is(value, GENERATORS):
        if _is(value, random.SystemRandom):
            return None
        return Finding(name=name, what=what, why="draws random numbers and is not captured; add it to the state")
    if _stateful(value) and not _constant(value):
        return Finding(name=name, what=what, why="has a state_dict() and is not captured; add it to the state")
    return None


def _constant(value: object) -> bool:
    """Whether what it holds was given to it and never changes: the weights of a loss, a scaler that is switched off."""
    if _is(value, _Loss) and type(value).__module__.startswith("torch."):
        return not any(True for _ in value.parameters())  # type: ignore[attr-defined]
    return type(value).__name__ == "GradScaler" and _attributes(value).get("_enabled") is False


def _contents(name: str, value: object) -> Iterator[tuple[str, object]]:
    if _is(value, Mapping):
        if type(value).__module__ in ("builtins", "collections"):
            yield from ((f"{name}[{key!r}]", item) for key, item in list(value.items())[:_LIMIT])  # type: ignore[attr-defined]
    elif _is(value, (list, tuple)):
        yield from ((f"{name}[{i}]", item) for i, item in enumerate(_items(value)))
    elif _is(value, nn.Module):
        plain = {k: v for k, v in _attributes(value).items() if not k.startswith("_") and k != "training"}
        yield from ((f"{name}.{key}", item) for key, item in plain.items())
    elif _is(value, Optimizer):
        yield from ((f"{name}.{key}", inner) for key, inner in _own_ways(value))
    elif not _is(value, Tensor) and _of_the_user(value):
        yield from ((f"{name}.{key}", item) for key, item in list(_attributes(value).items()))


def _of_the_user(value: object) -> bool:
    # Modules, functions and classes hold the rest of the program.
    return not callable(value) and type(value).__name__ != "module"


def _optimizer_findings(objects: Mapping[str, object]) -> Iterator[Finding]:
    optimizers = {name: value for name, value in objects.items() if isinstance(value, Optimizer)}
    owned = {id(p): p for value in objects.values() for p in _parameters(value)}
    optimised = {id(p) for value in optimizers.values() for group in value.param_groups for p in group["params"]}
    for name, optimizer in optimizers.items():
        missing = sum(id(p) not in owned for group in optimizer.param_groups for p in group["params"])
        if missing:
            why = f"updates {missing} parameters that belong to no captured module; its state cannot be named"
            yield Finding(name=name, what=type(optimizer).__name__, why=why)
    if not optimizers:
        return
    for name, value in objects.items():
        idle = sum(p.requires_grad and id(p) not in optimised for p in _parameters(value))
        if idle:
            why = f"has {idle} trainable parameters that no captured optimizer updates"
            yield Finding(name=name, what=type(value).__name__, why=why, serious=False)


def _parameters(value: object) -> list[Tensor]:
    if _is(value, nn.Module):
        return list(value.parameters())  # type: ignore[attr-defined]
    return [value] if _is(value, Tensor) else []  # type: ignore[list-item]


def _state_tensors(value: object) -> list[Tensor]:
    """What a module would save: its parameters and persistent buffers."""
    if not _is(value, nn.Module):
        return _parameters(value)
    kept = [
        buffer
        for part in value.modules()  # type: ignore[attr-defined]
        for name, buffer in part._buffers.items()
        if buffer is not None and name not in part._non_persistent_buffers_set
    ]
    return [*_parameters(value), *kept]


def _is(value: object, classes: type | tuple[type, ...]) -> bool:
    # isinstance would ask a proxy for its __class__, and a proxy may not know yet.
    return issubclass(type(value), classes)


def _stateful(value: object) -> bool:
    return all(_has(value, method) for method in ("state_dict", "load_state_dict"))


def _has(value: object, method: str) -> bool:
    own = _attributes(value)
    return method in own or any(method in vars(cls) for cls in type(value).__mro__)


def _attributes(value: object) -> dict[str, Any]:
    found: object = None
    with _guarded("attributes"):  # a class may have a __dict__ of its own, or none
        found = object.__getattribute__(value, "__dict__")
    return found if isinstance(found, dict) else {}


def _items(value: object) -> list[object]:
    if _is(value, (list, tuple)):
        own: Iterator[object] = list.__iter__(value) if _is(value, list) else tuple.__iter__(value)  # type: ignore[arg-type]
        return list(islice(own, _LIMIT))
    return []
