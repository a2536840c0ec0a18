"""Whether the parameters of a model are numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def nonfinite_parameter(objects: Iterable[tuple[str, object]]) -> str | None:
    """The name of the first parameter with a NaN or an infinity in it; reads all of them, and waits for devices.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> nonfinite_parameter([("model", model)]) is None
        True
        >>> _ = model.bias.data.fill_(float("nan"))
        >>> nonfinite_parameter([("model", model)])
        'model/bias'
    """
    for name, one in objects:
        for path, tensor in one.named_parameters() if isinstance(one, nn.Module) else ():
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            known = not is_lazy(tensor) and (local.is_floating_point() or local.is_complex())
            if known and local.numel() and not bool(torch.isfinite(local.detach()).all()):
                return f"{name}/{path}"
    return None
