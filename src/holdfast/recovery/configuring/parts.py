"""Which objects of a state are optimizers and which are schedulers, for a configuration that leaves them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from holdfast.recovery.configuring.aliases import Part
from holdfast.state.per_rank import bare

_KINDS: dict[Part, type] = {Part.OPTIMIZER: Optimizer, Part.SCHEDULER: LRScheduler}


def names_of(state: Mapping[str, object], parts: Iterable[Part]) -> tuple[str, ...]:
    """The names under which there are objects of these kinds, or nothing but such in a list or mapping.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> names_of({"model": model, "sgd": torch.optim.SGD(model.parameters())}, [Part.OPTIMIZER])
        ('sgd',)
    """
    wanted = tuple(_KINDS[part] for part in parts)
    return tuple(name for name, value in state.items() if wanted and _is(bare(value), wanted))


def _is(value: object, wanted: tuple[type, ...]) -> bool:
    if isinstance(value, list | tuple | dict):
        parts = list(value.values() if isinstance(value, dict) else value)
        return bool(parts) and all(_is(part, wanted) for part in parts)
    return isinstance(value, wanted)
