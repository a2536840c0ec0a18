"""Checkpoints that survive: save, version, verify and recover PyTorch training.

Importing this package imports neither torch nor anything else that is slow;
what touches training is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from holdfast import errors

if TYPE_CHECKING:
    from holdfast.catalog.opening import open
    from holdfast.checkpointer import Checkpointer
    from holdfast.policy.at import at
    from holdfast.policy.at_most import at_most
    from holdfast.policy.auto import auto
    from holdfast.policy.best import best
    from holdfast.policy.every import every
    from holdfast.policy.latest import latest
    from holdfast.policy.never import never
    from holdfast.policy.newer import newer
    from holdfast.policy.tolerance import tolerate
    from holdfast.recovery.launching.choice import new_run
    from holdfast.recovery.stopping.preempting import Preemption
    from holdfast.state.per_rank import per_rank
    from holdfast.state.sampler import Sampler
    from holdfast.state.seeding import seeded

__version__ = "0.1.0"

__all__ = [
    "Checkpointer",
    "Preemption",
    "Sampler",
    "__version__",
    "at",
    "at_most",
    "auto",
    "best",
    "errors",
    "every",
    "latest",
    "never",
    "new_run",
    "newer",
    "open",
    "per_rank",
    "seeded",
    "tolerate",
]

_HOME = {
    "Checkpointer": "holdfast.checkpointer",
    "Preemption": "holdfast.recovery.stopping.preempting",
    "Sampler": "holdfast.state.sampler",
    "at": "holdfast.policy",
    "at_most": "holdfast.policy",
    "auto": "holdfast.policy",
    "best": "holdfast.policy",
    "every": "holdfast.policy",
    "latest": "holdfast.policy",
    "never": "holdfast.policy",
    "new_run": "holdfast.recovery.launching.choice",
    "newer": "holdfast.policy",
    "open": "holdfast.catalog.opening",
    "per_rank": "holdfast.state.per_rank",
    "seeded": "holdfast.state.seeding",
    "tolerate": "holdfast.policy",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    found = getattr(import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
