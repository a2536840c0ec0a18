"""The tensors of a module under canonical names, whatever has been wrapped around it.

Wrappers (DistributedDataParallel, DataParallel, torch.compile, activation
checkpointing) are seen through by type. Their prefixes are never cut from
names as text: a model may well own a submodule called ``module``.

The walk takes parameters and persistent buffers where they live, so hooks that
rename entries of ``state_dict()`` have no say. A module that overrides
``_save_to_state_dict`` is asked for what it adds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import RestoreFailed, StateError
from holdfast.state.tensors import is_a
from holdfast.trees import Lifetime

_WRAPPERS = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", "_checkpoint_wrapped_module"),
)
_LOCAL = "_local_state"


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
    """Names of parameters without gradient."""
    extras: dict[str, Extra] = field(default_factory=dict)

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
    for prefix, child in _walk(module, ""):
        _collect(found, child, prefix)
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


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    module = unwrapped(module)
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.")


def _collect(found: ModuleView, module: nn.Module, prefix: str) -> None:
    own = _own_tensors(module)
    for name, tensor in own.items():
        found.tensors[prefix + name] = tensor
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            found.frozen.add(prefix + name)
    if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
        found.extras[prefix + _LOCAL] = _local_extra(module, own)
    elif type(module).get_extra_state is not nn.Module.get_extra_state:
        found.extras[f"{prefix}_extra_state"] = Extra(module.get_extra_state, module.set_extra_state)


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


def _reshard(module: nn.Module) -> None:
    # After a forward without a backward, root parameters of FSDP2 are plain tensors that no optimizer knows.
    cls = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if isinstance(cls, type) and isinstance(module, cls):
        module.reshard()  # type: ignore[operator]  # a method of FSDPModule
