"""The tensors of a module under canonical names, whatever has been wrapped around it.

Wrappers (DistributedDataParallel, DataParallel, torch.compile, activation
checkpointing) are seen through by type. Their prefixes are never cut from
names as text: a model may well own a submodule called ``module``.

The walk takes parameters and persistent buffers where they live, so hooks that
rename entries of ``state_dict()`` have no say. A module that overrides
``_save_to_state_dict`` or ``state_dict`` is asked for what it adds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import RestoreFailed, StateError
from holdfast.state.held import Sharing
from holdfast.state.replicas import Replicas, replicas_of
from holdfast.state.tensors import is_a
from holdfast.trees import Lifetime

_WRAPPERS = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", "_checkpoint_wrapped_module"),
)
_LOCAL = "_local_state"
_ADDED = "_state_dict"


@dataclass(frozen=True, slots=True)
class Extra:
    """State of a module besides its tensors: ``get_extra_state`` or what an override adds."""

    get: Callable[[], object]
    set: Callable[[Any], None]


@dataclass(slots=True)
class ModuleView:
    """What a module holds, by canonical name, in the order of the walk."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Parameters and persistent buffers: the live ones."""
    frozen: set[str] = field(default_factory=set)
    """Names of parameters whose bytes stay the same: those without gradient."""
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    """The live parameters among the tensors."""
    extras: dict[str, Extra] = field(default_factory=dict)
    sharings: dict[str, Sharing] = field(default_factory=dict)
    """By name, where a wrapper is evidence that other ranks have the same."""

    def lifetime(self, name: str) -> Lifetime:
        """How long the bytes of a tensor tend to live."""
        return Lifetime.FROZEN if name in self.frozen else Lifetime.PARAMETER


def view(module: nn.Module) -> ModuleView:
    """The tensors and extras of ``module``; tied ones appear under each of their names.

    Raises:
        StateError: FSDP1, whose flat parameters have no names of their own.
    """
    found = ModuleView()
    for child in module.modules():
        _reshard(child)
    for prefix, child, replicas in _walk(module, "", None):
        _collect(found, child, prefix)
        _note_sharing(found, child, prefix, replicas)
    if is_a(unwrapped(module), "torch.optim.swa_utils", "AveragedModel"):
        # Averages change at every update although they need no gradient.
        found.frozen.clear()
    return found


def unwrapped(module: nn.Module) -> nn.Module:
    """What is inside all wrappers.

    Raises:
        StateError: FSDP1.
    """
    if is_a(module, "torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"):
        raise StateError("FullyShardedDataParallel (FSDP1) flattens parameters; use torch's fully_shard (FSDP2)")
    for where, name, attribute in _WRAPPERS:
        if is_a(module, where, name):
            return unwrapped(getattr(module, attribute))
    return module


def _walk(
    module: nn.Module, prefix: str, replicas: Replicas | None
) -> Iterator[tuple[str, nn.Module, Replicas | None]]:
    replicas = replicas_of(module, prefix) or replicas
    module = unwrapped(module)
    yield prefix, module, replicas
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.", replicas)


def _note_sharing(found: ModuleView, module: nn.Module, prefix: str, replicas: Replicas | None) -> None:
    if replicas is None:
        return
    for name in filter(lambda name: replicas.have(prefix + name), _own_tensors(module)):
        if name not in module._parameters:
            found.sharings[prefix + name] = Sharing(replicas.ranks, first_only=True)
        elif replicas.parameters:
            found.sharings[prefix + name] = Sharing(replicas.ranks)


def _collect(found: ModuleView, module: nn.Module, prefix: str) -> None:
    own = _own_tensors(module)
    for name, tensor in own.items():
        found.tensors[prefix + name] = tensor
        if isinstance(tensor, nn.Parameter):
            found.parameters[prefix + name] = tensor
            if not tensor.requires_grad:
                found.frozen.add(prefix + name)
    if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
        found.extras[prefix + _LOCAL] = _local_extra(module, own)
    elif type(module).get_extra_state is not nn.Module.get_extra_state:
        found.extras[f"{prefix}_extra_state"] = Extra(module.get_extra_state, module.set_extra_state)
    if _overrides(module, "state_dict"):
        found.extras[prefix + _ADDED] = _added_extra(module, prefix)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    return {name: tensor for name, tensor in (module._parameters | persistent).items() if tensor is not None}


def _local_extra(module: nn.Module, own: dict[str, Tensor]) -> Extra:
    def get() -> dict[str, object]:
        saved: dict[str, object] = {}
        module._save_to_state_dict(saved, "", False)
        return {name: value for name, value in saved.items() if name not in own}

    def load(value: dict[str, object]) -> None:
        errors: list[str] = []
        # Clones: the method may keep what it is given.
        local = {name: tensor.detach().clone() for name, tensor in own.items()} | value
        with torch.no_grad():
            module._load_from_state_dict(local, "", {}, True, [], [], errors)
        if errors:
            raise RestoreFailed(f"{type(module).__name__} refused its state: {'; '.join(errors)}")

    return Extra(get, load)


def _overrides(module: nn.Module, *methods: str) -> bool:
    """Whether a class of the user or of a library overrides one of the methods; torch's own undo what they do."""
    owners = [next(cls for cls in type(module).__mro__ if method in vars(cls)) for method in methods]
    return any(owner.__module__.partition(".")[0] != "torch" for owner in owners)


def _added_extra(module: nn.Module, prefix: str) -> Extra:
    path = f"{prefix.rstrip('.') or 'the module'} ({type(module).__name__})"

    def get() -> dict[str, object]:
        standard = nn.Module.state_dict(module)
        added = {name: value for name, value in _asked(module, path).items() if name not in standard}
        if added and not _overrides(module, "load_state_dict", "_load_from_state_dict"):
            raise StateError(
                f"{path}: its state_dict() adds {', '.join(map(str, list(added)[:5]))}, and it has no load_state_dict "
                "that could take it back; keep it in a buffer, or give the class get_extra_state and set_extra_state"
            )
        return added

    def load(value: dict[str, object]) -> None:
        if value:
            # The tensors are in place already; what else it is handed is its own.
            with torch.no_grad():
                module.load_state_dict({**_asked(module, path), **value})

    return Extra(get, load)


def _asked(module: nn.Module, path: str) -> dict[str, object]:
    try:
        return dict(module.state_dict())
    except TypeError as error:
        raise StateError(
            f"{path}: its state_dict() cannot be called without arguments ({error}); give them defaults as "
            "torch.nn.Module.state_dict has, or use get_extra_state and set_extra_state"
        ) from error


def _reshard(module: nn.Module) -> None:
    # After a forward without a backward, root parameters of FSDP2 are plain tensors that no optimizer knows.
    cls = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if isinstance(cls, type) and isinstance(module, cls):
        module.reshard()  # type: ignore[operator]  # a method of FSDPModule
