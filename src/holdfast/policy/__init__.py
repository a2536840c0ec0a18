"""When to save and what to keep: pure objects over facts.

``save=every(steps=500) | best("val_loss")`` and ``keep=latest(3) | best("val_loss", 2)``.

Example:
    >>> policy = every(steps=500) | best("val_loss")
    >>> policy.due(SaveFacts(step=500, steps_since_save=120))
    'every(steps=500)'
    >>> parse(str(policy)) == policy
    True
"""

from __future__ import annotations

from holdfast.catalog.metrics import Mode, measured
from holdfast.policy.base import AnyOf, Policy, any_of, for_keeping, for_saving
from holdfast.policy.best import Best, best, kind_of
from holdfast.policy.every import Every, Unit, every
from holdfast.policy.facts import CheckpointFacts, SaveFacts
from holdfast.policy.latest import Latest, latest
from holdfast.policy.text import parse
from holdfast.policy.tolerance import Tolerance, tolerance_of, tolerate

__all__ = [
    "AnyOf",
    "Best",
    "CheckpointFacts",
    "Every",
    "Latest",
    "Mode",
    "Policy",
    "SaveFacts",
    "Tolerance",
    "Unit",
    "any_of",
    "best",
    "every",
    "for_keeping",
    "for_saving",
    "kind_of",
    "latest",
    "measured",
    "parse",
    "tolerance_of",
    "tolerate",
]
