"""What has state and is not captured: the average, the scheduler, the generator that somebody forgot.

Looks at a namespace that the caller passes in (the variables of the training
script) and at the attributes of the captured objects, and at nothing else. It
calls no method of what it finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.state.modules import unwrapped
from holdfast.state.objects import stateful
from holdfast.state.values_torch import GENERATORS

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
    """State that is not captured, given what is (``objects``) and what there is (``namespace``); changes nothing."""
    search = _Search(_covered(objects))
    for name, value in (namespace or {}).items():
        search.look(name, value, _DEPTH)
    for name, value in objects.items():
        search.inside(name, value, _DEPTH)
    return [*search.findings, *_optimizer_findings(objects)]


class _Search:
    def __init__(self, covered: set[int]) -> None:
        self._seen = set(covered)
        # Identities are unique only as long as the objects live.
        self._alive: list[object] = []
        self.findings: list[Finding] = []

    def look(self, name: str, value: object, depth: int) -> None:
        if id(value) in self._seen or isinstance(value, type) or len(self._alive) >= _LIMIT:
            return
        self._seen.add(id(value))
        self._alive.append(value)
        if found := _finding(name, value):
            self.findings.append(found)
        elif depth:
            self.inside(name, value, depth)

    def inside(self, name: str, value: object, depth: int) -> None:
        for key, item in _contents(name, value):
            self.look(key, item, depth - 1)


def _covered(objects: Mapping[str, object]) -> set[int]:
    """Identities of everything that is captured, directly or as a part of something captured."""
    covered = {id(value) for value in objects.values()}
    for value in objects.values():
        if isinstance(value, nn.Module):
            covered |= {id(part) for part in value.modules()} | {id(part) for part in unwrapped(value).modules()}
        covered |= {id(part) for part in vars(value).values()} if isinstance(value, Optimizer) else set()
        # A wrapper that saves for what it wraps (an accelerated optimizer) names it like this.
        covered |= {id(inner) for key in ("optimizer", "scheduler") if stateful(inner := _attribute(value, key))}
        covered |= {id(inner) for key in ("schedulers", "_schedulers") for inner in _list(_attribute(value, key))}
    return covered


def _finding(name: str, value: object) -> Finding | None:
    what = type(value).__name__
    if isinstance(value, nn.Module):
        if not any(True for _ in value.parameters()) and not any(True for _ in value.buffers()):
            return None
        return Finding(name=name, what=what, why=f"is a module that is not captured; add it to the state as {name!r}")
    if isinstance(value, GENERATORS):
        return Finding(name=name, what=what, why="draws random numbers and is not captured; add it to the state")
    if stateful(value):
        return Finding(name=name, what=what, why="has a state_dict() and is not captured; add it to the state")
    return None


def _contents(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        yield from ((f"{name}[{key!r}]", item) for key, item in list(value.items())[:_LIMIT])
    elif isinstance(value, (list, tuple)):
        yield from ((f"{name}[{i}]", item) for i, item in enumerate(value[:_LIMIT]))
    elif not isinstance(value, (nn.Module, Optimizer, Tensor)) and _of_the_user(value):
        yield from ((f"{name}.{key}", item) for key, item in list(vars(value).items()))
    elif isinstance(value, nn.Module):
        plain = {k: v for k, v in vars(value).items() if not k.startswith("_") and k != "training"}
        yield from ((f"{name}.{key}", item) for key, item in plain.items())


def _of_the_user(value: object) -> bool:
    # Modules, functions and classes hold the rest of the program.
    return hasattr(value, "__dict__") and not callable(value) and type(value).__name__ != "module"


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
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [value] if isinstance(value, Tensor) else []


def _attribute(value: object, key: str) -> Any:
    return getattr(value, "__dict__", {}).get(key)


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []
